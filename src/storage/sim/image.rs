//! The content of one simulated file: sparse blocks that copies share until one of them is written.

use crate::storage::BLOCK_BYTES;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Blocks of a group: copying a file copies one pointer for each group.
const GROUP_BLOCKS: u64 = 64;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// One 4 KiB block.
#[derive(Clone)]
enum Block {
    /// Not allocated; reads as zeros.
    Hole,
    /// Allocated; reads as zeros.
    Zeros,
    /// Written.
    Data(Arc<[u8; BLOCK_BYTES]>),
}

type Group = [Block; GROUP_BLOCKS as usize];

/// A file's content. Cloning is cheap.
#[derive(Clone, Default)]
pub(super) struct Image {
    length: u64,
    allocated_blocks: u64,
    groups: BTreeMap<u64, Arc<Group>>,
}

impl Image {
    /// Length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes that the file takes from the disk.
    pub(super) fn allocated_bytes(&self) -> u64 {
        self.allocated_blocks * BLOCK
    }

    /// Bytes that writing to a range would take from the disk in addition.
    pub(super) fn missing_bytes(&self, offset: u64, bytes: u64) -> u64 {
        let missing = groups(offset, bytes).map(|(group, blocks)| match self.groups.get(&group) {
            Some(group) => group[blocks].iter().filter(|b| matches!(b, Block::Hole)).count(),
            None => blocks.len(),
        });
        missing.sum::<usize>() as u64 * BLOCK
    }

    /// Reads a range; what lies behind the end are zeros.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) {
        let mut rest = buffer;
        for span in spans(offset, rest.len() as u64) {
            let (part, tail) = rest.split_at_mut(span.bytes);
            match self.block(span.block) {
                Block::Data(data) => part.copy_from_slice(&data[span.start..][..span.bytes]),
                Block::Hole | Block::Zeros => part.fill(0),
            }
            rest = tail;
        }
    }

    /// Writes a range and grows the file if the range ends behind it.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for span in spans(offset, bytes.len() as u64) {
            let (part, tail) = rest.split_at(span.bytes);
            let block = self.allocated(span.block);
            if let Block::Data(data) = block {
                Arc::make_mut(data)[span.start..][..span.bytes].copy_from_slice(part);
            } else {
                let mut data = [0; BLOCK_BYTES];
                data[span.start..][..span.bytes].copy_from_slice(part);
                *block = Block::Data(Arc::new(data));
            }
            rest = tail;
        }
        self.length = self.length.max(offset + bytes.len() as u64);
    }

    /// Sets the length. What is cut off reads as zeros when the file grows again.
    pub(super) fn set_length(&mut self, bytes: u64) {
        if bytes < self.length {
            let kept_blocks = bytes.div_ceil(BLOCK);
            if bytes % BLOCK != 0 {
                self.zero_part(bytes / BLOCK, (bytes % BLOCK) as usize, BLOCK_BYTES);
            }
            // Allocated blocks can lie behind the end, but only inside groups that are there.
            if let Some(last) = self.groups.keys().next_back() {
                self.release(kept_blocks, (last + 1) * GROUP_BLOCKS);
            }
        }
        self.length = bytes;
    }

    /// Allocates the holes of a range and grows the file if the range ends behind it.
    pub(super) fn allocate(&mut self, offset: u64, bytes: u64) {
        for (number, blocks) in groups(offset, bytes) {
            let group = self.groups.entry(number).or_insert_with(no_blocks);
            if group[blocks.clone()].iter().all(|block| !matches!(block, Block::Hole)) {
                continue;
            }
            for block in &mut Arc::make_mut(group)[blocks] {
                if matches!(block, Block::Hole) {
                    self.allocated_blocks += 1;
                    *block = Block::Zeros;
                }
            }
        }
        self.length = self.length.max(offset + bytes);
    }

    /// Gives whole blocks of a range back and zeroes the rest of it.
    pub(super) fn punch(&mut self, offset: u64, bytes: u64) {
        for span in spans(offset, bytes) {
            if span.bytes == BLOCK_BYTES {
                self.release(span.block, span.block + 1);
            } else {
                self.zero_part(span.block, span.start, span.start + span.bytes);
            }
        }
    }

    fn block(&self, index: u64) -> &Block {
        match self.groups.get(&(index / GROUP_BLOCKS)) {
            Some(group) => &group[(index % GROUP_BLOCKS) as usize],
            None => &Block::Hole,
        }
    }

    /// The block, allocated if it was a hole.
    fn allocated(&mut self, index: u64) -> &mut Block {
        let group = self.groups.entry(index / GROUP_BLOCKS).or_insert_with(no_blocks);
        let block = &mut Arc::make_mut(group)[(index % GROUP_BLOCKS) as usize];
        if matches!(block, Block::Hole) {
            self.allocated_blocks += 1;
            *block = Block::Zeros;
        }
        block
    }

    fn zero_part(&mut self, index: u64, start: usize, end: usize) {
        if matches!(self.block(index), Block::Data(_)) {
            if let Block::Data(data) = self.allocated(index) {
                Arc::make_mut(data)[start..end].fill(0);
            }
        }
    }

    /// Turns blocks `from..to` into holes.
    fn release(&mut self, from: u64, to: u64) {
        let mut index = from;
        while index < to {
            let group_end = (index / GROUP_BLOCKS + 1) * GROUP_BLOCKS;
            let end = group_end.min(to);
            if let Some(group) = self.groups.get_mut(&(index / GROUP_BLOCKS)) {
                for block in index..end {
                    let block = (block % GROUP_BLOCKS) as usize;
                    if !matches!(group[block], Block::Hole) {
                        Arc::make_mut(group)[block] = Block::Hole;
                        self.allocated_blocks -= 1;
                    }
                }
            }
            index = end;
        }
    }
}

fn no_blocks() -> Arc<Group> {
    Arc::new(std::array::from_fn(|_| Block::Hole))
}

/// The groups that a range touches, each with the blocks of it that the range touches.
fn groups(offset: u64, bytes: u64) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let (first, end) = (offset / BLOCK, (offset + bytes).div_ceil(BLOCK));
    (first / GROUP_BLOCKS..end.div_ceil(GROUP_BLOCKS)).map(move |group| {
        let start = group * GROUP_BLOCKS;
        let from = first.max(start) - start;
        let to = end.min(start + GROUP_BLOCKS) - start;
        (group, from as usize..to as usize)
    })
}

/// The part of a range that lies in one block.
struct Span {
    block: u64,
    start: usize,
    bytes: usize,
}

fn spans(offset: u64, bytes: u64) -> impl Iterator<Item = Span> {
    let end = offset + bytes;
    let mut at = offset;
    std::iter::from_fn(move || {
        let count = (BLOCK - at % BLOCK).min(end - at);
        let span = Span { block: at / BLOCK, start: (at % BLOCK) as usize, bytes: count as usize };
        at += count;
        (count > 0).then_some(span)
    })
}
