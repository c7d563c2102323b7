//! What every root must satisfy, as predicates: checked before each swap, and by the tests after each step.

use std::collections::HashSet;

use strongroom_format::ids::BackupId;

use crate::collect::State;
use crate::dead::ObjectName;
use crate::root::Root;
use crate::rules::{self, Rule};

/// A breach: which rule, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the next root would break an invariant: {0}")]
pub struct Breach(String);

/// Checks what can be checked from two successive roots alone.
///
/// # Errors
/// The first [`Breach`].
pub fn check_step(before: &Root, after: &Root) -> Result<(), Breach> {
    let breach = |reason: String| Err(Breach(reason));
    if after.target != before.target || after.incarnation != before.incarnation {
        return breach("target or incarnation changes".to_owned());
    }
    if after.epoch <= before.epoch || after.epoch != before.epoch.next() {
        return breach(format!("epoch goes from {} to {}", before.epoch, after.epoch));
    }
    if after.oldest_vouched < before.oldest_vouched || after.oldest_vouched > after.epoch {
        return breach(format!(
            "oldest vouched epoch goes from {} to {}",
            before.oldest_vouched, after.oldest_vouched
        ));
    }
    let mut ids = HashSet::new();
    if let Some((_, twice)) = after.backups().find(|(_, backup)| !ids.insert(backup.id)) {
        return breach(format!("backup {} is listed twice", twice.id));
    }
    let live_before: Vec<BackupId> =
        before.backups().filter(|(_, backup)| backup.is_live()).map(|(_, backup)| backup.id).collect();
    if let Some(lost) = live_before.iter().find(|id| !ids.contains(*id)) {
        return breach(format!("live backup {lost} would vanish without having been in the trash"));
    }
    for batch in &before.dead {
        let stays = after.dead.iter().find(|other| other.node == batch.node);
        let vouched = after.oldest_vouched < batch.condemned_epoch;
        if stays.is_none() && vouched && rules::holds(Rule::ForgettingRaisesVouched) {
            return breach(format!(
                "the batch of epoch {} is forgotten but still vouched for",
                batch.condemned_epoch
            ));
        }
        if stays.is_some_and(|other| {
            batch.stage == crate::dead::Stage::Doomed && other.pardoned != batch.pardoned
        }) {
            return breach("a doomed object would be pardoned".to_owned());
        }
    }
    Ok(())
}

/// Checks that nothing a root's backups need is dead.
///
/// # Errors
/// The first [`Breach`].
pub fn check_unneeded(
    state: &State<'_>,
    reachable: impl IntoIterator<Item = ObjectName>,
) -> Result<(), Breach> {
    let packs = state.usage.packs.keys().map(|pack| ObjectName::Pack(*pack));
    let segments = state.usage.segments.keys().map(|segment| ObjectName::Segment(*segment));
    let needed = packs.chain(segments).filter(|name| state.needs(name));
    match needed.chain(reachable).find(|name| state.dead.stage(name).is_some()) {
        None => Ok(()),
        Some(name) => Err(Breach(format!("{} is needed and {:?}", name.key(), state.dead.stage(&name)))),
    }
}
