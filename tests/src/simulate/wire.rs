//! The way from an actor to the store: requests that are lost, late, or answered late or never.
//!
//! Invariant: a request takes effect at most once, and it may do so long after whoever sent it has given up, died, or
//! gone on: a write, once on its way, is a task of its own. A delete of several keys takes effect key by key.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_catalog::moved::taken_back;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{
    ETag, Fault, ListPage, Object, ObjectStore, Operation, StoreError, StoreErrorKind, StoreResult,
};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::watch::{Actor, Watch};
use super::world::World;

/// How bad a line is.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// Share of the calls that fail before they take effect.
    pub lost_requests: f64,
    /// Share of the calls whose answer is lost.
    pub lost_answers: f64,
    /// Share of the calls that stall, before or after they take effect.
    pub stalls: f64,
    /// The longest stall.
    pub longest_stall: Duration,
    /// Share of the reads of the root that stall besides: between what somebody has looked up and what he decides.
    pub root_stalls: f64,
    /// Share of the listings of the inbox that stall besides, after they were made: between what a collector knows of
    /// readers and what it condemns.
    pub list_stalls: f64,
    /// Share of the packs that stall besides once they are written: for a collector, in the middle of rewriting.
    pub copy_stalls: f64,
    /// Whether manifests wait until packs are rewritten, which they may name, and new counts until such packs are taken back.
    pub lingers: bool,
    /// For so long after it was written, nothing that a commit can name may be deleted, as under S3 Object Lock.
    pub lock: Duration,
}

impl Line {
    /// A line on which nothing ever goes wrong.
    pub const GOOD: Self = Self {
        lost_requests: 0.0,
        lost_answers: 0.0,
        stalls: 0.0,
        longest_stall: Duration::ZERO,
        root_stalls: 0.0,
        list_stalls: 0.0,
        copy_stalls: 0.0,
        lingers: false,
        lock: Duration::ZERO,
    };
}

/// Somebody who is counted as long as this lives.
struct Present<'a>(&'a World, fn(&mut Watch) -> &mut u32);

impl<'a> Present<'a> {
    fn begin(world: &'a World, among: fn(&mut Watch) -> &mut u32) -> Self {
        *among(&mut world.watch()) += 1;
        Self(world, among)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        *self.1(&mut self.0.watch()) -= 1;
    }
}

/// What happens to one request.
struct Fate {
    before: Duration,
    fault: Fault,
    after: Duration,
}

/// The store as one actor sees it.
pub struct Wire {
    world: Arc<World>,
    actor: Arc<Actor>,
    line: Line,
}

impl Wire {
    /// Connects an actor.
    pub const fn new(world: Arc<World>, actor: Arc<Actor>, line: Line) -> Self {
        Self { world, actor, line }
    }

    fn fate(&self) -> Fate {
        let chance = &self.world.chance;
        let mut fate = Fate {
            before: Duration::from_millis(chance.between(1, 60)),
            fault: Fault::None,
            after: Duration::from_millis(chance.between(1, 60)),
        };
        if chance.yes(self.line.stalls) {
            let stall = chance.duration(Duration::from_secs(1), self.line.longest_stall);
            *(if chance.yes(0.6) { &mut fate.before } else { &mut fate.after }) += stall;
        }
        if chance.yes(self.line.lost_requests) {
            fate.fault = Fault::Before;
        } else if chance.yes(self.line.lost_answers) {
            fate.fault = Fault::After;
        }
        fate
    }

    /// Stalls with a probability, beside what happens to each request.
    async fn stall(&self, share: f64) {
        let chance = &self.world.chance;
        if share > 0.0 && chance.yes(share) {
            sleep(chance.duration(Duration::from_secs(1), self.line.longest_stall)).await;
        }
    }

    /// Waits until packs are rewritten that were not yet, and, unless this is the first to see them, until a collector has
    /// counted what the first took back; or for some seconds each.
    async fn linger(&self) {
        let (now, backups) = {
            let root = &self.world.watch().root;
            (root.epoch, root.backups().count())
        };
        if backups < 3 {
            return;
        }
        let _lingering = Present::begin(&self.world, |watch| &mut watch.lingering);
        let rewritten = |watch: &Watch| {
            let rewritten = watch.root.dead.iter().rev().find(|batch| batch.rewritten)?;
            (rewritten.condemned_epoch > now).then_some(rewritten.condemned_epoch)
        };
        let Some(rewritten) = self.world.wait_for(Duration::from_secs(90), rewritten).await else { return };
        if self.world.watch().taking_back.replace(rewritten) == Some(rewritten) {
            let counted = |watch: &Watch| (watch.recounting > 0).then_some(());
            self.world.wait_for(Duration::from_secs(30), counted).await;
        }
    }

    /// Waits until more packs are taken back than were, or for some seconds, unless there is a count already.
    async fn recount(&self) {
        let before = {
            let root = &self.world.watch().root;
            root.usage.is_none().then(|| taken_back(root))
        };
        let Some(before) = before.filter(|_| self.world.chance.yes(0.9)) else { return };
        let _recounting = Present::begin(&self.world, |watch| &mut watch.recounting);
        let more = |watch: &Watch| (taken_back(&watch.root) != before).then_some(());
        if self.world.wait_for(Duration::from_secs(8), more).await.is_some() {
            self.world.tell(|| format!("{} counted before more was taken back", self.actor.name));
        }
    }

    /// Sends a request that changes nothing: who is gone does not need it.
    async fn ask<T>(
        &self,
        operation: Operation,
        key: &str,
        effect: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        let fate = self.fate();
        self.world.note_call(&self.actor, operation, key, fate.fault);
        sleep(fate.before).await;
        let answer = if fate.fault == Fault::Before { lost(operation, key) } else { effect.await };
        sleep(fate.after).await;
        if fate.fault == Fault::After { lost(operation, key) } else { answer }
    }

    /// Sends a request that changes something.
    async fn tell<T: Send + 'static>(
        &self,
        operation: Operation,
        key: &str,
        effect: impl Future<Output = StoreResult<T>> + Send + 'static,
    ) -> StoreResult<T> {
        let fate = self.fate();
        self.world.note_call(&self.actor, operation, key, fate.fault);
        let name = key.to_owned();
        let travelling = async move {
            sleep(fate.before).await;
            let answer = if fate.fault == Fault::Before { lost(operation, &name) } else { effect.await };
            sleep(fate.after).await;
            if fate.fault == Fault::After { lost(operation, &name) } else { answer }
        };
        // On its way: nothing that happens to the sender stops it. Else it dies with the sender.
        if self.line.stalls == 0.0 || self.world.chance.yes(0.5) {
            return travelling.await;
        }
        let (answer, awaited) = oneshot::channel();
        tokio::spawn(async move {
            // The sender may be gone.
            let _ = answer.send(travelling.await);
        });
        awaited.await.unwrap_or_else(|_| lost(operation, key))
    }
}

fn lost<T>(operation: Operation, key: &str) -> StoreResult<T> {
    Err(StoreError::new(StoreErrorKind::Unavailable, operation.name(), key, "lost on the wire"))
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("actor", &self.actor.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl ObjectStore for Wire {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        if *key == ObjectKey::Root {
            self.stall(self.line.root_stalls).await;
        }
        let effect = async {
            let got = self.world.store.get(key, max_bytes).await;
            if *key == ObjectKey::Root {
                self.world.watch().sent_root(&self.actor);
            }
            got
        };
        self.ask(Operation::Get, &key.to_string(), effect).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        self.ask(Operation::GetRange, &key.to_string(), self.world.store.get_range(key, range)).await
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        match key {
            ObjectKey::Manifest(_) if self.line.lingers => self.linger().await,
            ObjectKey::Node(_) if self.line.lingers => self.recount().await,
            _ => {}
        }
        let (world, actor, key) = (Arc::clone(&self.world), Arc::clone(&self.actor), *key);
        let effect = async move {
            let put = world.store.put_if_absent(&key, bytes.clone()).await;
            if put.is_ok() {
                world.watch().wrote(&world, &actor, &key, &bytes);
            }
            put
        };
        let put = self.tell(Operation::PutIfAbsent, &key.to_string(), effect).await;
        if matches!(key, ObjectKey::Pack(_)) {
            self.stall(self.line.copy_stalls).await;
        }
        put
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        let (world, actor, key, etag) =
            (Arc::clone(&self.world), Arc::clone(&self.actor), *key, etag.clone());
        let effect = async move {
            let put = world.store.put_if_match(&key, bytes.clone(), &etag).await;
            if put.is_ok() {
                world.watch().wrote(&world, &actor, &key, &bytes);
            }
            put
        };
        self.tell(Operation::PutIfMatch, &key.to_string(), effect).await
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        let listed =
            self.ask(Operation::List, &prefix.to_string(), self.world.store.list(prefix, start_after)).await;
        if prefix == KeyPrefix::Inbox {
            self.stall(self.line.list_stalls).await;
        }
        listed
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        let (world, actor) = (Arc::clone(&self.world), Arc::clone(&self.actor));
        let mut keys = keys.to_vec();
        let first = keys.first().map_or_else(String::new, ToString::to_string);
        let line = self.line;
        let effect = async move {
            let mut done = Ok(());
            // In any order, and not all of them if the call fails.
            while !keys.is_empty() {
                let key = keys.swap_remove(world.chance.below(keys.len()));
                if world.chance.yes(line.lost_requests) {
                    done = lost(Operation::Delete, &key.to_string());
                    continue;
                }
                if world.chance.yes(line.stalls) {
                    sleep(world.chance.duration(Duration::from_secs(1), line.longest_stall)).await;
                }
                if world.watch().is_locked(&world, &key, line.lock) {
                    let denied = "it is locked";
                    done =
                        Err(StoreError::new(StoreErrorKind::Denied, Operation::Delete.name(), key, denied));
                    continue;
                }
                world.store.delete(&[key]).await?;
                world.watch().deleted(&world, &actor, &key);
            }
            done
        };
        self.tell(Operation::Delete, &first, effect).await
    }
}
