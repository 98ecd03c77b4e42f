//! The space delta: which slots one epoch's own tree nodes took and freed.
//!
//! The bitmaps of free space are in the tree, and writing the tree changes them. So the tree of an
//! epoch holds the bitmaps as they were *without* that epoch's nodes, and a chain of pages beside
//! it says what its nodes changed; the next epoch folds that into the bitmaps.

use super::nodes::{LEVEL_DELTA, NodeStore, NodeWriter};
use crate::format::{NodePointer, PAGE_BYTES, SEGMENT_SLOTS, Slot};
use crate::space::{SlotRun, runs_of};
use crate::tree::Error;

/// What one epoch's nodes changed.
#[derive(Default)]
pub(super) struct Delta {
    /// Runs that the nodes use.
    pub(super) used: Vec<SlotRun>,
    /// Runs that nodes used and that are free now.
    pub(super) freed: Vec<SlotRun>,
    /// The pages of the chain itself (part of `used`).
    pub(super) chain: Vec<[Slot; 2]>,
}

/// ```text
/// offset size field
///      0    4 count of entries in this page
///      4    1 next present, 0 or 1
///      5    3 reserved, zero
///      8   52 pointer to the next page
///     60    4 reserved, zero
///     64    8 each entry: slot u48, then u16 = count << 1 | used
/// ```
const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 8;
const ENTRIES: usize = (PAGE_BYTES - HEADER_BYTES) / ENTRY_BYTES;
const RUN_COUNT_MAX: u32 = 0x7fff;

/// Writes the delta of an epoch. `written` and `freed` are the slots of its tree nodes; the chain's
/// own pages are added to them.
pub(super) fn write(
    writer: &mut NodeWriter,
    used: Vec<Slot>,
    freed: Vec<Slot>,
) -> Result<(Option<NodePointer>, Delta), Error> {
    let mut pages = 1;
    let (chain, delta, entries) = loop {
        let chain = writer.take_pairs(pages)?;
        let all = used.iter().copied().chain(chain.iter().flatten().copied()).collect();
        let delta = Delta { used: runs_of(all), freed: runs_of(freed.clone()), chain };
        let entries = encode(&delta);
        let needed = entries.len().div_ceil(ENTRIES).max(1);
        if needed <= pages {
            break (delta.chain.clone(), delta, entries);
        }
        // The slots just taken stay in the next, larger chain's place: give them to the writer
        // again.
        writer.return_pairs(delta.chain);
        pages = needed + 1;
    };
    let mut next: Option<NodePointer> = None;
    let chunks: Vec<&[[u8; 8]]> = entries.chunks(ENTRIES).collect();
    for (index, slots) in chain.iter().enumerate().rev() {
        let mut page = Box::new([0; PAGE_BYTES]);
        let chunk = chunks.get(index).copied().unwrap_or_default();
        page[0..4].copy_from_slice(&(chunk.len() as u32).to_le_bytes());
        if let Some(pointer) = &next {
            page[4] = 1;
            page[8..60].copy_from_slice(&pointer.encode());
        }
        for (at, entry) in chunk.iter().enumerate() {
            let at = HEADER_BYTES + at * ENTRY_BYTES;
            page[at..at + ENTRY_BYTES].copy_from_slice(entry);
        }
        next = Some(writer.write_page(*slots, LEVEL_DELTA, &page)?);
    }
    Ok((next, delta))
}

fn encode(delta: &Delta) -> Vec<[u8; 8]> {
    let mut entries = Vec::new();
    for (runs, used) in [(&delta.freed, 0), (&delta.used, 1)] {
        for run in runs {
            let mut done = 0;
            while done < run.count {
                let count = (run.count - done).min(RUN_COUNT_MAX);
                let mut entry = (run.first.0 + u64::from(done)).to_le_bytes();
                let packed = (count as u16) << 1 | used;
                entry[6..8].copy_from_slice(&packed.to_le_bytes());
                entries.push(entry);
                done += count;
            }
        }
    }
    entries
}

/// Reads the delta chain that starts at `first`.
pub(super) fn read(store: &NodeStore, first: Option<NodePointer>) -> Result<Delta, Error> {
    let mut delta = Delta::default();
    let mut next = first;
    while let Some(pointer) = next {
        let page = store.read_page(&pointer, LEVEL_DELTA)?;
        delta.chain.push(pointer.slots);
        next = decode(&page, &mut delta).map_err(|what| Error::Malformed { pointer, what })?;
    }
    Ok(delta)
}

fn decode(page: &[u8; PAGE_BYTES], delta: &mut Delta) -> Result<Option<NodePointer>, &'static str> {
    let count = u32::from_le_bytes(page[0..4].try_into().expect("4 bytes")) as usize;
    if count > ENTRIES || page[4] > 1 || page[5..8] != [0; 3] || page[60..64] != [0; 4] {
        return Err("space delta header");
    }
    for at in (0..count).map(|index| HEADER_BYTES + index * ENTRY_BYTES) {
        let mut wide = [0; 8];
        wide[..6].copy_from_slice(&page[at..at + 6]);
        let packed = u16::from_le_bytes([page[at + 6], page[at + 7]]);
        let run = SlotRun { first: Slot(u64::from_le_bytes(wide)), count: u32::from(packed >> 1) };
        if run.count == 0 || run.first.0 % SEGMENT_SLOTS + u64::from(run.count) > SEGMENT_SLOTS {
            return Err("space delta entry");
        }
        if packed & 1 == 1 { delta.used.push(run) } else { delta.freed.push(run) }
    }
    let pointer = NodePointer::decode(page[8..60].try_into().expect("52 bytes"));
    Ok((page[4] == 1).then_some(pointer))
}
