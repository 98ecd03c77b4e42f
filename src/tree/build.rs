//! Building a tree from left to right out of records, and of old subtrees that stay.
//!
//! Each level has a *run*: the entries that follow the last node that was kept on that level and
//! are not written yet. A run is written when it has more than two nodes' worth, so that what is
//! left can be divided well when the run ends, or at its end: where an old node is kept, or at the
//! end of the tree. A written or kept node becomes an entry of the run above.

use super::{Error, LEVEL_MAX, NodeSink, NodeSource, Root, read_node};
use crate::format::node::{Measure, Node, NodeBuilder, shared_bytes};
use crate::format::{NodePointer, PAGE_BYTES};
use std::ops::Range;
use std::sync::Arc;

/// A node that is filled in order is full at this size: 95 %, so that the next small changes to it
/// do not split it.
const DENSE_BYTES: usize = PAGE_BYTES * 95 / 100;
/// A node that shrank below this is merged with a neighbour.
const UNDERFULL_BYTES: usize = PAGE_BYTES / 3;

/// Where an entry comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It was in the old tree: a record, or a pointer to a node that was there.
    Old,
    /// A record whose key was not in the old tree.
    Fresh,
    /// A pointer to a node that was just written.
    Written,
}

/// A record or child on its way into a node.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    prefix: &'a [u8],
    suffix: &'a [u8],
    payload: &'a [u8],
    origin: Origin,
}

impl<'a> Entry<'a> {
    /// A record that the old tree did not have.
    pub(super) fn fresh(key: &'a [u8], payload: &'a [u8]) -> Self {
        Self { prefix: key, suffix: &[], payload, origin: Origin::Fresh }
    }

    /// A record or child that the old tree had, perhaps with another value. The key comes in two
    /// parts, as nodes store it.
    pub(super) fn kept(prefix: &'a [u8], suffix: &'a [u8], payload: &'a [u8]) -> Self {
        Self { prefix, suffix, payload, origin: Origin::Old }
    }
}

/// An entry of a run: where its key and then its payload are in `Run::bytes`.
#[derive(Clone, Copy)]
struct Item {
    start: usize,
    key_bytes: usize,
    payload_bytes: usize,
    /// Bytes that its key shares with the one before.
    shared: usize,
    origin: Origin,
}

impl Item {
    fn key<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.start..self.start + self.key_bytes]
    }

    fn payload<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let start = self.start + self.key_bytes;
        &bytes[start..start + self.payload_bytes]
    }

    /// The payload of an entry of an interior node.
    fn pointer(&self, bytes: &[u8]) -> NodePointer {
        NodePointer::decode(self.payload(bytes).try_into().expect("interior payloads are pointers"))
    }
}

/// The entries of one level that are not written yet.
struct Run {
    level: u8,
    bytes: Vec<u8>,
    items: Vec<Item>,
    /// Ends of the nodes that are full: at most two, since the first is written then.
    full: Vec<usize>,
    /// Size of the node after them.
    open: Measure,
    /// For leaves: separates the first entry from everything before the run.
    from: Option<Vec<u8>>,
    /// Size of the old nodes that went into the run.
    consumed_bytes: usize,
}

impl Run {
    fn new(level: u8) -> Self {
        Self {
            level,
            bytes: Vec::new(),
            items: Vec::new(),
            full: Vec::new(),
            open: Measure::new(level),
            from: None,
            consumed_bytes: 0,
        }
    }

    /// Adds an entry; `false` if its key is not larger than the last one.
    #[must_use]
    fn push(&mut self, entry: Entry<'_>) -> bool {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(entry.prefix);
        self.bytes.extend_from_slice(entry.suffix);
        let key_bytes = self.bytes.len() - start;
        let mut shared = 0;
        if let Some(last) = self.items.last() {
            let (last, key) = (last.key(&self.bytes), &self.bytes[start..]);
            shared = shared_bytes(last, key);
            if last[shared..] >= key[shared..] {
                self.bytes.truncate(start);
                return false;
            }
        }
        self.bytes.extend_from_slice(entry.payload);
        let payload_bytes = entry.payload.len();
        let item = Item { start, key_bytes, payload_bytes, shared, origin: entry.origin };
        self.place(item);
        true
    }

    /// Adds an item whose bytes are in place.
    fn place(&mut self, item: Item) {
        let mut open = self.open.with(item.key_bytes, item.shared, item.payload_bytes);
        if self.open.count() > 0 && (self.open.bytes() >= DENSE_BYTES || !open.fits()) {
            self.full.push(self.items.len());
            let empty = Measure::new(self.level);
            open = empty.with(item.key_bytes, item.shared, item.payload_bytes);
        }
        self.open = open;
        self.items.push(item);
    }

    /// Forgets the first `count` items, which were written.
    fn drop_first(&mut self, count: usize) {
        let start = self.items.get(count).map_or(self.bytes.len(), |item| item.start);
        self.bytes.drain(..start);
        self.items.drain(..count);
        for item in &mut self.items {
            item.start -= start;
        }
        if self.full.first() == Some(&count) {
            self.full.remove(0);
            self.full.iter_mut().for_each(|end| *end -= count);
        } else {
            self.measure_again();
        }
    }

    /// Takes the last item out.
    fn pop(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let item = self.items.pop()?;
        let taken = (item.key(&self.bytes).to_vec(), item.payload(&self.bytes).to_vec());
        self.bytes.truncate(item.start);
        self.measure_again();
        Some(taken)
    }

    fn measure_again(&mut self) {
        self.full.clear();
        self.open = Measure::new(self.level);
        for item in std::mem::take(&mut self.items) {
            self.place(item);
        }
    }

    /// Size of a node with some of the items.
    fn measure(&self, items: Range<usize>) -> Measure {
        self.items[items].iter().fold(Measure::new(self.level), |sum, item| {
            sum.with(item.key_bytes, item.shared, item.payload_bytes)
        })
    }

    /// Whether the entries would make a node that is too small, because something was removed.
    /// One that is small because little was added yet stays, or else each append would rewrite its
    /// neighbour.
    fn is_underfull(&self) -> bool {
        let bytes = self.open.bytes();
        let alone = self.full.is_empty() && !self.items.is_empty();
        alone && bytes < UNDERFULL_BYTES && bytes < self.consumed_bytes
    }

    /// How many items each of the last nodes of the run gets.
    fn divide(&self, at_edge: bool) -> Vec<usize> {
        let count = self.items.len();
        if self.measure(0..count).fits() {
            return vec![count];
        }
        let dense = || {
            let ends = self.full.iter().copied().chain([count]);
            let starts = [0].into_iter().chain(self.full.iter().copied());
            starts.zip(ends).map(|(start, end)| end - start).collect()
        };
        if self.level > 0 {
            return if at_edge { dense() } else { self.divide_evenly() };
        }
        match self.fresh_end() {
            // Records arrive in order: leave no room before their end, where none will come.
            Some((fresh, end)) if end == count && (fresh > 1 || at_edge) => dense(),
            Some((fresh, end)) if fresh > 1 && end < count => {
                let (left, right) = (self.measure(0..end), self.measure(end..count));
                let good = left.bytes() >= UNDERFULL_BYTES && left.fits() && right.fits();
                if good { vec![end, count - end] } else { self.divide_evenly() }
            }
            _ => self.divide_evenly(),
        }
    }

    /// If all fresh records are next to each other: how many they are, and where they end.
    fn fresh_end(&self) -> Option<(usize, usize)> {
        let is_fresh = |item: &Item| item.origin == Origin::Fresh;
        let start = self.items.iter().position(is_fresh)?;
        let count = self.items[start..].iter().take_while(|item| is_fresh(item)).count();
        let others = self.items[start + count..].iter().any(is_fresh);
        if others { None } else { Some((count, start + count)) }
    }

    /// Divides into as few nodes as possible, the largest of which is as small as possible.
    fn divide_evenly(&self) -> Vec<usize> {
        let mut best = self.divide_greedily(PAGE_BYTES);
        let (mut low, mut high) = (UNDERFULL_BYTES, PAGE_BYTES);
        while low < high {
            let limit = low.midpoint(high);
            let parts = self.divide_greedily(limit);
            if parts.len() <= best.len() {
                (best, high) = (parts, limit);
            } else {
                low = limit + 1;
            }
        }
        best
    }

    /// Fills nodes up to `limit` bytes; one item may be larger alone.
    fn divide_greedily(&self, limit: usize) -> Vec<usize> {
        let empty = Measure::new(self.level);
        let (mut parts, mut part) = (Vec::new(), empty);
        for item in &self.items {
            let add = |to: Measure| to.with(item.key_bytes, item.shared, item.payload_bytes);
            let larger = add(part);
            if part.count() > 0 && larger.bytes() > limit {
                parts.push(part.count());
                part = add(empty);
            } else {
                part = larger;
            }
        }
        parts.push(part.count());
        parts
    }

    /// Encodes the first `count` items.
    fn encode(&self, count: usize) -> Node {
        let mut node = NodeBuilder::new(self.level);
        for item in &self.items[..count] {
            let pushed = node.push(item.key(&self.bytes), item.payload(&self.bytes));
            assert!(pushed, "keys ascend, and the same measure divided the run");
        }
        node.finish().expect("parts of a run have entries")
    }

    /// What separates the next node of the run from the one before it.
    fn separator(&self) -> Vec<u8> {
        match &self.from {
            Some(from) if self.level == 0 => from.clone(),
            None if self.level == 0 => Vec::new(),
            _ => self.items.first().map_or_else(Vec::new, |item| item.key(&self.bytes).to_vec()),
        }
    }

    /// The shortest key that separates the leaf before item `index` from the one that begins there.
    fn shortest_separator(&self, index: usize) -> Option<Vec<u8>> {
        let item = self.items.get(index)?;
        Some(item.key(&self.bytes)[..item.shared + 1].to_vec())
    }
}

/// The new tree, as far as it is known.
pub(super) struct Builder<'a, S> {
    store: &'a mut S,
    /// One per level, the leaves' first.
    runs: Vec<Run>,
    /// The old node that was read last: to blame, if keys turn out not to ascend.
    source: Option<NodePointer>,
}

impl<'a, S: NodeSource + NodeSink> Builder<'a, S> {
    pub(super) fn new(store: &'a mut S) -> Self {
        Self { store, runs: vec![Run::new(0)], source: None }
    }

    pub(super) fn store(&self) -> &S {
        self.store
    }

    /// Frees an old node, the entries of which will be given with other methods.
    pub(super) fn consume(&mut self, pointer: &NodePointer, node: &Node) {
        self.store.free(pointer);
        self.source = Some(*pointer);
        self.run(node.level()).consumed_bytes += node.used_bytes();
    }

    /// The leaf that begins at `from` is replaced: this separates it from what was kept before.
    pub(super) fn start_leaves(&mut self, from: &[u8]) {
        self.runs[0].from.get_or_insert_with(|| from.to_vec());
    }

    /// Adds entries of an old node; `from` is the first child's separator.
    pub(super) fn copy_entries(
        &mut self,
        node: &Node,
        entries: Range<usize>,
        from: &[u8],
    ) -> Result<(), Error> {
        for index in entries {
            let payload = node.value(index);
            let entry = match index {
                0 if node.level() > 0 => Entry::kept(from, &[], payload),
                _ => Entry::kept(node.prefix(), node.suffix(index), payload),
            };
            self.push(node.level(), entry)?;
        }
        Ok(())
    }

    /// Adds an entry to a level.
    pub(super) fn push(&mut self, level: u8, entry: Entry<'_>) -> Result<(), Error> {
        if level > LEVEL_MAX {
            return Err(self.malformed("tree would be too high"));
        }
        if !self.run(level).push(entry) {
            return Err(self.malformed("keys of neighbouring nodes do not ascend"));
        }
        match *self.run(level).full {
            [first, _] => self.write_first(level, first),
            _ => Ok(()),
        }
    }

    /// Keeps an old subtree, which comes after everything so far.
    pub(super) fn keep(
        &mut self,
        level: u8,
        from: &[u8],
        pointer: &NodePointer,
    ) -> Result<(), Error> {
        for lower in 0..=level {
            if self.run(lower).is_underfull() {
                let opened = if lower == level {
                    self.merge_right(level, from, pointer)?
                } else {
                    !self.take_left(lower)? && self.open(level, from, pointer)?
                };
                if opened {
                    return Ok(());
                }
            }
            self.end_run(lower, false)?;
        }
        self.push(level + 1, Entry::kept(from, &[], &pointer.encode()))
    }

    /// Adds the entries of an old node to the run of its own level, instead of keeping it. `false`
    /// if it cannot be read: then there is no merging, but no harm either.
    fn merge_right(
        &mut self,
        level: u8,
        from: &[u8],
        pointer: &NodePointer,
    ) -> Result<bool, Error> {
        let Ok(node) = read_node(self.store, pointer, level) else { return Ok(false) };
        self.consume(pointer, &node);
        self.copy_entries(&node, 0..node.len(), from)?;
        Ok(true)
    }

    /// Keeps the children of an interior node instead of the node, so that the first of them can
    /// merge with what is on a lower level. `false` as above.
    fn open(&mut self, level: u8, from: &[u8], pointer: &NodePointer) -> Result<bool, Error> {
        let Ok(node) = read_node(self.store, pointer, level) else { return Ok(false) };
        self.consume(pointer, &node);
        let mut key = from.to_vec();
        for index in 0..node.len() {
            if index > 0 {
                key.clear();
                node.append_key(index, &mut key);
            }
            let child = node.pointer(index).expect("interior nodes hold pointers");
            self.keep(level - 1, &key, &child)?;
        }
        Ok(true)
    }

    /// Puts the entries of the old node before a run back in front of it; `false` if there is none.
    fn take_left(&mut self, level: u8) -> Result<bool, Error> {
        let Some((pointer, node)) = self.left(level)? else { return Ok(false) };
        let (from, _) = self.run(level + 1).pop().expect("left() found it there");
        self.consume(&pointer, &node);
        let right = std::mem::replace(self.run(level), Run::new(level));
        self.run(level).consumed_bytes = right.consumed_bytes;
        if level == 0 {
            self.start_leaves(&from);
        }
        self.copy_entries(&node, 0..node.len(), &from)?;
        for item in &right.items {
            let (prefix, payload) = (item.key(&right.bytes), item.payload(&right.bytes));
            self.push(level, Entry { prefix, suffix: &[], payload, origin: item.origin })?;
        }
        Ok(true)
    }

    /// The old node before a run, if there is one and it can be read.
    fn left(&mut self, level: u8) -> Result<Option<(NodePointer, Arc<Node>)>, Error> {
        if usize::from(level) + 1 >= self.runs.len() {
            return Ok(None);
        }
        if self.run(level + 1).items.is_empty() && !self.take_left(level + 1)? {
            return Ok(None);
        }
        let above = self.run(level + 1);
        let Some(item) = above.items.last().filter(|item| item.origin == Origin::Old) else {
            return Ok(None);
        };
        let pointer = item.pointer(&above.bytes);
        Ok(read_node(self.store, &pointer, level).ok().map(|node| (pointer, node)))
    }

    /// Writes all that is left of a run.
    fn end_run(&mut self, level: u8, at_edge: bool) -> Result<(), Error> {
        if !self.run(level).items.is_empty() {
            for count in self.run(level).divide(at_edge) {
                self.write_first(level, count)?;
            }
        }
        let run = self.run(level);
        run.from = None;
        run.consumed_bytes = 0;
        Ok(())
    }

    /// Writes the first `count` items of a run as a node, which becomes an entry above.
    fn write_first(&mut self, level: u8, count: usize) -> Result<(), Error> {
        let run = self.run(level);
        let (node, from) = (run.encode(count), run.separator());
        if level == 0 {
            run.from = run.shortest_separator(count);
        }
        run.drop_first(count);
        let payload = self.store.write(level, node)?.encode();
        let entry =
            Entry { prefix: &from, suffix: &[], payload: &payload, origin: Origin::Written };
        self.push(level + 1, entry)
    }

    /// Writes what is left, level by level, until one node or none has everything below it.
    pub(super) fn finish(mut self) -> Result<Option<Root>, Error> {
        for level in 0.. {
            let underfull = self.run(level).is_underfull();
            // What shrank is not about to grow at its end, so that it is divided evenly.
            let merged = underfull && self.take_left(level)?;
            let is_top = self.runs[usize::from(level) + 1..].iter().all(|run| run.items.is_empty());
            let run = self.run(level);
            let count = run.items.len();
            match count {
                0 if is_top => return Ok(None),
                1 if is_top && level > 0 => return self.collapse(level).map(Some),
                _ if is_top && run.measure(0..count).fits() => {
                    let node = run.encode(count);
                    let pointer = self.store.write(level, node)?;
                    return Ok(Some(Root { pointer, level }));
                }
                _ => self.end_run(level, !merged)?,
            }
        }
        unreachable!("push() refuses the level after the highest")
    }

    /// The only child of the top node, or its only descendant, becomes the root.
    fn collapse(&mut self, top: u8) -> Result<Root, Error> {
        let run = &self.runs[usize::from(top)];
        let item = run.items[0];
        let mut root = Root { pointer: item.pointer(&run.bytes), level: top - 1 };
        while item.origin == Origin::Old && root.level > 0 {
            match read_node(self.store, &root.pointer, root.level) {
                Ok(node) if node.len() == 1 => {
                    self.store.free(&root.pointer);
                    let pointer = node.pointer(0).expect("interior nodes hold pointers");
                    root = Root { pointer, level: root.level - 1 };
                }
                // A damaged node is no reason to fail: it is the root all the same.
                _ => break,
            }
        }
        Ok(root)
    }

    /// The run of a level, which is there from now on.
    fn run(&mut self, level: u8) -> &mut Run {
        for missing in self.runs.len()..=usize::from(level) {
            self.runs.push(Run::new(missing as u8));
        }
        &mut self.runs[usize::from(level)]
    }

    fn malformed(&self, what: &'static str) -> Error {
        match self.source {
            Some(pointer) => Error::Malformed { pointer, what },
            None => Error::Batch(what),
        }
    }
}
