//! Reads and swaps the objects of a fleet in its home.
//!
//! Invariant: an object is only replaced by what was decided on the very version that it replaces.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use strongroom_format::Problem;
use strongroom_format::ids::{RunId, SessionId, TimestampMs};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_format::seal::{SealedBody, Sealer};
use strongroom_store::{ETag, StoreError, StoreErrorKind};
use strongroom_vault::{Target, VaultError, VaultResult};
use tracing::info;

use crate::agenda::{Agenda, AgendaEntry};
use crate::digest::{Digest, MAX_DIGEST_BYTES};
use crate::outcome::{MAX_OUTCOME_BYTES, Outcome};
use crate::run::{MAX_RUN_BYTES, Run};
use crate::settings::FleetSettings;
use crate::shard::{MAX_SHARD_BYTES, Shard};

/// How often a swap is tried against others who swap the same object.
const MAX_SWAP_TRIES: u32 = 40;
/// The most a reader takes for settings or agenda, bytes.
const MAX_SMALL_BYTES: u64 = 16 << 20;

/// The target that holds a fleet's state.
#[derive(Debug, Clone)]
pub struct Home {
    target: Target,
}

/// An object as it was read: what a swap replaces.
#[derive(Debug, Clone)]
pub struct Seen<T> {
    /// What it says.
    pub body: T,
    /// The version it was read in; `None` if it was not there.
    etag: Option<ETag>,
}

/// What is done with an object.
#[derive(Debug)]
pub enum Change<T, A> {
    /// It stays; this is the answer.
    Keep(A),
    /// It is replaced; this is the answer once that has happened.
    Replace(T, A),
}

/// A body of a fleet's object that can be checked on its own.
trait FleetBody: SealedBody + Default {
    const MAX_BYTES: u64;
    fn check(&self) -> Result<(), String>;
}

impl FleetBody for FleetSettings {
    const MAX_BYTES: u64 = MAX_SMALL_BYTES;
    fn check(&self) -> Result<(), String> {
        self.check()
    }
}

impl FleetBody for Agenda {
    const MAX_BYTES: u64 = MAX_SMALL_BYTES;
    fn check(&self) -> Result<(), String> {
        self.check()
    }
}

impl FleetBody for Shard {
    const MAX_BYTES: u64 = MAX_SHARD_BYTES;
    fn check(&self) -> Result<(), String> {
        self.check()
    }
}

impl Home {
    /// Takes a target as the home of a fleet; what is not there yet comes with the first change.
    pub const fn new(target: Target) -> Self {
        Self { target }
    }

    /// The target.
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// Seals, opens and names.
    pub const fn sealer(&self) -> &Sealer {
        &self.target.sealer
    }

    /// The time.
    pub fn now(&self) -> TimestampMs {
        self.target.context.clock.now()
    }

    /// Reads the settings.
    ///
    /// # Errors
    /// `Store`, or `Format` naming the object.
    pub async fn settings(&self) -> VaultResult<FleetSettings> {
        Ok(self.see(&ObjectKey::FleetSettings).await?.body)
    }

    /// Changes the settings.
    ///
    /// # Errors
    /// Whatever `decide` answers; `Store`; `Format`.
    pub async fn change_settings<A>(
        &self,
        decide: impl FnMut(&FleetSettings) -> VaultResult<Change<FleetSettings, A>>,
    ) -> VaultResult<A> {
        self.swap(&ObjectKey::FleetSettings, decide).await
    }

    /// Reads the agenda.
    ///
    /// # Errors
    /// `Store`, or `Format` naming the object.
    pub async fn agenda(&self) -> VaultResult<Agenda> {
        Ok(self.see(&ObjectKey::FleetAgenda).await?.body)
    }

    /// Brings entries of shards into the agenda, where they are newer than what it says.
    ///
    /// # Errors
    /// `Store`; `Format`.
    pub async fn update_agenda(&self, entries: &[(u16, AgendaEntry)]) -> VaultResult<()> {
        self.swap(&ObjectKey::FleetAgenda, |agenda: &Agenda| {
            let mut next = agenda.clone();
            Ok(if next.update(entries) { Change::Replace(next, ()) } else { Change::Keep(()) })
        })
        .await
    }

    /// Notes that the upkeep of a moment was asked for.
    ///
    /// # Errors
    /// `Store`; `Format`.
    pub async fn note_upkeep(&self, moment: TimestampMs) -> VaultResult<()> {
        self.swap(&ObjectKey::FleetAgenda, |agenda: &Agenda| {
            Ok(if agenda.upkeep >= moment {
                Change::Keep(())
            } else {
                Change::Replace(Agenda { upkeep: moment, ..agenda.clone() }, ())
            })
        })
        .await
    }

    /// Reads the digest; it says `None` where there is none that can be used, whatever the reason.
    ///
    /// # Errors
    /// `Store`.
    pub async fn digest(&self) -> VaultResult<Seen<Option<Digest>>> {
        let key = ObjectKey::FleetDigest;
        let object = match self.target.context.store.get(&key, MAX_DIGEST_BYTES).await {
            Ok(object) => object,
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                return Ok(Seen { body: None, etag: None });
            }
            // One that is too long is none of ours: it can't be used, and is to be replaced all the same.
            Err(error) if error.kind == StoreErrorKind::Invalid => {
                info!(%error, "the digest of the fleet can't be used");
                return Ok(Seen { body: None, etag: self.etag_of_long(&key).await? });
            }
            Err(error) => return Err(error.into()),
        };
        let opened = self.target.sealer.open(&key, &object.bytes).map_err(|error| error.to_string());
        let checked = opened.and_then(|digest: Digest| digest.check().map(|()| digest));
        let body = checked.inspect_err(|reason| info!(reason, "the digest of the fleet can't be used")).ok();
        Ok(Seen { body, etag: Some(object.etag) })
    }

    /// The version of an object that is too long to be read.
    async fn etag_of_long(&self, key: &ObjectKey) -> VaultResult<Option<ETag>> {
        match self.target.context.store.peek(key, 0..1).await {
            Ok(first) => Ok(Some(first.etag)),
            Err(error) if matches!(error.kind, StoreErrorKind::NotFound | StoreErrorKind::Invalid) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Replaces the digest as it was read; says whether nobody else was first.
    ///
    /// # Errors
    /// `Invalid` for one that is longer than a reader takes; `Store`.
    pub async fn replace_digest(&self, seen: &Seen<Option<Digest>>, next: &Digest) -> VaultResult<bool> {
        let key = ObjectKey::FleetDigest;
        let bytes = self.seal(&key, next);
        if bytes.len() as u64 > MAX_DIGEST_BYTES {
            let length = bytes.len();
            return Err(VaultError::Invalid(format!(
                "the digest would have {length} bytes, more than the {MAX_DIGEST_BYTES} that a reader takes"
            )));
        }
        Ok(self.put_sealed(&key, bytes, seen.etag.as_ref()).await?.is_some())
    }

    /// Reads a shard.
    ///
    /// # Errors
    /// `Store`, or `Format` naming the object.
    pub async fn shard(&self, number: u16) -> VaultResult<Seen<Shard>> {
        self.see(&ObjectKey::FleetShard(number)).await
    }

    /// Replaces a shard as it was read; `None` if somebody else was first.
    ///
    /// # Errors
    /// `Store`. The swap may have taken effect all the same: read again.
    pub async fn replace_shard(
        &self,
        number: u16,
        seen: &Seen<Shard>,
        mut next: Shard,
    ) -> VaultResult<Option<Seen<Shard>>> {
        next.version = seen.body.version + 1;
        let etag = self.put(&ObjectKey::FleetShard(number), &next, seen.etag.as_ref()).await?;
        Ok(etag.map(|etag| Seen { body: next, etag: Some(etag) }))
    }

    /// Changes a shard, and then the agenda. `decide` leaves the version alone.
    ///
    /// # Errors
    /// Whatever `decide` answers; `Store`; `Format`.
    pub async fn change_shard<A>(
        &self,
        number: u16,
        mut decide: impl FnMut(&Shard) -> VaultResult<Change<Shard, A>>,
    ) -> VaultResult<A> {
        let mut entry = None;
        let answer = self
            .swap(&ObjectKey::FleetShard(number), |shard: &Shard| {
                Ok(match decide(shard)? {
                    Change::Keep(answer) => {
                        entry = Some(shard.entry(self.sealer()));
                        Change::Keep(answer)
                    }
                    Change::Replace(mut next, answer) => {
                        next.version = shard.version + 1;
                        entry = Some(next.entry(self.sealer()));
                        Change::Replace(next, answer)
                    }
                })
            })
            .await?;
        // Also when nothing changed: an earlier try may have died between the two.
        if let Some(entry) = entry.filter(|entry| entry.version > 0) {
            self.update_agenda(&[(number, entry)]).await?;
        }
        Ok(answer)
    }

    /// Reads a run, with the version to be swapped; `None` if there is none.
    ///
    /// # Errors
    /// `Store`, or `Format` naming the object.
    pub async fn run(&self, run: RunId) -> VaultResult<Option<(Run, ETag)>> {
        self.get(&ObjectKey::Run(run), MAX_RUN_BYTES).await
    }

    /// Makes a run; says whether it was not there before.
    ///
    /// # Errors
    /// `Store`.
    pub async fn create_run(&self, id: RunId, run: &Run) -> VaultResult<bool> {
        Ok(self.put(&ObjectKey::Run(id), run, None).await?.is_some())
    }

    /// Replaces a run as it was read; `None` if somebody else was first.
    ///
    /// # Errors
    /// `Store`. The swap may have taken effect all the same: read again.
    pub async fn replace_run(&self, id: RunId, run: &Run, etag: &ETag) -> VaultResult<Option<ETag>> {
        self.put(&ObjectKey::Run(id), run, Some(etag)).await
    }

    /// Ends a run that has not ended; `end` makes the ended run of it. Makes the run if it is not there.
    ///
    /// # Errors
    /// `Store`; `Format`.
    pub async fn end_run(&self, id: RunId, fresh: &Run, end: impl Fn(&Run) -> Run) -> VaultResult<Run> {
        for _ in 0..MAX_SWAP_TRIES {
            match self.run(id).await? {
                None => {
                    let ended = end(fresh);
                    if self.create_run(id, &ended).await? {
                        return Ok(ended);
                    }
                }
                Some((run, _)) if run.has_ended() => return Ok(run),
                Some((run, etag)) => {
                    let ended = end(&run);
                    if self.replace_run(id, &ended, &etag).await?.is_some() {
                        return Ok(ended);
                    }
                }
            }
            self.pause(0).await;
        }
        Err(lost_races(&ObjectKey::Run(id)))
    }

    /// Lists the runs that changed last, `count` of them, the newest first, and when by the store's clock. Reads all of the listing, and keeps no
    /// more of it.
    ///
    /// # Errors
    /// `Store`.
    pub async fn newest_runs(&self, count: usize) -> VaultResult<Vec<(RunId, TimestampMs)>> {
        let mut newest = BTreeSet::new();
        let mut after = None;
        loop {
            let page = self.target.context.store.list(KeyPrefix::Runs, after.as_deref()).await?;
            for row in page.objects {
                let Some(ObjectKey::Run(id)) = ObjectKey::parse(&row.key) else { continue };
                newest.insert((Reverse(row.modified_ms), id));
                if newest.len() > count {
                    newest.pop_last();
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(newest.into_iter().map(|(Reverse(at), id)| (id, TimestampMs(at))).collect());
            }
        }
    }

    async fn see<T: FleetBody>(&self, key: &ObjectKey) -> VaultResult<Seen<T>> {
        let Some((body, etag)) = self.get::<T>(key, T::MAX_BYTES).await? else {
            return Ok(Seen { body: T::default(), etag: None });
        };
        body.check().map_err(|reason| Problem::Malformed(reason).of(key))?;
        Ok(Seen { body, etag: Some(etag) })
    }

    async fn swap<T: FleetBody, A>(
        &self,
        key: &ObjectKey,
        mut decide: impl FnMut(&T) -> VaultResult<Change<T, A>>,
    ) -> VaultResult<A> {
        for attempt in 0..MAX_SWAP_TRIES {
            let seen: Seen<T> = self.see(key).await?;
            let (next, answer) = match decide(&seen.body)? {
                Change::Keep(answer) => return Ok(answer),
                Change::Replace(next, answer) => (next, answer),
            };
            if self.put(key, &next, seen.etag.as_ref()).await?.is_some() {
                return Ok(answer);
            }
            self.pause(attempt).await;
        }
        Err(lost_races(key))
    }

    async fn pause(&self, attempt: u32) {
        let ceiling_ms = 10 << attempt.min(7);
        let wait_ms = self.target.context.entropy.with(|rng| rng.random_range(0..=ceiling_ms));
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    }

    async fn get<T: SealedBody>(&self, key: &ObjectKey, max_bytes: u64) -> VaultResult<Option<(T, ETag)>> {
        read_sealed(&self.target, key, max_bytes).await
    }

    /// Writes an object where `etag` is, or where none is; `None` if it is not so.
    async fn put<T: SealedBody>(
        &self,
        key: &ObjectKey,
        body: &T,
        etag: Option<&ETag>,
    ) -> VaultResult<Option<ETag>> {
        self.put_sealed(key, self.seal(key, body), etag).await
    }

    fn seal<T: SealedBody>(&self, key: &ObjectKey, body: &T) -> Bytes {
        Bytes::from(self.target.sealer.seal(key, body, &mut self.target.context.entropy.fork()))
    }

    async fn put_sealed(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
        etag: Option<&ETag>,
    ) -> VaultResult<Option<ETag>> {
        let store = &self.target.context.store;
        let put = match etag {
            Some(etag) => store.put_if_match(key, bytes, etag).await,
            None => store.put_if_absent(key, bytes).await,
        };
        match put {
            Ok(etag) => Ok(Some(etag)),
            Err(error) if matches!(error.kind, StoreErrorKind::Conflict | StoreErrorKind::NotFound) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads the committer's answer to a session; `None` while there is none.
///
/// # Errors
/// `Store`, or `Format` naming the object.
pub async fn read_outcome(target: &Target, session: SessionId) -> VaultResult<Option<Outcome>> {
    let found = read_sealed(target, &ObjectKey::Outcome(session), MAX_OUTCOME_BYTES).await?;
    Ok(found.map(|(outcome, _)| outcome))
}

/// Stores the committer's answer to a session; the first one stays.
///
/// # Errors
/// `Store`.
pub async fn write_outcome(target: &Target, session: SessionId, outcome: &Outcome) -> VaultResult<()> {
    let key = ObjectKey::Outcome(session);
    let bytes = target.sealer.seal(&key, outcome, &mut target.context.entropy.fork());
    match target.context.store.put_if_absent(&key, Bytes::from(bytes)).await {
        Err(error) if error.kind != StoreErrorKind::Conflict => Err(error.into()),
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn read_sealed<T: SealedBody>(
    target: &Target,
    key: &ObjectKey,
    max_bytes: u64,
) -> VaultResult<Option<(T, ETag)>> {
    match target.context.store.get(key, max_bytes).await {
        Ok(object) => Ok(Some((target.sealer.open(key, &object.bytes)?, object.etag))),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn lost_races(key: &ObjectKey) -> VaultError {
    StoreError::new(
        StoreErrorKind::Unavailable,
        "swap",
        key,
        format!("lost {MAX_SWAP_TRIES} races for it; try again when fewer writers are at it"),
    )
    .into()
}
