//! A queue in a folder, which outlives its process: the queue of a machine without any cloud.
//!
//! A message is a file; its name says from when on it is visible, how often it was received, and its id. To receive is
//! to rename, so exactly one receiver wins. Several processes may share a queue.
//!
//! Invariant: a message's file is complete and on disk before it has a name that receivers look for.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::{
    DEFAULT_MAX_RECEIVES, DeadLetter, Delivery, MAX_BATCH, MAX_MESSAGE_BYTES, Queue, QueueResult, Receipt,
    StoreError, StoreErrorKind, check_size, lapsed, worn_out,
};

/// How often a waiting receiver looks for messages of other processes.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Subfolder of messages that are being written.
const WRITING: &str = "writing";
/// Subfolder of dead letters: the message, and beside it the reason.
const DEAD: &str = "dead";

/// A queue in a folder of a file system.
#[derive(Debug)]
pub struct FolderQueue {
    folder: PathBuf,
    max_receives: u32,
    sent: Notify,
}

/// What a message's file name says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    visible_ms: u64,
    receives: u32,
    id: String,
}

impl Name {
    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(".json")?.splitn(3, '-');
        let visible_ms = parts.next()?.parse().ok()?;
        let receives = parts.next()?.parse().ok()?;
        let id = parts.next()?.to_owned();
        let plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain.then_some(Self { visible_ms, receives, id })
    }

    /// The same message, at another time.
    fn at(&self, visible_ms: u64, receives: u32) -> Self {
        Self { visible_ms, receives, id: self.id.clone() }
    }

    fn file(&self) -> String {
        format!("{:015}-{}-{}.json", self.visible_ms, self.receives, self.id)
    }

    /// Names a receipt: it lasts until the next receiver.
    fn receipt(&self) -> Receipt {
        Receipt(format!("{}-{}", self.receives, self.id))
    }
}

impl FolderQueue {
    /// Opens the queue in `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// `Denied`, `Unavailable` if the folder can't be made.
    pub async fn open(folder: impl Into<PathBuf>) -> QueueResult<Self> {
        let queue = Self { folder: folder.into(), max_receives: DEFAULT_MAX_RECEIVES, sent: Notify::new() };
        let (writing, dead) = (queue.folder.join(WRITING), queue.folder.join(DEAD));
        queue
            .on_disk("open", move || {
                std::fs::create_dir_all(writing).and_then(|()| std::fs::create_dir_all(dead))
            })
            .await?;
        Ok(queue)
    }

    /// Buries what was received so often.
    #[must_use]
    pub fn max_receives(self, max_receives: u32) -> Self {
        Self { max_receives, ..self }
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> QueueResult<T> {
        let done = tokio::task::spawn_blocking(work).await;
        let fail = |kind, message| StoreError::new(kind, operation, self.folder.display(), message);
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                let denied =
                    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem);
                let kind = if denied { StoreErrorKind::Denied } else { StoreErrorKind::Unavailable };
                Err(fail(kind, error.to_string()))
            }
            Err(error) => Err(fail(StoreErrorKind::Unavailable, error.to_string())),
        }
    }

    /// The file of a receipt, if it is still worth something.
    async fn find(&self, operation: &'static str, receipt: &Receipt) -> QueueResult<Option<Name>> {
        let (folder, receipt) = (self.folder.clone(), receipt.clone());
        self.on_disk(operation, move || {
            Ok(names(&folder)?.into_iter().find(|name| name.receipt() == receipt))
        })
        .await
    }

    async fn take(&self, max: usize, visibility: Duration) -> QueueResult<Vec<Delivery>> {
        let (folder, max_receives) = (self.folder.clone(), self.max_receives);
        self.on_disk("receive", move || take(&folder, max.min(MAX_BATCH), visibility, max_receives)).await
    }
}

#[async_trait]
impl Queue for FolderQueue {
    async fn send(&self, bodies: &[String]) -> QueueResult<()> {
        check_size(&self.folder.display().to_string(), bodies)?;
        let (folder, bodies) = (self.folder.clone(), bodies.to_vec());
        self.on_disk("send", move || {
            for body in &bodies {
                let name = new_name()?;
                write_whole(&folder.join(WRITING), &folder.join(name.file()), body.as_bytes())?;
            }
            sync(&folder)
        })
        .await?;
        self.sent.notify_waiters();
        Ok(())
    }

    async fn receive(&self, max: usize, visibility: Duration, wait: Duration) -> QueueResult<Vec<Delivery>> {
        let end = Instant::now() + wait;
        loop {
            // Before looking, so that what is sent in between wakes it.
            let sent = self.sent.notified();
            let taken = self.take(max, visibility).await?;
            if !taken.is_empty() || Instant::now() >= end {
                return Ok(taken);
            }
            let _ = tokio::time::timeout_at(end.min(Instant::now() + LOOK_EVERY), sent).await;
        }
    }

    async fn extend(&self, receipt: &Receipt, visibility: Duration) -> QueueResult<()> {
        let name = self.find("extend", receipt).await?.ok_or_else(|| lapsed("extend", receipt))?;
        let folder = self.folder.clone();
        let until = now_ms().saturating_add(millis(visibility));
        let moved = self
            .on_disk("extend", move || {
                found(std::fs::rename(
                    folder.join(name.file()),
                    folder.join(name.at(until, name.receives).file()),
                ))
            })
            .await?;
        self.sent.notify_waiters();
        if moved { Ok(()) } else { Err(lapsed("extend", receipt)) }
    }

    async fn delete(&self, receipt: &Receipt) -> QueueResult<()> {
        let Some(name) = self.find("delete", receipt).await? else { return Ok(()) };
        let folder = self.folder.clone();
        self.on_disk("delete", move || found(std::fs::remove_file(folder.join(name.file()))).map(|_| ()))
            .await
    }

    async fn bury(&self, delivery: &Delivery, reason: &str) -> QueueResult<()> {
        let Some(name) = self.find("bury", &delivery.receipt).await? else { return Ok(()) };
        let (folder, reason) = (self.folder.clone(), reason.to_owned());
        self.on_disk("bury", move || bury(&folder, &name, &reason)).await
    }

    async fn lay_to_rest(&self, body: &str, reason: &str) -> QueueResult<()> {
        let (folder, body, reason) = (self.folder.clone(), body.to_owned(), reason.to_owned());
        self.on_disk("bury", move || {
            let dead = folder.join(DEAD).join(new_name()?.file());
            write_whole(&folder.join(WRITING), &dead.with_extension("reason"), reason.as_bytes())?;
            write_whole(&folder.join(WRITING), &dead, body.as_bytes())
        })
        .await
    }

    async fn dead_letters(&self, max: usize) -> QueueResult<Vec<DeadLetter>> {
        let folder = self.folder.join(DEAD);
        self.on_disk("dead letters", move || {
            let mut letters = Vec::new();
            for name in names(&folder)?.into_iter().take(max) {
                let path = folder.join(name.file());
                let reason = std::fs::read_to_string(path.with_extension("reason")).unwrap_or_default();
                letters.push(DeadLetter { body: read(&path)?, reason });
            }
            Ok(letters)
        })
        .await
    }
}

/// The name of a message that is sent now.
fn new_name() -> std::io::Result<Name> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(std::io::Error::other)?;
    Ok(Name { visible_ms: now_ms(), receives: 0, id: format!("{:032x}", u128::from_le_bytes(id)) })
}

fn take(
    folder: &Path,
    max: usize,
    visibility: Duration,
    max_receives: u32,
) -> std::io::Result<Vec<Delivery>> {
    let now = now_ms();
    let mut taken = Vec::new();
    for name in names(folder)?.into_iter().take_while(|name| name.visible_ms <= now) {
        if taken.len() == max {
            break;
        }
        if name.receives >= max_receives {
            bury(folder, &name, &worn_out(name.receives))?;
            continue;
        }
        let mine = name.at(now.saturating_add(millis(visibility)), name.receives + 1);
        // Who is second finds nothing under the old name.
        if !found(std::fs::rename(folder.join(name.file()), folder.join(mine.file())))? {
            continue;
        }
        let path = folder.join(mine.file());
        if std::fs::metadata(&path)?.len() > MAX_MESSAGE_BYTES as u64 {
            bury(folder, &mine, "is longer than a message can be")?;
            continue;
        }
        taken.push(Delivery {
            id: mine.id.clone(),
            body: read(&path)?,
            receives: mine.receives,
            receipt: mine.receipt(),
        });
    }
    Ok(taken)
}

/// Messages of a folder, those first that are visible first. Files that are none are left alone.
fn names(folder: &Path) -> std::io::Result<Vec<Name>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.extend(entry?.file_name().to_str().and_then(Name::parse));
    }
    names.sort();
    Ok(names)
}

fn bury(folder: &Path, name: &Name, reason: &str) -> std::io::Result<()> {
    let dead = folder.join(DEAD).join(name.file());
    write_whole(&folder.join(WRITING), &dead.with_extension("reason"), reason.as_bytes())?;
    found(std::fs::rename(folder.join(name.file()), &dead)).map(|_| ())
}

/// A body; what is not text is shown as well as it can be, and refused by whoever reads it.
fn read(path: &Path) -> std::io::Result<String> {
    Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
}

/// Gives a file its name once it is complete and on disk.
fn write_whole(writing: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(writing)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn sync(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

/// Whether the file was there.
fn found(done: std::io::Result<()>) -> std::io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn now_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn conforms() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = std::sync::atomic::AtomicU32::new(0);
        crate::conformance::check(|max_receives| {
            let number = numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let path = folder.path().join(number.to_string());
            async move { FolderQueue::open(path).await.unwrap().max_receives(max_receives) }
        })
        .await;
    }

    #[tokio::test]
    async fn messages_outlive_the_process_and_foreign_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let queue = FolderQueue::open(folder.path()).await.unwrap();
        queue.send(&["one".to_owned()]).await.unwrap();
        drop(queue);
        for foreign in ["README", "000-x-y.json", "1-2.json", "1-2-../x.json".replace('/', "").as_str()] {
            std::fs::write(folder.path().join(foreign), "?").unwrap();
        }
        let queue = FolderQueue::open(folder.path()).await.unwrap();
        let all = queue.receive(10, Duration::from_secs(9), Duration::ZERO).await.unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].body, "one");
        assert_eq!(std::fs::read(folder.path().join("README")).unwrap(), b"?");
    }
}
