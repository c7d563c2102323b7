//! The committer's answer to an agent.

use serde::{Deserialize, Serialize};
use strongroom_catalog::commit::Refusal;
use strongroom_format::ids::{BackupId, Epoch};
use strongroom_format::seal::{Kind, SealedBody};

/// The most a reader takes for an outcome, bytes.
pub const MAX_OUTCOME_BYTES: u64 = 4 << 20;

/// What became of a session's request to commit. Written once, under the session's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The backup.
    pub backup: BackupId,
    /// The verdict.
    pub verdict: Verdict,
}

/// A committer's verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Verdict {
    /// The backup is in the catalog.
    Committed {
        /// The first epoch that has it.
        epoch: Epoch,
    },
    /// It can't come in; a new session may.
    Refused(Refusal),
    /// It never can: the manifest is damaged, or not what was announced.
    Invalid(String),
}

impl Verdict {
    /// What it is called in logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Committed { .. } => "committed",
            Self::Refused(_) => "refused",
            Self::Invalid(_) => "invalid",
        }
    }
}

impl SealedBody for Outcome {
    const KIND: Kind = Kind::Outcome;
    const MAX_BODY_BYTES: usize = 16 << 20;
}
