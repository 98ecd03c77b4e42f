//! Pages of files: what cannot be read becomes a hole, and every slot has one page.

use super::inodes::{DROPPED, INLINE, PAGED, REBUILT, RUN_END};
use super::{ActionKind, Error, Progress, Repair, Stage};
use crate::crypto::PageKey;
use crate::format::map::{PageMap, PagePointer};
use crate::format::record::{self, Table};
use crate::format::{PAGE_BYTES, RUN_PAGES};
use crate::storage::FileId;
use crate::volume::check::clip;
use crate::volume::data_keys::chunk_of;
use crate::volume::records::dek_key;
use std::sync::Arc;

const PAGE: u64 = PAGE_BYTES as u64;
const RUN_BYTES: u64 = RUN_PAGES * PAGE;
/// Runs between two calls of the progress function.
const PROGRESS_STEP: u64 = 256;

/// Where the pass is.
#[derive(Default)]
struct State {
    runs: u64,
    pages: u64,
    /// The inode of which something was said once.
    said: u64,
    /// The chunk whose key was looked up last: inode, chunk, key.
    key: Option<(u64, u64, Option<Arc<PageKey>>)>,
    sealed: Vec<u8>,
}

impl Repair<'_> {
    pub(super) fn repair_pages(&mut self) -> Result<(), Error> {
        let total = self.inodes.list.iter().map(|known| known.pages).sum();
        let mut state = State::default();
        self.each(Table::PageMap, |this, key, value| {
            state.runs += 1;
            if state.runs % PROGRESS_STEP == 1 {
                let done = state.pages;
                (this.progress)(Progress { stage: Stage::Contents, done, total });
            }
            this.repair_run(key, value, &mut state)
        })?;
        for index in 0..self.inodes.list.len() {
            self.find_lost_runs(index);
        }
        Ok(())
    }

    fn repair_run(&mut self, key: &[u8], value: &[u8], state: &mut State) -> Result<(), Error> {
        let ino = record::owner(key);
        let Some(known) = self.inodes.get(ino).copied() else {
            return self.delete_stray(key, "page maps");
        };
        let run = key.get(9..).and_then(|run| <[u8; 8]>::try_from(run).ok());
        let Some(run) = run.map(u64::from_be_bytes).filter(|run| *run < RUN_END) else {
            self.removed(ino, "a malformed page map");
            return self.delete(key);
        };
        let map = PageMap::decode(self.volume.cipher, value).ok().filter(|map| !map.is_empty());
        let count = map.as_ref().map_or(0, PageMap::count);
        state.pages += count;
        self.inodes.get_mut(ino).expect("looked up above").pages_found += count;
        let unfit = if self.is_dead(ino, run) {
            Some("pages that were cut off already are freed")
        } else if !known.is(libc::S_IFREG) {
            Some("pages: it is no regular file")
        } else if !known.has(PAGED) && known.has(INLINE) {
            Some("pages: its content is inline")
        } else {
            None
        };
        if let Some(why) = unfit {
            if std::mem::replace(&mut state.said, ino) != ino {
                self.removed(ino, why);
            }
            return self.delete(key);
        }
        let Some(map) = map else {
            let range = clip((run * RUN_BYTES, RUN_BYTES), known.size);
            let detail = "the map of its pages is malformed: they read as zeros";
            self.drafts.add_range(ActionKind::ContentLost, ino, range, detail);
            return self.delete(key);
        };
        let kept = self.judge_run(ino, run, &map, known.size, state)?;
        let known = self.inodes.get_mut(ino).expect("looked up above");
        known.pages_kept += kept.count();
        known.flags |= PAGED;
        if kept == map {
            return Ok(());
        }
        let value = (!kept.is_empty()).then(|| kept.encode(self.volume.cipher));
        Ok(self.tree.put(key, value.as_deref())?)
    }

    /// The pages of a run that stay.
    fn judge_run(
        &mut self,
        ino: u64,
        run: u64,
        map: &PageMap,
        size: u64,
        state: &mut State,
    ) -> Result<PageMap, Error> {
        let mut kept = map.clone();
        let first = run * RUN_PAGES;
        let mut problems: Vec<Option<String>> = vec![None; map.pages.len()];
        let mut check = Vec::new();
        for (index, pointer) in map.pages.iter().enumerate() {
            let Some(pointer) = *pointer else { continue };
            let page = first + index as u64;
            if page * PAGE >= size {
                let range = (page * PAGE, PAGE);
                self.drafts.add_range(ActionKind::Removed, ino, range, "pages behind its end");
                kept.pages[index] = None;
                continue;
            }
            problems[index] = self.medium.problem(pointer.slot);
            if problems[index].is_none() && self.survey.nodes.is_used(pointer.slot) {
                problems[index] = Some("a tree node lies in its slot".into());
            }
            let doubtful = self.survey.shared.contains(&pointer.slot);
            if problems[index].is_none() && (self.options.deep || doubtful) {
                check.push((index, page, pointer));
            }
        }
        if kept.is_empty() {
            return Ok(kept);
        }
        match self.chunk_key(ino, chunk_of(first), state)? {
            Some(key) => {
                let adjacent = |a: &(usize, u64, PagePointer), b: &(usize, u64, PagePointer)| {
                    a.2.slot.is_before(b.2.slot)
                };
                for group in check.chunk_by(adjacent) {
                    self.read_pages(ino, group, &key, &mut problems, state);
                }
            }
            None => {
                let lost = || Some("its data key is missing or damaged".to_owned());
                problems.iter_mut().for_each(|problem| *problem = lost());
            }
        }
        for (index, problem) in problems.into_iter().enumerate() {
            let Some(pointer) = kept.pages[index] else { continue };
            // What carries no tag may belong to either: the first keeps it.
            let shared = problem.is_none() && !self.kept.insert(pointer.slot);
            let shared = shared.then(|| "something else lies in the same slot".to_owned());
            let Some(problem) = problem.or(shared) else { continue };
            let range = clip(((first + index as u64) * PAGE, PAGE), size);
            let detail = format!("{problem}: it reads as zeros");
            self.drafts.add_range(ActionKind::ContentLost, ino, range, &detail);
            kept.pages[index] = None;
        }
        Ok(kept)
    }

    fn chunk_key(
        &mut self,
        ino: u64,
        chunk: u64,
        state: &mut State,
    ) -> Result<Option<Arc<PageKey>>, Error> {
        if let Some((of, at, key)) = &state.key {
            if (*of, *at) == (ino, chunk) {
                return Ok(key.clone());
            }
        }
        let stored = self.tree.get(&dek_key(ino, chunk))?;
        let key = stored.and_then(|value| self.volume.decode_dek(ino, chunk, &value).ok());
        state.key = Some((ino, chunk, key.clone()));
        Ok(key)
    }

    /// Reads pages that are adjacent on disk and says which cannot be read.
    fn read_pages(
        &self,
        ino: u64,
        group: &[(usize, u64, PagePointer)],
        key: &PageKey,
        problems: &mut [Option<String>],
        state: &mut State,
    ) {
        state.sealed.resize(group.len() * PAGE_BYTES, 0);
        let slot = group[0].2.slot;
        let (storage, file) = (&self.volume.storage, FileId::Segment(slot.segment()));
        let whole = storage.read_at(file, slot.offset(), &mut state.sealed).is_ok();
        let mut plaintext = Box::new([0; PAGE_BYTES]);
        let sealed = state.sealed.chunks_exact_mut(PAGE_BYTES);
        for ((index, page, pointer), sealed) in group.iter().zip(sealed) {
            // One bad sector must not condemn its neighbours.
            let read =
                if whole { Ok(()) } else { storage.read_at(file, pointer.slot.offset(), sealed) };
            let aad = self.volume.page_aad(ino, *page);
            problems[*index] = match read {
                Err(error) => Some(format!("the storage cannot read it ({error})")),
                Ok(()) => {
                    let opened =
                        key.open(pointer.nonce, &aad, pointer.tag, sealed, &mut *plaintext);
                    opened.is_err().then(|| "it does not authenticate".into())
                }
            };
        }
    }

    /// Says which contents were in lost nodes.
    fn find_lost_runs(&mut self, index: usize) {
        let known = self.inodes.list[index];
        let whole = known.pages <= known.pages_found || self.lost.is_empty();
        if whole || known.has(REBUILT) || known.has(DROPPED) {
            return;
        }
        for (from, to) in self.lost.runs(known.ino) {
            let start = from.saturating_mul(RUN_BYTES);
            let end = to.saturating_mul(RUN_BYTES).min(known.size);
            if start < end {
                let detail = "the map of its pages was in a lost node: it reads as zeros";
                let range = (start, end - start);
                self.drafts.add_range(ActionKind::ContentLost, known.ino, range, detail);
            }
        }
    }
}
