//! The slots of one segment: two bits each.

use super::{PIECE_BYTES, Want};
use crate::format::SEGMENT_SLOTS;

const WORDS: usize = SEGMENT_SLOTS as usize / 64;
/// Words of a long run: 1 MiB.
const LONG_WORDS: usize = 4;
/// Pieces of one segment.
const PIECES: u8 = (SEGMENT_SLOTS as usize / 8 / PIECE_BYTES) as u8;

/// Bits of one segment.
pub(super) struct Segment {
    used: Box<[u64; WORDS]>,
    backed: Box<[u64; WORDS]>,
    used_count: u32,
}

impl Segment {
    /// A segment of free slots without blocks.
    pub(super) fn empty() -> Self {
        Self { used: Box::new([0; WORDS]), backed: Box::new([0; WORDS]), used_count: 0 }
    }

    /// A segment whose used bits are given by piece; used slots are backed.
    pub(super) fn from_used<'a>(piece: impl Fn(u8) -> Option<&'a [u8; PIECE_BYTES]>) -> Self {
        let mut segment = Self::empty();
        for number in 0..PIECES {
            let Some(bits) = piece(number) else { continue };
            for (at, word) in bits.chunks_exact(8).enumerate() {
                let word = u64::from_le_bytes(word.try_into().expect("8 bytes"));
                segment.used[usize::from(number) * PIECE_BYTES / 8 + at] = word;
                segment.used_count += word.count_ones();
            }
        }
        segment.backed.copy_from_slice(&*segment.used);
        segment
    }

    pub(super) fn used(&self) -> u32 {
        self.used_count
    }

    /// Used slots from `first` on.
    pub(super) fn used_behind(&self, first: u32) -> u32 {
        let mut used = 0;
        let rest = (SEGMENT_SLOTS as u32).saturating_sub(first);
        Self::for_words(first, rest, |word, mask| used += (self.used[word] & mask).count_ones());
        used
    }

    /// Slots that have blocks.
    pub(super) fn backed(&self) -> u32 {
        self.backed.iter().map(|word| word.count_ones()).sum()
    }

    fn candidates(&self, word: usize, want: Want) -> u64 {
        let free = !self.used[word];
        match want {
            Want::Any => free,
            Want::Backed => free & self.backed[word],
            Want::Unbacked => free & !self.backed[word],
        }
    }

    /// First run at or after `from` of at most `count` slots: its start and length.
    pub(super) fn find(&self, from: u32, count: u32, want: Want) -> Option<(u32, u32)> {
        let mut word = from as usize / 64;
        let mut mask = u64::MAX.checked_shl(from % 64).unwrap_or(0);
        while word < WORDS {
            let bits = self.candidates(word, want) & mask;
            if bits != 0 {
                let start = word as u32 * 64 + bits.trailing_zeros();
                return Some((start, self.run_length(start, count, want)));
            }
            word += 1;
            mask = u64::MAX;
        }
        None
    }

    /// First long run at or after `from`: its start, and how long it is, up to `count`.
    pub(super) fn find_long(&self, from: u32, count: u32, want: Want) -> Option<(u32, u32)> {
        let mut whole = 0;
        for word in from.div_ceil(64) as usize..WORDS {
            whole = if self.candidates(word, want) == u64::MAX { whole + 1 } else { 0 };
            if whole == LONG_WORDS {
                let first = word + 1 - LONG_WORDS;
                let before = match first.checked_sub(1) {
                    Some(word) => self.candidates(word, want).leading_ones(),
                    None => 0,
                };
                let start = (first as u32 * 64 - before).max(from);
                return Some((start, self.run_length(start, count, want)));
            }
        }
        None
    }

    fn run_length(&self, start: u32, count: u32, want: Want) -> u32 {
        let end = (start + count).min(SEGMENT_SLOTS as u32);
        let mut at = start;
        while at < end {
            let ones = (!(self.candidates(at as usize / 64, want) >> (at % 64))).trailing_zeros();
            let ones = ones.min(64 - at % 64);
            at += ones;
            if ones == 0 || at % 64 != 0 {
                break;
            }
        }
        at.min(end) - start
    }

    /// Sets bits and returns how many were newly set in `bits` and are set in `also`.
    fn for_words(first: u32, count: u32, mut visit: impl FnMut(usize, u64)) {
        let mut at = first;
        let end = first + count;
        while at < end {
            let length = (64 - at % 64).min(end - at);
            let mask = if length == 64 { u64::MAX } else { ((1 << length) - 1) << (at % 64) };
            visit(at as usize / 64, mask);
            at += length;
        }
    }

    /// Marks slots used; returns how many of them are backed.
    pub(super) fn set_used(&mut self, first: u32, count: u32) -> u32 {
        let mut backed = 0;
        Self::for_words(first, count, |word, mask| {
            debug_assert_eq!(self.used[word] & mask, 0, "slot handed out twice");
            self.used[word] |= mask;
            backed += (self.backed[word] & mask).count_ones();
        });
        self.used_count += count;
        backed
    }

    /// Marks slots free; returns how many of them are backed.
    pub(super) fn clear_used(&mut self, first: u32, count: u32) -> u32 {
        let mut backed = 0;
        Self::for_words(first, count, |word, mask| {
            debug_assert_eq!(self.used[word] & mask, mask, "slot released twice");
            self.used[word] &= !mask;
            backed += (self.backed[word] & mask).count_ones();
        });
        self.used_count -= count;
        backed
    }

    /// Marks used slots as backed.
    pub(super) fn set_backed(&mut self, first: u32, count: u32) {
        Self::for_words(first, count, |word, mask| self.backed[word] |= mask);
    }

    /// Learns that slots have blocks; returns how many of them are free and were not known to.
    pub(super) fn learn_backed(&mut self, first: u32, count: u32) -> u32 {
        let mut learnt = 0;
        Self::for_words(first, count, |word, mask| {
            learnt += (mask & !self.used[word] & !self.backed[word]).count_ones();
            self.backed[word] |= mask;
        });
        learnt
    }

    /// Marks used slots as not backed.
    pub(super) fn clear_backed(&mut self, first: u32, count: u32) {
        Self::for_words(first, count, |word, mask| self.backed[word] &= !mask);
    }

    /// Whether all of these slots are free, and some of them are backed.
    pub(super) fn is_free_and_partly_backed(&self, first: u32, count: u32) -> bool {
        let (mut free, mut backed) = (true, false);
        Self::for_words(first, count, |word, mask| {
            free &= self.used[word] & mask == 0;
            backed |= self.backed[word] & mask != 0;
        });
        free && backed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs() {
        let mut segment = Segment::empty();
        segment.set_used(0, 10);
        assert_eq!(segment.find_long(0, 1000, Want::Any), Some((10, 1000)));
        assert_eq!(segment.find_long(70, 5, Want::Any), Some((70, 5)));
        // Every second slot, up to the middle: whole words begin there, and so does the run.
        for at in (10..32_700).step_by(2) {
            segment.set_used(at, 1);
        }
        assert_eq!(segment.find_long(0, 300, Want::Any), Some((32_699, 300)));
        assert_eq!(segment.find_long(32_699, 1 << 20, Want::Any), Some((32_699, 32_837)));
        segment.set_used(33_000, 32_536);
        assert_eq!(segment.find_long(0, 300, Want::Any), Some((32_699, 300)));
        assert_eq!(segment.find_long(32_768, 300, Want::Any), None, "it is too short from there");
        assert_eq!(segment.find_long(0, 300, Want::Backed), None);
        segment.set_used(32_699, 1);
        segment.set_used(32_900, 1);
        assert_eq!(segment.find_long(0, 1, Want::Any), None);
    }

    #[test]
    fn find_gives_the_longest_run_up_to_the_count() {
        let mut segment = Segment::empty();
        segment.set_used(0, 10);
        segment.set_used(200, 1);
        assert_eq!(segment.find(0, 1000, Want::Any), Some((10, 190)));
        assert_eq!(segment.find(201, 500, Want::Any), Some((201, 500)));
        assert_eq!(segment.find(65_500, 500, Want::Any), Some((65_500, 36)));
        assert_eq!(segment.find(0, 5, Want::Backed), None);
        segment.set_used(201, 65_335);
        segment.set_used(10, 190);
        assert_eq!(segment.find(0, 1, Want::Any), None);
        segment.clear_used(63, 2);
        assert_eq!(segment.find(0, 9, Want::Any), Some((63, 2)));
    }
}
