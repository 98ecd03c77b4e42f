//! Decompressing a member from a seek point on, and making seek points on the way.

use std::sync::Arc;

use super::error::ReadError;
use super::source::Source;
use crate::sys::inflate::{At, Inflater};

/// Compressed bytes that are read at once.
const INPUT_BYTES: usize = 64 << 10;

/// A place between two blocks of a deflate stream from which decompressing can begin.
pub(super) struct Point {
    /// Bytes that come before it, decompressed.
    pub(super) output: u64,
    /// Bits that come before it, compressed.
    pub(super) input_bits: u64,
    /// What was decompressed last before it.
    pub(super) window: Window,
}

/// Those of one member, in order.
pub(super) type Points = Vec<Arc<Point>>;

/// The bytes before a seek point, up to as many as a match may reach back.
pub(super) enum Window {
    /// Made by this process.
    Memory(Box<[u8]>),
    /// In the file of [`super::seeks::Kept`].
    Kept { at: u64, bytes: usize },
}

impl Window {
    /// Whether it was made by this process.
    pub(super) fn is_made(&self) -> bool {
        matches!(self, Self::Memory(_))
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Memory(window) => window.len(),
            Self::Kept { bytes, .. } => *bytes,
        }
    }
}

/// Memory that a cursor takes, roughly: its input, its window, its tables.
pub(super) const CURSOR_BYTES: u64 = INPUT_BYTES as u64 + (64 << 10);

/// The state of decompressing a member at some position.
pub(super) struct Cursor {
    inflater: Inflater,
    /// Position in the decompressed member.
    position: u64,
    /// Position in the compressed member of what comes after `input`.
    input_end: u64,
    input: Vec<u8>,
    /// How much of `input` was taken.
    taken: usize,
    ended: bool,
}

/// Where a member's compressed bytes are.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) start: u64,
    pub(super) bytes: u64,
}

impl Cursor {
    /// At the beginning.
    pub(super) fn new() -> Self {
        let (inflater, input) = (Inflater::new(), Vec::new());
        Self { inflater, position: 0, input_end: 0, input, taken: 0, ended: false }
    }

    /// Where it is in the decompressed member.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Goes to the beginning of a member, of this one or another.
    pub(super) fn rewind(&mut self) {
        self.input.clear();
        (self.taken, self.ended) = (0, false);
        (self.position, self.input_end) = (0, 0);
        self.inflater.restart(0, 0, &[]);
    }

    /// Goes to a seek point, before which `window` was decompressed.
    pub(super) fn seek(
        &mut self,
        place: Place,
        point: &Point,
        window: &[u8],
    ) -> Result<(), ReadError> {
        self.input.clear();
        (self.taken, self.ended) = (0, false);
        let (byte, bit) = (point.input_bits / 8, (point.input_bits % 8) as u8);
        let mut value = [0];
        if bit > 0 {
            if byte >= place.bytes {
                return Err(ReadError::Length);
            }
            place.source.read_exact_at(&mut value, place.start + byte)?;
        }
        let bits = (8 - bit) % 8;
        self.inflater.restart(bits, value[0] >> bit, window);
        (self.position, self.input_end) = (point.output, byte + u64::from(bit > 0));
        Ok(())
    }

    /// Decompresses until `output` is full, or, if `to_boundary`, the next boundary is reached.
    /// Returns how much of it was filled, which is less only there, and the seek point that is
    /// there.
    ///
    /// # Errors
    /// The source failed, the stream is damaged, or it ends before `output` is full.
    pub(super) fn fill(
        &mut self,
        place: Place,
        output: &mut [u8],
        to_boundary: bool,
    ) -> Result<(usize, Option<Point>), ReadError> {
        let mut filled = 0;
        while filled < output.len() {
            self.refill(place)?;
            let input = &self.input[self.taken..];
            let step = self.inflater.step(input, &mut output[filled..], to_boundary)?;
            self.taken += step.consumed;
            filled += step.produced;
            self.position += step.produced as u64;
            match step.at {
                At::Boundary { unused_bits } => {
                    let read = self.input_end - (self.input.len() - self.taken) as u64;
                    let input_bits = read * 8 - u64::from(unused_bits);
                    let window = Window::Memory(self.inflater.window().into());
                    let point = Point { output: self.position, input_bits, window };
                    return Ok((filled, Some(point)));
                }
                At::End => {
                    self.ended = true;
                    break;
                }
                At::Anywhere if step.consumed == 0 && step.produced == 0 => {
                    return Err(ReadError::Length);
                }
                At::Anywhere => {}
            }
        }
        if filled < output.len() {
            return Err(ReadError::Length);
        }
        Ok((filled, None))
    }

    /// Whether the stream ends here, where the member does, and uses all that is there.
    ///
    /// # Errors
    /// It goes on, or is cut off.
    pub(super) fn finish(&mut self, place: Place) -> Result<(), ReadError> {
        while !self.ended {
            self.refill(place)?;
            let step = self.inflater.step(&self.input[self.taken..], &mut [0], false)?;
            self.taken += step.consumed;
            if step.produced > 0 || (step.consumed == 0 && step.at != At::End) {
                return Err(ReadError::Length);
            }
            self.ended = step.at == At::End;
        }
        let left = place.bytes - self.input_end + (self.input.len() - self.taken) as u64;
        if left > 0 { Err(ReadError::Length) } else { Ok(()) }
    }

    /// Reads more input if there is none left.
    fn refill(&mut self, place: Place) -> Result<(), ReadError> {
        if self.taken < self.input.len() {
            return Ok(());
        }
        let left = place.bytes.saturating_sub(self.input_end);
        let length = usize::try_from(left).unwrap_or(INPUT_BYTES).min(INPUT_BYTES);
        self.input.resize(length, 0);
        self.taken = 0;
        place.source.read_exact_at(&mut self.input, place.start + self.input_end)?;
        self.input_end += length as u64;
        Ok(())
    }
}
