//! The rules of the commit protocol that the simulation breaks, one at a time, to prove that it would notice.
//!
//! Invariant: without the feature `mutants`, which nothing but the simulation ever enables, every rule holds, and the
//! question costs nothing: it is answered when the code is compiled.

use std::fmt;

macro_rules! rules {
    ($($(#[doc = $text:literal])* $rule:ident,)*) => {
        /// A rule of the protocol that the code keeps at one place.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $($(#[doc = $text])* $rule,)*
        }

        impl Rule {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$rule,)*];

            /// What it demands.
            pub const fn demand(self) -> &'static str {
                match self {
                    $(Self::$rule => concat!($($text),*),)*
                }
            }
        }
    };
}

rules! {
    /// A commit based on an epoch older than the root vouches for is refused.
    BaseEpochVouched,
    /// A commit that names a doomed object is refused.
    DoomedRefused,
    /// A condemned object that a commit names is pardoned in the same swap.
    CondemnedPardoned,
    /// A commit that inherits segments is refused when its parent is gone.
    ParentPresent,
    /// A commit that is asked for again is found to be in the root already.
    CommittedOnce,
    /// A commit that comes again after its backup was removed is refused.
    RemovedStaysRemoved,
    /// What new index objects name is checked like what segments name.
    IndexedPacksChecked,
    /// Forgetting raises the oldest epoch that the root vouches for.
    ForgettingRaisesVouched,
    /// Backups that came in since the mark are marked before anything is condemned.
    MarkedAgainAtCondemn,
    /// What another collector condemned meanwhile is not condemned again.
    CondemnedOnce,
    /// What the trash reaches is marked.
    TrashMarked,
    /// What registered restores read is marked.
    ReadersMarked,
    /// Only what a root has doomed is deleted.
    DoomedBeforeDeleted,
    /// Index objects are rewritten without the deleted packs before these are forgotten.
    IndexCleanedBeforeForgetting,
    /// Index objects that are missing leave the root with the next packs that are forgotten.
    MissingIndexesUnlisted,
    /// What merged index objects name is checked like what a commit names.
    MergedNamesChecked,
    /// A catalog node is deleted only once the root has moved past the epoch it was written for.
    NodesOutliveTheirSwap,
    /// A root is replaced only after a copy of it was stored.
    CopyBeforeSwap,
    /// A resumed session leaves out packs that the root holds dead.
    LeftoversAlive,
    /// A resumed session looks for packs that may have been forgotten.
    LeftoversThere,
    /// Names are used once.
    NamesUsedOnce,
    /// What a rebuilt index names is checked like what a commit names.
    RebuiltNamesChecked,
    /// Commits of one batch are decided one after the other.
    BatchDecidedInOrder,
    /// What registered restores read is marked again on the root that a condemnation replaces.
    ReadersMarkedAgain,
    /// A restore reads the root after it has registered.
    RegisteredBeforeRead,
    /// What a restore holds back stays among what was removed.
    HeldStaysReleased,
    /// A copy of the root that dooms is stored before anything is deleted.
    DoomKeptBeforeDeleting,
    /// Counting goes on from the count and the relocations of the root that it replaces.
    CountHoldsAtCount,
    /// A condemnation goes on from the count and the relocations of the root that it replaces.
    CountHoldsAtCondemn,
    /// Forgetting goes on from the count and the relocations of the root that it replaces.
    CountHoldsAtForget,
    /// A rewriting goes on from the count and the relocations of the root that it replaces.
    CountHoldsAtRewrite,
    /// Neither count nor relocations hold any more once another pack was taken back.
    TakenBackCompared,
    /// Packs that others have come to name are not rewritten.
    ElsewhereCheckedAgain,
    /// A pack that was taken back is not rewritten again while the root still says so.
    TakenBackLeftAlone,
    /// A pardoned pack does not count as rewritten any more.
    PardonUndoesMove,
    /// That a pack was taken back is kept when the batch that says so is forgotten.
    TakenBackKept,
    /// Relocations to a pack that is rewritten are led on to its heirs.
    RelocationsLedOn,
    /// Relocations stay as long as a segment names the rewritten pack.
    RelocationsKept,
    /// The packs that a rewriting brings in are pardoned like those of a commit.
    HeirsPardoned,
    /// The packs that a rewriting brings in are checked like those of a commit.
    HeirsChecked,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Says whether a rule is to be kept: always, but in the simulation of mutants.
#[cfg(not(feature = "mutants"))]
#[inline]
pub const fn holds(_: Rule) -> bool {
    true
}

/// Says whether a rule is to be kept: it is not the one that was broken.
#[cfg(feature = "mutants")]
pub fn holds(rule: Rule) -> bool {
    broken::current() != Some(rule)
}

#[cfg(feature = "mutants")]
pub use broken::set as set_broken;

#[cfg(feature = "mutants")]
mod broken {
    //! Which rule is broken, in the whole process.

    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Rule;

    /// Position in [`Rule::ALL`] plus one; 0 while all hold.
    static BROKEN: AtomicUsize = AtomicUsize::new(0);

    /// Breaks a rule, or mends the one that was broken.
    pub fn set(rule: Option<Rule>) {
        let position = rule.and_then(|rule| Rule::ALL.iter().position(|other| *other == rule));
        BROKEN.store(position.map_or(0, |position| position + 1), Ordering::SeqCst);
    }

    pub(super) fn current() -> Option<Rule> {
        Rule::ALL.get(BROKEN.load(Ordering::Relaxed).checked_sub(1)?).copied()
    }
}
