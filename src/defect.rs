//! Deliberate defects, one of which a test can switch on to see that it is found.
//!
//! Without the feature `defects` there are none: [`active`] is `false` for the compiler, too.

/// Something that is done wrongly. Each is one line of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The newer superblock is overwritten.
    OverwriteNewest,
    /// Nodes are synced behind the superblock that refers to them.
    SuperblockFirst,
    /// Of two good superblocks the older one is opened.
    OpenOlder,
    /// Freed slots are used again when one more epoch is durable, not two.
    ReuseAfterOneEpoch,
    /// An epoch does not store which numbers were given out.
    ForgetCounters,
    /// An epoch does not remember what its own nodes changed in the bitmaps.
    ForgetDelta,
    /// `atrest.json` is replaced though no superblock names the new one.
    NoAnnouncement,
    /// Only one superblock names the new `atrest.json` before it is replaced.
    AnnounceOnce,
    /// After a failed sync, work goes on.
    NoPoison,
    /// The superblock still names the log's old start.
    StaleLogStart,
    /// Small changes are not logged.
    ChangeNotLogged,
    /// A change is logged in pieces.
    SplitChange,
    /// The size of a file is set before its new pages are put.
    SizeBeforeContent,
    /// The mark is flushed before the pages that it vouches for are synced.
    MarkBeforePages,
    /// Pages that go into the log are left out, and not synced either.
    NoImages,
    /// A sync takes care only of what was written last.
    OnlyLastPages,
    /// Nobody waits for the flush of the log.
    NoFlush,
    /// What does not fit into the log is left out, and the log goes on.
    IgnoreGap,
    /// The sealed epoch's pages are forgotten before they are durable.
    SealForgetsPages,
    /// Replay stops at the end of an epoch.
    StopAtSealed,
    /// Replay believes in pages that nobody synced.
    BelievePages,
    /// Replay leaves the pages in the log.
    KeepImages,
    /// Slots of replayed pages count as free.
    ReplayedFree,
    /// Replayed pages are not synced with the epoch that they become a part of.
    ReplayedUnsynced,
}

#[cfg(feature = "defects")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Defect>> = const { std::cell::Cell::new(None) };
}

/// Whether this is done wrongly now, by this thread.
#[cfg(feature = "defects")]
pub fn active(defect: Defect) -> bool {
    ACTIVE.get() == Some(defect)
}

/// Whether this is done wrongly: it is not.
#[cfg(not(feature = "defects"))]
pub const fn active(_: Defect) -> bool {
    false
}

/// Has this thread do something wrongly from now on, or nothing.
#[cfg(feature = "defects")]
pub fn set(defect: Option<Defect>) {
    ACTIVE.set(defect);
}
