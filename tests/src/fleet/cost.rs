//! What the control plane would cost a month on AWS, from counted requests.

use strongroom_store::{Operation, RequestCounts};

use super::ledger::Summary;

/// Prices of us-east-1, US dollars, as published in November 2026: S3 standard PUT, LIST; GET; SQS standard; Lambda
/// requests; Lambda GB-seconds on arm64.
const PUT: f64 = 0.005 / 1e3;
const GET: f64 = 0.0004 / 1e3;
const SQS: f64 = 0.40 / 1e6;
const INVOCATION: f64 = 0.20 / 1e6;
const GB_SECOND: f64 = 0.000_013_333_4;
/// Memory of a function, GB.
const MEMORY_GB: f64 = 0.128;
/// Time of an invocation besides its requests, and of a request to S3, seconds: assumed.
const OWN_SECONDS: f64 = 0.02;
const REQUEST_SECONDS: f64 = 0.03;
/// SQS requests of a message: sent, received, deleted.
const SQS_REQUESTS: f64 = 3.0;
/// Empty receives of one queue a month, with long polls of 20 s: five pollers for a Lambda mapping, one for a host.
const POLLS_A_MONTH: f64 = 30.0 * 86_400.0 / 20.0;
/// Invocations that each run causes besides the ticks: commit and retention.
const INVOCATIONS_A_RUN: f64 = 2.0;

/// A month's cost, US dollars.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Volumes.
    pub volumes: f64,
    /// Requests to S3.
    pub s3: f64,
    /// Requests to SQS, with the empty polls of functions and hosts.
    pub sqs: f64,
    /// Invocations and time of functions.
    pub lambda: f64,
}

impl Cost {
    /// Everything together.
    pub fn total(&self) -> f64 {
        self.s3 + self.sqs + self.lambda
    }

    /// Scales what was counted to a fleet of `volumes` on `hosts` hosts, with as many runs for each volume.
    #[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
    pub fn of(summary: &Summary, simulated: u32, days: u32, volumes: f64, hosts: f64) -> Self {
        let month = 30.0 / f64::from(days);
        let runs = summary.runs as f64 * month * volumes / f64::from(simulated);
        let ticks = 30.0 * 24.0 * 60.0 * 1.2;
        let idle = summary.requests_per_idle_tick() * ticks;
        let both = |counted: fn(&RequestCounts) -> u64| {
            let all = counted(&summary.function_requests) + counted(&summary.host_requests);
            all as f64 / summary.runs.max(1) as f64
        };
        let (reads, writes) = (both(reads) * runs, both(writes) * runs);
        let s3 = (reads + idle) * GET + writes * PUT;
        let messages = summary.messages as f64 / summary.runs.max(1) as f64 * runs * SQS_REQUESTS;
        let polls = (5.0 * 6.0 + hosts) * POLLS_A_MONTH;
        let sqs = (messages + ticks * SQS_REQUESTS + polls) * SQS;
        let invocations = ticks + runs * INVOCATIONS_A_RUN;
        let seconds = invocations * OWN_SECONDS + (reads + writes + idle) * REQUEST_SECONDS;
        let lambda = invocations * INVOCATION + seconds * MEMORY_GB * GB_SECOND;
        Self { volumes, s3, sqs, lambda }
    }
}

fn reads(counts: &RequestCounts) -> u64 {
    counts.read().calls
}

fn writes(counts: &RequestCounts) -> u64 {
    counts.written().calls + counts.of(Operation::List).calls
}
