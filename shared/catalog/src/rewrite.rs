//! Step 10: which partly dead packs are worth rewriting, and what that costs.
//!
//! Invariant: a plan names only packs that are alive, were committed, and are not rewritten already.

use std::collections::HashSet;

use strongroom_format::ids::PackId;

use crate::dead::{DeadSet, ObjectName};
use crate::moved::Moved;
use crate::usage::Usage;

/// When to rewrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RewritePolicy {
    /// Packs of whose bytes less than so many percent are in use are rewritten; 0 rewrites none.
    pub below_percent: u8,
    /// The most one collection rewrites, bytes read.
    pub max_bytes: u64,
}

impl Default for RewritePolicy {
    fn default() -> Self {
        Self { below_percent: 50, max_bytes: 64 << 30 }
    }
}

/// A pack to rewrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The pack.
    pub pack: PackId,
    /// Its length, bytes.
    pub size_bytes: u32,
    /// Bytes of its frames that are in use.
    pub live_bytes: u32,
}

/// What to rewrite, the least used first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RewritePlan {
    /// The packs.
    pub packs: Vec<Candidate>,
    /// Bytes that are dead in packs that stay as they are.
    pub left_bytes: u64,
}

/// Prices of S3 Standard in us-east-1, read in November 2026 (aws.amazon.com/s3/pricing); reads within the region are
/// free of transfer.
mod price {
    pub const PUT_DOLLARS: f64 = 0.005 / 1000.0;
    pub const GET_DOLLARS: f64 = 0.0004 / 1000.0;
    pub const GB_MONTH_DOLLARS: f64 = 0.023;
}

/// What a rewriting costs and brings.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RewriteCost {
    /// Packs that are rewritten.
    pub packs: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes that will be free.
    pub freed_bytes: u64,
    /// Reading requests.
    pub gets: u64,
    /// Writing requests.
    pub puts: u64,
    /// Dollars for the requests.
    pub dollars: f64,
    /// Dollars saved every month from then on.
    pub saved_dollars_a_month: f64,
}

impl RewritePlan {
    /// Computes what it costs, with new packs of `pack_bytes`.
    #[expect(clippy::cast_precision_loss, reason = "dollars are shown with a few digits")]
    pub fn cost(&self, pack_bytes: u64) -> RewriteCost {
        let packs = self.packs.len() as u64;
        let read_bytes: u64 = self.packs.iter().map(|pack| u64::from(pack.size_bytes)).sum();
        let written_bytes: u64 = self.packs.iter().map(|pack| u64::from(pack.live_bytes)).sum();
        let new_packs = written_bytes.div_ceil(pack_bytes.max(1));
        // A new pack is described by an index object; a swap writes the root and its copy, a count and its parts.
        let puts = if packs == 0 { 0 } else { 2 * new_packs + 8 };
        let gets = packs;
        let freed_bytes = read_bytes.saturating_sub(written_bytes);
        RewriteCost {
            packs,
            read_bytes,
            written_bytes,
            freed_bytes,
            gets,
            puts,
            dollars: puts as f64 * price::PUT_DOLLARS + gets as f64 * price::GET_DOLLARS,
            saved_dollars_a_month: freed_bytes as f64 / 1e9 * price::GB_MONTH_DOLLARS,
        }
    }
}

/// Decides what to rewrite.
pub fn plan_rewrite(
    usage: &Usage,
    dead: &DeadSet,
    moved: &Moved,
    excluded: &HashSet<PackId>,
    policy: &RewritePolicy,
) -> RewritePlan {
    let mut plan = RewritePlan::default();
    for (pack, of_pack) in &usage.packs {
        let alive = of_pack.live_frames > 0 && of_pack.size_bytes > 0;
        if !alive || moved.has(pack) || dead.stage(&ObjectName::Pack(*pack)).is_some() {
            continue;
        }
        let share = u64::from(of_pack.live_bytes) * 100;
        if share < u64::from(of_pack.size_bytes) * u64::from(policy.below_percent) && !excluded.contains(pack)
        {
            plan.packs.push(Candidate {
                pack: *pack,
                size_bytes: of_pack.size_bytes,
                live_bytes: of_pack.live_bytes,
            });
        } else {
            plan.left_bytes += u64::from(of_pack.size_bytes.saturating_sub(of_pack.live_bytes));
        }
    }
    // Where the most is gained for the least copying; ties by name, so that every collector plans the same.
    plan.packs.sort_by_key(|pack| (u64::from(pack.live_bytes) << 20) / u64::from(pack.size_bytes));
    let mut read_bytes = 0u64;
    let fitting = plan.packs.iter().take_while(|pack| {
        read_bytes += u64::from(pack.size_bytes);
        read_bytes <= policy.max_bytes
    });
    let fitting = fitting.count();
    for pack in plan.packs.drain(fitting..) {
        plan.left_bytes += u64::from(pack.size_bytes.saturating_sub(pack.live_bytes));
    }
    plan
}
