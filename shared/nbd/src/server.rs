//! One connection of a client, from its first byte to its last.
//!
//! Invariants:
//! - a connection holds at most `MAX_REQUESTS` requests and `MAX_HELD_BYTES` of their data; while it does, nothing
//!   more is read from it;
//! - every request that was read is answered, unless the connection is broken.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::export::{Allocation, Export, Status};
use crate::handshake::{Haggling, MAX_OPTION_BYTES, OptionHeader, Session, Step, greeting};
use crate::reply::{self, ErrorCode, Failure, MAX_STATUS_EXTENTS};
use crate::request::{Command, RequestHeader};
use crate::wire::{MAX_PAYLOAD_BYTES, Malformed};

/// Requests of a connection that are worked on at once; clients keep 16 to 128 going.
const MAX_REQUESTS: usize = 64;
/// Bytes of reads and writes that a connection holds: two of the longest.
const MAX_HELD_BYTES: usize = 2 * MAX_PAYLOAD_BYTES as usize;
/// The unit in which they are counted, bytes.
const HELD_UNIT_BYTES: u32 = 4096;
/// How long a client may take for the handshake: it is a few messages.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Options of a handshake; clients send about five.
const MAX_OPTIONS: usize = 64;

/// Why a connection ended otherwise than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The client broke the protocol.
    #[error("the client broke the protocol: {0}")]
    Protocol(#[from] Malformed),
    /// The client took too long.
    #[error("the client took longer than {} s for the handshake", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
}

/// Serves an export to one client until that wants no more, or `stop` becomes true; requests that were read by then are
/// answered.
///
/// # Errors
/// [`ServeError`]; nothing is left behind but the broken connection.
pub async fn serve<E: Export>(
    reader: impl AsyncRead + Send + Unpin,
    mut writer: impl AsyncWrite + Send + Unpin + 'static,
    export: Arc<E>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    let agreed = tokio::select! {
        agreed = tokio::time::timeout(HANDSHAKE_TIMEOUT, haggle(&mut reader, &mut writer, export.as_ref())) => agreed,
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    match agreed.map_err(|_| ServeError::Timeout)?? {
        Some(session) => Transmission::new(export, session, writer).run(&mut reader, stop).await,
        None => Ok(()),
    }
}

/// Haggles about options; `None` if the client wants nothing more.
async fn haggle(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    export: &impl Export,
) -> Result<Option<Session>, ServeError> {
    writer.write_all(&greeting()).await?;
    let mut client_flags = [0; 4];
    reader.read_exact(&mut client_flags).await?;
    let mut haggling = Haggling::begin(export.info(), client_flags)?;
    for _ in 0..MAX_OPTIONS {
        let mut header = [0; OptionHeader::BYTES];
        reader.read_exact(&mut header).await?;
        let header = OptionHeader::parse(&header)?;
        let step = if header.data_bytes > MAX_OPTION_BYTES {
            Haggling::refuse_long(header.option)
        } else {
            let mut data = vec![0; header.data_bytes as usize];
            reader.read_exact(&mut data).await?;
            haggling.answer(header.option, &data)
        };
        match step {
            Step::Reply(bytes) => writer.write_all(&bytes).await?,
            Step::Begin(bytes) => {
                writer.write_all(&bytes).await?;
                return Ok(Some(haggling.session()));
            }
            Step::Close(bytes) => {
                writer.write_all(&bytes).await?;
                return Ok(None);
            }
        }
    }
    Err(Malformed("the handshake has too many options").into())
}

/// The phase in which requests are answered.
struct Transmission<E, W> {
    shared: Arc<Shared<E, W>>,
    requests: Arc<Semaphore>,
    held: Arc<Semaphore>,
}

/// What the tasks that answer requests share.
struct Shared<E, W> {
    export: Arc<E>,
    session: Session,
    writer: Mutex<W>,
    /// Becomes true when replies can't be sent any more.
    broken: watch::Sender<bool>,
}

impl<E: Export, W: AsyncWrite + Send + Unpin + 'static> Transmission<E, W> {
    fn new(export: Arc<E>, session: Session, writer: W) -> Self {
        let (writer, broken) = (Mutex::new(writer), watch::Sender::new(false));
        Self {
            shared: Arc::new(Shared { export, session, writer, broken }),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            held: Arc::new(Semaphore::new(MAX_HELD_BYTES / HELD_UNIT_BYTES as usize)),
        }
    }

    async fn run(
        self,
        reader: &mut (impl AsyncRead + Send + Unpin),
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), ServeError> {
        let mut broken = self.shared.broken.subscribe();
        // Dropped, and so cut off, with this future.
        let mut tasks = JoinSet::new();
        let ended = tokio::select! {
            ended = self.take_requests(reader, &mut tasks) => ended,
            _ = stop.wait_for(|stop| *stop) => Ok(()),
            _ = broken.wait_for(|broken| *broken) => {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
            }
        };
        if ended.is_ok() {
            while tasks.join_next().await.is_some() {}
            // The other side may be gone already.
            let _ = self.shared.writer.lock().await.shutdown().await;
        }
        ended
    }

    async fn take_requests(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        tasks: &mut JoinSet<()>,
    ) -> Result<(), ServeError> {
        loop {
            let mut header = [0; RequestHeader::BYTES];
            match reader.read_exact(&mut header).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            let header = RequestHeader::parse(&header)?;
            let payload_bytes = header.payload_bytes()?;
            let command = header.check(self.shared.export.info(), self.shared.session);
            if command == Ok(Command::Disconnect) {
                return Ok(());
            }
            let held = self.hold(&command, payload_bytes).await;
            let mut payload = vec![0; payload_bytes as usize];
            reader.read_exact(&mut payload).await?;
            let shared = Arc::clone(&self.shared);
            tasks.spawn(async move {
                shared.answer(header, command, payload.into()).await;
                drop(held);
            });
            while tasks.try_join_next().is_some() {}
        }
    }

    /// Waits until there is room for a request.
    async fn hold(
        &self,
        command: &Result<Command, ErrorCode>,
        payload_bytes: u32,
    ) -> [Option<OwnedSemaphorePermit>; 2] {
        let bytes = match command {
            Ok(Command::Read { range, .. }) => {
                u32::try_from(range.end - range.start).unwrap_or(MAX_PAYLOAD_BYTES)
            }
            _ => payload_bytes,
        };
        let units = bytes.min(MAX_PAYLOAD_BYTES).div_ceil(HELD_UNIT_BYTES);
        // Neither is ever closed.
        let request = Arc::clone(&self.requests).acquire_owned().await.ok();
        let held = Arc::clone(&self.held).acquire_many_owned(units).await.ok();
        [request, held]
    }
}

impl<E: Export, W: AsyncWrite + Unpin> Shared<E, W> {
    async fn answer(&self, header: RequestHeader, command: Result<Command, ErrorCode>, payload: Bytes) {
        let mut alarm = Alarm(Some(&self.broken));
        let cookie = header.cookie;
        let structured = self.session.structured;
        let answer = match command {
            Ok(command) => self.execute(cookie, command, payload).await,
            Err(code) => Err(code.into()),
        };
        let bytes = answer.unwrap_or_else(|failure| {
            debug!(%failure, "a request failed");
            reply::failed(cookie, &failure, structured)
        });
        let sent = self.writer.lock().await.write_all(&bytes).await;
        if let Err(error) = sent {
            debug!(%error, "a reply can't be sent");
        } else {
            alarm.0 = None;
        }
    }

    async fn execute(&self, cookie: u64, command: Command, payload: Bytes) -> Result<Vec<u8>, Failure> {
        let export = &self.export;
        let mut durable_wanted = false;
        match command {
            Command::Read { range, whole } => {
                let offset = range.start;
                let pieces = export.read(range).await?;
                return Ok(if self.session.structured {
                    reply::read_structured(cookie, offset, &pieces, whole)
                } else {
                    reply::read_simple(cookie, &pieces)
                });
            }
            Command::BlockStatus { range, one } => {
                let len = range.end - range.start;
                let extents = bounded(export.status(range, one).await?, len, one);
                return Ok(reply::block_status(cookie, &extents));
            }
            Command::Write { range, durable } => {
                export.write(range.start, payload).await?;
                durable_wanted = durable;
            }
            Command::WriteZeroes { range, durable, keep_space } => {
                export.write_zeroes(range, keep_space).await?;
                durable_wanted = durable;
            }
            Command::Trim { range, durable } => {
                export.trim(range).await?;
                durable_wanted = durable;
            }
            Command::Flush => durable_wanted = true,
            Command::Cache { range } => export.prefetch(range).await?,
            Command::Disconnect => {}
        }
        if durable_wanted {
            export.flush().await?;
        }
        Ok(reply::done(cookie))
    }
}

/// Keeps what a reply to a question for `len` bytes may hold, at least one extent.
fn bounded(extents: Vec<Status>, len: u64, one: bool) -> Vec<Status> {
    let mut left = len;
    let mut kept: Vec<Status> = Vec::new();
    for extent in extents {
        let extent = Status { len: extent.len.min(left), ..extent };
        let full = kept.len() == if one { 1 } else { MAX_STATUS_EXTENTS };
        match kept.last_mut() {
            _ if extent.len == 0 => break,
            Some(last) if last.allocation == extent.allocation => last.len += extent.len,
            Some(_) if full => break,
            _ => kept.push(extent),
        }
        left -= extent.len;
    }
    if kept.is_empty() {
        // Always right: it says that nothing is known.
        kept.push(Status { allocation: Allocation::Data, len });
    }
    kept
}

/// Tells the connection when a request ends without its reply sent, also by a panic; nothing once it is disarmed.
struct Alarm<'a>(Option<&'a watch::Sender<bool>>);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if let Some(broken) = self.0 {
            if std::thread::panicking() {
                warn!("a request ended in a panic; its connection is closed");
            }
            broken.send_replace(true);
        }
    }
}
