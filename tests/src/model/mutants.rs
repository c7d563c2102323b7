//! The rules of the protocol that can be left out, each to show that the model notices.

use super::properties::Rule;

/// A rule left out, or done as it must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mutant {
    /// What `--explain` calls it.
    pub name: &'static str,
    /// What is done differently.
    pub what: &'static str,
    /// The difference.
    pub change: Change,
    /// The configuration in which it is looked for.
    pub config: &'static str,
    /// The property that must fail.
    pub caught_by: Rule,
}

macro_rules! mutants {
    ($($change:ident $name:literal $config:literal $rule:ident $what:literal;)*) => {
        /// What a mutant changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Change { $(#[doc = $what] $change,)* }

        /// All mutants.
        pub const MUTANTS: &[Mutant] = &[$(Mutant {
            name: $name, what: $what, change: Change::$change, config: $config, caught_by: Rule::$rule,
        },)*];
    };
}

mutants! {
    NoBaseCheck "base-epoch" "commit" ChunksResolve "a commit's base epoch is not looked at";
    NoDoomedCheck "doomed" "commit" ChunksResolve "a commit may name what is doomed";
    NoPardon "pardon" "commit" ChunksResolve "a commit does not pardon what it names";
    NoRecheck "re-check" "commit" ChunksResolve "a condemnation is not re-checked against what came in since the mark";
    NoParentCheck "parent" "commit" ChunksResolve "a commit's parent need not be in the root";
    ForgetWithoutRaising "raise" "commit" ChunksResolve "names are forgotten, the oldest epoch is raised later";
    RaiseTooLittle "raise-short" "commit" ChunksResolve "the oldest epoch is raised to the one before the condemnation";
    PardonDoomed "pardon-doomed" "commit" StepsAreSound "a commit pardons what is doomed";
    DeleteCondemned "delete-early" "commit" OnlyDoomedDeleted "what is condemned is deleted at once";
    MarkLiveOnly "trash" "commit" ChunksResolve "what only backups in the trash reach is not marked";
    PurgeLive "purge" "commit" StepsAreSound "retention takes live backups out of the root";
    NoRemovedCheck "removed" "two collectors" PurgedStayAway "a late repetition of a commit is not compared with what was removed";
    ReleasedEarly "released-early" "restore" PurgedStayAway "a condemnation takes what a restore holds back out of what was removed";
    IndexUnlisted "forget-index" "commit" ChunksResolve "names are forgotten while the index still has them";
    LostIndexKept "lost-index" "index" ChunksResolve "names are forgotten while an index object that is lost, and in a cache, still has them";
    BlindSwap "swap" "two committers" ReportedStay "the root is written without comparing";
    ReindexUnchecked "index-unchecked" "index" ChunksResolve "a rebuilt index comes in without a check of its packs";
    NameReused "names" "names" ChunksResolve "a backup that is begun anew uses its pack's name again";
    IgnoreRegistration "registration" "restore" RestoresFinish "what registered restores read is not marked";
    RegistrationsReadOnce "registration-once" "restore" RestoresFinish "a condemnation does not read the registrations again";
    RegisterLate "register-late" "restore" RestoresFinish "a restore looks at the root before it registers";
    TakeUpRecorded "take-up-record" "late uploads" ChunksResolve "a session trusts a record whose opening is gone";
    TakeUpUnnamed "take-up-unnamed" "resume" ChunksResolve "a commit does not name the packs that only its index objects do";
    TakeUpExisting "take-up-existing" "late uploads" ChunksResolve "a session takes up what it finds, whether its opening is vouched for or not";
    IndexStored "index-stored" "late uploads and index" ChunksResolve "a rebuilt index lists all that is stored, not only what backups reach";
    RepackNoRecheck "repack-re-check" "repack" ChunksResolve "a repack does not look at what came in since its mark";
    RepackOwnOnly "repack-own" "repack and inherit" ChunksResolve "a repack looks only at the own lists of backups that came in, not at inherited ones";
    RepackUnchecked "repack-unchecked" "repack" ChunksResolve "a repack's new pack comes in without the committer's check";
    RepackNoPardon "repack-pardon" "repack" ChunksResolve "a repack does not pardon its new pack";
    PardonKeepsMove "pardon-move" "repack" ChunksResolve "a pardoned pack still counts as moved";
    CondemnStale "stale-mark" "repack" ChunksResolve "a condemnation goes on from a mark whose count or relocations are not the root's any more";
    RepackStale "stale-copy" "side by side" ChunksResolve "a repack goes on from a count or relocations that are not the root's any more";
    RepackTakenBack "taken-back" "repack again" ChunksResolve "a pack that was taken back is rewritten again while the root still says so";
    ForgetKeepsEntry "taken-back-forget" "repack" ChunksResolve "the batch that says a pack was taken back is forgotten, its relocation is not";
    MoveEnds "move-ends" "repack" ChunksResolve "a relocation goes when its pack is forgotten";
    MoveNotLedOn "move-led-on" "repack again" ChunksResolve "a relocation to a pack that is rewritten is not led on to its heir";
    RepackNoReaders "repack-restore" "repack and restore" RestoresFinish "a repack does not count what registered restores read";
    NoIncarnationCheck "incarnation" "copies lost" ChunksResolve "a commit based on a lost incarnation is taken";
    RebuildDoomed "rebuild-doomed" "rebuild" ChunksResolve "a rebuilt root takes in what was doomed";
    RebuildDropsCondemned "rebuild-condemned" "rebuild" ReportedStay "a rebuilt root leaves out what was condemned in the newest copy";
    RebuildUnfenced "rebuild-fence" "rebuild" ChunksResolve "a collector of the lost incarnation goes on to delete what no copy shows as doomed";
    DeleteBeforeCopy "copy-first" "rebuild" ChunksResolve "deletion begins before a copy of the root that dooms is stored";
    ForgetBeforeDeleting "forget-early" "rebuild" ChunksResolve "names are forgotten before their deletion was answered";
}
