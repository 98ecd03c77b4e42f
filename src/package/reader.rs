//! Reading members anywhere: seek points, cursors, and the cache of blocks.
//!
//! A member is divided into blocks. A block that is not in memory is decompressed from the nearest
//! place before it at which decompressing can begin: where another reader has stopped (a cursor), a
//! seek point, or the beginning. No two readers decompress what one of them can be waited for: who
//! reads a member from front to back, however the kernel divides that into requests, has every byte
//! decompressed once.
//!
//! Lock order: `members`, a member's `state`, `cache`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::cache::{BLOCK_BYTES, Cache};
use super::checksum::Checksum;
use super::cursor::{CURSOR_BYTES, Cursor, Place, Point, Points, Window};
use super::error::ReadError;
use super::index::{Content, Data, Node, NodeId};
use super::local;
use super::seeks::Kept;
use super::source::Source;
use crate::sys::inflate::crc32;

/// Distance of seek points in decompressed bytes. Blocks of deflate end where they like, so that
/// it is more, by half a block in the mean.
const SPACING: u64 = 1 << 20;
/// Decompressing that is worth waiting for somebody else to do.
const WAIT_FOR: u64 = 256 << 10;
/// Members up to this size that are read at once are not cached: the kernel does.
const WHOLE_MAX: u64 = 1 << 20;
/// Cursors that a member keeps for readers to come.
const IDLE_MAX: usize = 32;
/// Members whose seek points and cursors are kept.
const MEMBERS_MAX: usize = 4096;

thread_local! {
    /// For members that are read at once.
    static CURSOR: RefCell<Cursor> = RefCell::new(Cursor::new());
    /// For what is decompressed on the way.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; BLOCK_BYTES as usize]);
}

/// What readers have met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Blocks that were in memory when they were asked for.
    pub hits: u64,
    /// Blocks that were not.
    pub misses: u64,
    /// Bytes handed out.
    pub read_bytes: u64,
    /// Bytes decompressed for it, those on the way included.
    pub inflated_bytes: u64,
    /// Seek points in memory.
    pub points: u64,
    /// Memory in use for blocks, seek points and cursors.
    pub memory_bytes: u64,
}

impl Statistics {
    /// Of a hundred blocks that were asked for, those that were in memory; `None` if none was.
    pub fn hit_percent(&self) -> Option<f64> {
        let all = self.hits + self.misses;
        (all > 0).then(|| (self.hits as f64 * 1000.0 / all as f64).round() / 10.0)
    }
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    read_bytes: AtomicU64,
    inflated_bytes: AtomicU64,
    points: AtomicU64,
    /// Memory of seek points and cursors.
    kept_bytes: AtomicU64,
}

/// Reads members of one archive.
pub(super) struct Reader {
    source: Arc<dyn Source>,
    cache_bytes: u64,
    members: Mutex<LruCache<NodeId, Arc<Member>>>,
    cache: Mutex<Cache>,
    counters: Arc<Counters>,
    /// Seek points of an earlier mount.
    kept: OnceLock<Kept>,
}

/// A member that is or was read in parts.
struct Member {
    id: NodeId,
    data: Data,
    /// Where its compressed bytes begin.
    start: u64,
    state: Mutex<State>,
    /// A cursor has come further, or is idle.
    changed: Condvar,
    counters: Arc<Counters>,
}

struct State {
    points: Points,
    spacing: u64,
    idle: Vec<Cursor>,
    busy: Vec<Busy>,
    /// For [`Busy::number`].
    next: u64,
    checksum: Checksum,
    damage: Option<ReadError>,
}

/// A cursor that is decompressing.
#[derive(Clone, Copy)]
struct Busy {
    number: u64,
    /// Where it was when it last said so.
    position: u64,
    /// From where on what it decompresses will be in the cache.
    keep_from: u64,
    end: u64,
}

impl Drop for Member {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let bytes = state.points.iter().map(|point| point_bytes(point)).sum::<u64>()
            + state.idle.len() as u64 * CURSOR_BYTES;
        self.counters.kept_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.counters.points.fetch_sub(state.points.len() as u64, Ordering::Relaxed);
    }
}

/// Memory that a seek point takes.
fn point_bytes(point: &Point) -> u64 {
    match &point.window {
        Window::Memory(window) => window.len() as u64 + 64,
        Window::Kept { .. } => 64,
    }
}

impl Reader {
    pub(super) fn new(source: Arc<dyn Source>, cache_bytes: u64) -> Self {
        Self {
            source,
            cache_bytes,
            members: Mutex::new(LruCache::unbounded()),
            cache: Mutex::new(Cache::new()),
            counters: Arc::default(),
            kept: OnceLock::new(),
        }
    }

    /// Uses the seek points of an earlier mount. Only the first that are given count.
    pub(super) fn use_kept(&self, kept: Kept) {
        let _ = self.kept.set(kept);
    }

    pub(super) fn kept(&self) -> Option<&Kept> {
        self.kept.get()
    }

    /// The seek points of all members, by the offsets of their local headers, in that order;
    /// `None` if there are none but those that were kept.
    pub(super) fn points(&self) -> Option<Vec<(u64, Points)>> {
        let mut all = BTreeMap::new();
        for (header, points) in self.kept.get().iter().flat_map(|kept| kept.members()) {
            all.insert(header, points.to_vec());
        }
        let members: Vec<_> =
            self.members.lock().iter().map(|(_, member)| member.clone()).collect();
        let mut is_new = false;
        for member in members {
            let state = member.state.lock();
            let here = all.entry(member.data.header).or_insert_with(Vec::new);
            if state.points.last().map(|last| last.output) > here.last().map(|last| last.output) {
                is_new |= state.points.iter().any(|point| point.window.is_made());
                here.clone_from(&state.points);
            }
        }
        all.retain(|_, points| !points.is_empty());
        is_new.then(|| all.into_iter().collect())
    }

    /// As [`super::Package::read`].
    pub(super) fn read(
        &self,
        id: NodeId,
        node: &Node,
        offset: u64,
        length: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        let (Content::File(data) | Content::Symlink(data)) = node.content else { return Ok(()) };
        let length = data.size.saturating_sub(offset).min(length as u64);
        if length == 0 {
            return Ok(());
        }
        self.counters.read_bytes.fetch_add(length, Ordering::Relaxed);
        if length == data.size && length <= WHOLE_MAX {
            return self.read_whole(&data, buffer);
        }
        let member = self.member(id, &data)?;
        // Not even what is in the cache: it may be what is wrong.
        if let Some(damage) = &member.state.lock().damage {
            return Err(damage.clone());
        }
        if data.deflated {
            return self.read_blocks(&member, offset, length, buffer);
        }
        let start = buffer.len();
        buffer.resize(start + length as usize, 0);
        self.source.read_exact_at(&mut buffer[start..], member.start + offset)?;
        let checked = member.check(&mut member.state.lock(), offset, &buffer[start..]);
        checked.inspect_err(|error| member.damaged(error))
    }

    /// As [`super::Package::distance`].
    pub(super) fn distance(&self, id: NodeId, node: &Node, offset: u64) -> u64 {
        let Content::File(data) = node.content else { return 0 };
        if !data.deflated || offset >= data.size {
            return 0;
        }
        let block = offset / BLOCK_BYTES;
        if self.cache.lock().contains((id, block)) {
            return 0;
        }
        let member = self.members.lock().peek(&id).cloned();
        let start = block * BLOCK_BYTES;
        let from = match (member, self.kept.get()) {
            (Some(member), _) => member.state.lock().nearest(start),
            (None, Some(kept)) => {
                last_before(kept.of(&data), start).map_or(0, |point| point.output)
            }
            (None, None) => 0,
        };
        offset - from
    }

    /// As [`super::Package::forget_contents`].
    pub(super) fn forget_contents(&self) {
        self.members.lock().clear();
        *self.cache.lock() = Cache::new();
    }

    pub(super) fn statistics(&self) -> Statistics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        Statistics {
            hits: get(&counters.hits),
            misses: get(&counters.misses),
            read_bytes: get(&counters.read_bytes),
            inflated_bytes: get(&counters.inflated_bytes),
            points: get(&counters.points),
            memory_bytes: get(&counters.kept_bytes) + self.cache.lock().bytes(),
        }
    }

    /// A small member, at once and past the cache.
    fn read_whole(&self, data: &Data, buffer: &mut Vec<u8>) -> Result<(), ReadError> {
        let place = self.place(data, local::data_start(&*self.source, data)?);
        let start = buffer.len();
        buffer.resize(start + data.size as usize, 0);
        let output = &mut buffer[start..];
        if data.deflated {
            CURSOR.with_borrow_mut(|cursor| {
                cursor.rewind();
                cursor.fill(place, output, false)?;
                cursor.finish(place)
            })?;
            self.counters.inflated_bytes.fetch_add(data.size, Ordering::Relaxed);
        } else {
            place.source.read_exact_at(output, place.start)?;
        }
        match crc32(0, output) {
            found if found == data.crc => Ok(()),
            found => Err(ReadError::Crc { found, expected: data.crc }),
        }
    }

    fn place(&self, data: &Data, start: u64) -> Place<'_> {
        Place { source: &*self.source, start, bytes: data.compressed }
    }

    /// The member, whose local header was checked.
    fn member(&self, id: NodeId, data: &Data) -> Result<Arc<Member>, ReadError> {
        if let Some(member) = self.members.lock().get(&id) {
            return Ok(member.clone());
        }
        let start = local::data_start(&*self.source, data)?;
        let points = self.kept.get().map_or_else(Vec::new, |kept| kept.of(data).to_vec());
        let bytes = points.iter().map(|point| point_bytes(point)).sum();
        self.counters.kept_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.counters.points.fetch_add(points.len() as u64, Ordering::Relaxed);
        let state = State {
            points,
            spacing: SPACING,
            idle: Vec::new(),
            busy: Vec::new(),
            next: 0,
            checksum: Checksum::default(),
            damage: None,
        };
        let counters = self.counters.clone();
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let member = Arc::new(Member { id, data: *data, start, state, changed, counters });
        let mut members = self.members.lock();
        Ok(members.get_or_insert(id, || member).clone())
    }

    fn read_blocks(
        &self,
        member: &Member,
        offset: u64,
        length: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        let end = offset + length;
        let last = (end - 1) / BLOCK_BYTES;
        let mut block = offset / BLOCK_BYTES;
        let mut append = |block: u64, bytes: &[u8]| {
            let start = block * BLOCK_BYTES;
            let from = offset.saturating_sub(start) as usize;
            let to = (end - start).min(bytes.len() as u64) as usize;
            buffer.extend_from_slice(&bytes[from..to]);
        };
        while block <= last {
            let cached = self.cache.lock().get((member.id, block));
            if let Some(bytes) = cached {
                self.counters.hits.fetch_add(1, Ordering::Relaxed);
                append(block, &bytes);
                block += 1;
                continue;
            }
            let Some(mut lease) = self.lease(member, block, last)? else { continue };
            for bytes in lease.run(block).inspect_err(|error| member.damaged(error))? {
                self.counters.misses.fetch_add(1, Ordering::Relaxed);
                append(block, &bytes);
                block += 1;
            }
        }
        Ok(())
    }

    /// A cursor that is to decompress blocks from `first` to `last` or to one that is in the
    /// cache. `None`: somebody else has come further, or has just filled the cache; look again.
    fn lease<'a>(
        &'a self,
        member: &'a Member,
        first: u64,
        last: u64,
    ) -> Result<Option<Lease<'a>>, ReadError> {
        let start = first * BLOCK_BYTES;
        let mut state = member.state.lock();
        if let Some(damage) = &state.damage {
            return Err(damage.clone());
        }
        let end = {
            let cache = self.cache.lock();
            let missing = |block: &u64| !cache.contains((member.id, *block));
            match (first..=last).take_while(missing).last() {
                Some(last) => ((last + 1) * BLOCK_BYTES).min(member.data.size),
                None => return Ok(None),
            }
        };
        if state.is_worth_waiting(start) {
            member.changed.wait(&mut state);
            return Ok(None);
        }
        let mut cursor = None;
        let point = last_before(&state.points, start).cloned();
        let near = point.as_ref().map_or(0, |point| point.output);
        let idle = state.idle.iter().enumerate().filter(|(_, idle)| idle.position() <= start);
        if let Some((at, idle)) = idle.max_by_key(|(_, idle)| idle.position()) {
            if idle.position() >= near {
                cursor = Some(state.idle.remove(at));
                member.counters.kept_bytes.fetch_sub(CURSOR_BYTES, Ordering::Relaxed);
            }
        }
        let position = cursor.as_ref().map_or(near, |cursor| cursor.position());
        let number = state.next;
        state.next += 1;
        // What is decompressed just before what was asked for is probably asked for as well.
        let keep_from = start.saturating_sub(WAIT_FOR).max(position).next_multiple_of(BLOCK_BYTES);
        let keep_from = keep_from.min(start);
        state.busy.push(Busy { number, position, keep_from, end });
        drop(state);
        let mut lease = Lease { reader: self, member, number, cursor: None, keep_from, end };
        let place = self.place(&member.data, member.start);
        lease.cursor = match cursor {
            Some(cursor) => Some(cursor),
            None => self.cursor_at(place, point.as_deref())?,
        };
        if lease.cursor.is_none() {
            member.drop_kept();
            return Ok(None);
        }
        Ok(Some(lease))
    }

    /// A cursor at a seek point, or at the beginning. `None`: what was kept of the point cannot be
    /// read.
    fn cursor_at(&self, place: Place, point: Option<&Point>) -> Result<Option<Cursor>, ReadError> {
        let mut cursor = Cursor::new();
        match point.map(|point| (point, &point.window)) {
            None => cursor.rewind(),
            Some((point, Window::Memory(window))) => cursor.seek(place, point, window)?,
            Some((point, Window::Kept { at, bytes })) => {
                let Some(kept) = self.kept.get() else { return Ok(None) };
                match kept.window(*at, *bytes) {
                    Ok(window) => cursor.seek(place, point, &window)?,
                    Err(error) => {
                        log::warn!("a seek point that was kept cannot be read: {error}");
                        return Ok(None);
                    }
                }
            }
        }
        Ok(Some(cursor))
    }

    /// Drops seek points and cursors of members that were not read for long, if there are too many.
    fn trim(&self) {
        let most = self.cache_bytes / 2;
        let mut members = self.members.lock();
        while members.len() > 1
            && (members.len() > MEMBERS_MAX
                || self.counters.kept_bytes.load(Ordering::Relaxed) > most)
        {
            members.pop_lru();
        }
    }

    /// Memory that is left for blocks.
    fn block_bytes_max(&self) -> u64 {
        self.cache_bytes.saturating_sub(self.counters.kept_bytes.load(Ordering::Relaxed))
    }
}

impl State {
    /// The place nearest before `start` from which anybody could begin at once.
    fn nearest(&self, start: u64) -> u64 {
        let point = last_before(&self.points, start).map_or(0, |point| point.output);
        let idle = self.idle.iter().map(Cursor::position).filter(|position| *position <= start);
        idle.max().unwrap_or(0).max(point)
    }

    /// Whether somebody is decompressing `start`, or will come nearer to it than anybody could
    /// begin at once.
    fn is_worth_waiting(&self, start: u64) -> bool {
        let from = self.nearest(start);
        self.busy.iter().any(|busy| {
            if busy.position > start {
                return false;
            }
            if start < busy.end && busy.keep_from <= start {
                return true;
            }
            busy.end.min(start) > from + WAIT_FOR
        })
    }

    /// Where the next seek point should be.
    fn next_point(&self) -> u64 {
        self.points.last().map_or(0, |point| point.output) + self.spacing
    }
}

/// The last of `points` that does not come after `start`.
fn last_before(points: &[Arc<Point>], start: u64) -> Option<&Arc<Point>> {
    let at = points.partition_point(|point| point.output <= start);
    at.checked_sub(1).map(|at| &points[at])
}

impl Member {
    /// Forgets the seek points of an earlier mount: they cannot be had any more.
    fn drop_kept(&self) {
        let mut state = self.state.lock();
        let points = std::mem::take(&mut state.points);
        let (made, kept): (Vec<_>, Vec<_>) =
            points.into_iter().partition(|point| point.window.is_made());
        state.points = made;
        let bytes = kept.iter().map(|point| point_bytes(point)).sum();
        self.counters.kept_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.counters.points.fetch_sub(kept.len() as u64, Ordering::Relaxed);
    }

    /// Remembers what is wrong with it, unless it may be better the next time.
    fn damaged(&self, error: &ReadError) {
        if !matches!(error, ReadError::Source(_)) {
            self.state.lock().damage.get_or_insert_with(|| error.clone());
        }
    }

    /// Takes bytes into account for the CRC-32.
    fn check(
        &self,
        state: &mut MutexGuard<'_, State>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), ReadError> {
        if let Some(damage) = &state.damage {
            return Err(damage.clone());
        }
        if !state.checksum.wants(offset) {
            return Ok(());
        }
        state.checksum.add(&self.data, offset, bytes)
    }
}

/// A cursor in use. However it ends, others are told.
struct Lease<'a> {
    reader: &'a Reader,
    member: &'a Member,
    number: u64,
    cursor: Option<Cursor>,
    keep_from: u64,
    end: u64,
}

impl Lease<'_> {
    /// Decompresses, and returns the blocks from `first` on.
    fn run(&mut self, first: u64) -> Result<Vec<Arc<Vec<u8>>>, ReadError> {
        let start = first * BLOCK_BYTES;
        let mut cursor = self.cursor.take().expect("a lease runs once");
        let place = self.reader.place(&self.member.data, self.member.start);
        SCRATCH.with_borrow_mut(|scratch| {
            while cursor.position() < self.keep_from {
                let left = self.keep_from - cursor.position();
                let length = left.min(BLOCK_BYTES) as usize;
                self.fill(&mut cursor, place, &mut scratch[..length])?;
            }
            Ok::<_, ReadError>(())
        })?;
        let mut blocks = Vec::new();
        while cursor.position() < self.end {
            let length = (self.end - cursor.position()).min(BLOCK_BYTES);
            let mut block = vec![0; length as usize];
            let position = cursor.position();
            self.fill(&mut cursor, place, &mut block)?;
            let block = Arc::new(block);
            let id = (self.member.id, position / BLOCK_BYTES);
            let most = self.reader.block_bytes_max();
            self.reader.cache.lock().put(id, block.clone(), most);
            if position >= start {
                blocks.push(block);
            }
        }
        if cursor.position() == self.member.data.size {
            cursor.finish(place)?;
        } else {
            self.cursor = Some(cursor);
        }
        Ok(blocks)
    }

    /// Fills `output`, making seek points and checking on the way.
    fn fill(&self, cursor: &mut Cursor, place: Place, output: &mut [u8]) -> Result<(), ReadError> {
        let mut done = 0;
        while done < output.len() {
            let next = self.member.state.lock().next_point();
            let position = cursor.position();
            let rest = &mut output[done..];
            let is_due = position >= next;
            // Up to where a point is due there is no need to stop.
            let to = if is_due { u64::MAX } else { next - position };
            let length = rest.len().min(usize::try_from(to).unwrap_or(usize::MAX));
            let (filled, point) = cursor.fill(place, &mut rest[..length], is_due)?;
            self.reader.counters.inflated_bytes.fetch_add(filled as u64, Ordering::Relaxed);
            let mut state = self.member.state.lock();
            self.member.check(&mut state, position, &rest[..filled])?;
            if let Some(point) = point {
                self.add(&mut state, point);
            }
            done += filled;
        }
        Ok(())
    }

    /// Keeps a seek point, if it is still of use, and says how far this cursor is.
    fn add(&self, state: &mut State, point: Point) {
        if let Some(busy) = state.busy.iter_mut().find(|busy| busy.number == self.number) {
            busy.position = point.output;
        }
        if point.output >= state.next_point() {
            let counters = &self.reader.counters;
            counters.kept_bytes.fetch_add(point_bytes(&point), Ordering::Relaxed);
            counters.points.fetch_add(1, Ordering::Relaxed);
            state.points.push(Arc::new(point));
            let bytes = state.points.iter().map(|point| point_bytes(point)).sum::<u64>();
            if bytes > self.reader.cache_bytes / 4 {
                self.thin(state);
            }
        }
        self.member.changed.notify_all();
    }

    /// Drops every second seek point of a member that has too many.
    fn thin(&self, state: &mut State) {
        state.spacing *= 2;
        let before = std::mem::take(&mut state.points);
        for (number, point) in before.into_iter().enumerate() {
            if number % 2 == 1 {
                state.points.push(point);
            } else {
                let counters = &self.reader.counters;
                counters.kept_bytes.fetch_sub(point_bytes(&point), Ordering::Relaxed);
                counters.points.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.member.state.lock();
        state.busy.retain(|busy| busy.number != self.number);
        if let Some(cursor) = self.cursor.take() {
            let kept = &self.reader.counters.kept_bytes;
            kept.fetch_add(CURSOR_BYTES, Ordering::Relaxed);
            state.idle.push(cursor);
            if state.idle.len() > IDLE_MAX {
                state.idle.remove(0);
                kept.fetch_sub(CURSOR_BYTES, Ordering::Relaxed);
            }
        }
        self.member.changed.notify_all();
        drop(state);
        self.reader.trim();
    }
}
