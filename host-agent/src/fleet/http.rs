//! Serves HTTP to clients that may be slow, idle or of bad intent.
//!
//! Invariant: a connection keeps its place only while its client does something: it sends a request, or takes an answer.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tracing::{debug, warn};

/// The longest body of a request, bytes: more than any that the console takes.
const MAX_BODY_BYTES: usize = 2 << 20;
/// How long nothing is taken after that failed, as when there are no more files to be had.
const PAUSE: Duration = Duration::from_secs(1);

/// What clients get at the most.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at once.
    pub connections: usize,
    /// How long a request may take to arrive: its head from when the connection is free for it, and then its body.
    pub request: Duration,
    /// How long a client may take nothing of what is sent.
    pub stalled: Duration,
    /// How long answers may take that are on their way when it is told to stop.
    pub last_answers: Duration,
}

impl Default for Bounds {
    /// Some browsers with a few connections each, and longer than any of them takes for a request.
    fn default() -> Self {
        Self {
            connections: 64,
            request: Duration::from_secs(15),
            stalled: Duration::from_secs(30),
            last_answers: Duration::from_secs(2),
        }
    }
}

/// Serves whoever connects, until `stop` ends.
pub async fn serve(listeners: Vec<TcpListener>, router: Router, bounds: Bounds, stop: impl Future) {
    let arrive = move |request, next| arrived(request, next, bounds.request);
    let service = TowerToHyperService::new(router.layer(from_fn(arrive)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(bounds.request);
    let places = Arc::new(Semaphore::new(bounds.connections));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            _ = &mut stop => break,
            accepted = accept(&listeners, &places) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, place)) => {
                let stream = Stream { stream, patience: bounds.stalled, stalled: None };
                let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service.clone()));
                connections.spawn(async move {
                    if let Err(error) = connection.await {
                        debug!(%error, "a connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "a connection can't be taken");
                sleep(PAUSE).await;
            }
        }
    }
    drop(listeners);
    // Those that are idle end at once, and those that still go on after this with `connections`.
    let _ = timeout(bounds.last_answers, graceful.shutdown()).await;
}

/// The next connection, once there is a place for it.
async fn accept(
    listeners: &[TcpListener],
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = poll_fn(|cx| {
        let mut ready = listeners.iter().map(|listener| listener.poll_accept(cx)).filter(Poll::is_ready);
        ready.next().unwrap_or(Poll::Pending)
    })
    .await?;
    Ok((stream, place))
}

/// Passes a request on once all of it is there: a handler that waits for a body would wait for ever.
async fn arrived(request: Request, next: Next, patience: Duration) -> Response {
    let (parts, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(parts, body)).await;
    }
    match timeout(patience, to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(body)) => next.run(Request::from_parts(parts, Body::from(body))).await,
        Ok(Err(_)) => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}

/// A connection that fails when nothing of what is sent has been taken for a while.
struct Stream {
    stream: TcpStream,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, bytes) {
            self.stalled = None;
            return Poll::Ready(written);
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Instant;

    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;

    /// Far less than a test waits for.
    const SHORT: Duration = Duration::from_millis(300);
    /// Longer than anything takes here on a slow machine.
    const PATIENCE: Duration = Duration::from_secs(30);
    const BOUNDS: Bounds =
        Bounds { connections: 4, request: SHORT, stalled: SHORT, last_answers: Duration::from_secs(1) };
    const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    struct Served {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        ended: JoinHandle<()>,
    }

    async fn served(bounds: Bounds) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", get(|| async { "here" }))
            .route("/long", get(|| async { vec![b'x'; 64 << 20] }))
            .route("/never", get(|| async { std::future::pending::<()>().await }))
            .route("/length", post(|body: String| async move { body.len().to_string() }));
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(serve(vec![listener], router, bounds, stopped));
        Served { address, stop, ended }
    }

    impl Served {
        /// A client that has sent this.
        async fn client(&self, sent: &[u8]) -> TcpStream {
            let mut client = TcpStream::connect(self.address).await.unwrap();
            client.write_all(sent).await.unwrap();
            client
        }

        /// What is said to a client that sends this and no more, until the connection is closed.
        async fn said(&self, sent: &[u8]) -> String {
            let mut client = self.client(sent).await;
            let mut said = Vec::new();
            let read = timeout(PATIENCE, client.read_to_end(&mut said)).await;
            read.expect("it was closed").unwrap();
            String::from_utf8(said).unwrap()
        }
    }

    /// What each of these leaves open keeps nobody else out.
    #[tokio::test]
    async fn those_who_send_nothing_or_half_of_something_lose_their_place() {
        let served = served(BOUNDS).await;
        let halves: [&[u8]; 4] = [
            b"",
            b"GET / HTTP/1.1\r\nhost: x\r\n",
            b"POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc",
            // Done, and kept alive.
            ASK,
        ];
        for half in halves {
            let mut held = Vec::new();
            for _ in 0..BOUNDS.connections {
                held.push(served.client(half).await);
            }
            let said = served.said(ASK).await;
            assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with("here"), "{said}");
        }
        let whole = b"POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc";
        assert!(served.said(whole).await.ends_with("\r\n\r\n3"));
        let slow = served.said(halves[2]).await;
        assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
    }

    #[tokio::test]
    async fn those_who_take_no_answer_lose_their_place() {
        let served = served(BOUNDS).await;
        let mut held = Vec::new();
        for _ in 0..BOUNDS.connections {
            held.push(served.client(b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n").await);
        }
        assert!(served.said(ASK).await.ends_with("here"));
    }

    #[tokio::test]
    async fn no_more_than_so_many_are_served_at_once() {
        let served = served(Bounds { request: PATIENCE, ..BOUNDS }).await;
        let mut held = Vec::new();
        for _ in 0..BOUNDS.connections {
            held.push(served.client(b"").await);
        }
        let mut waiting = served.client(ASK).await;
        let mut first = [0; 8];
        assert!(timeout(SHORT, waiting.read_exact(&mut first)).await.is_err(), "it has no place yet");
        held.pop();
        timeout(PATIENCE, waiting.read_exact(&mut first)).await.unwrap().unwrap();
        assert_eq!(&first, b"HTTP/1.1");
    }

    #[tokio::test]
    async fn it_stops_whoever_is_connected() {
        let served = served(Bounds { request: PATIENCE, ..BOUNDS }).await;
        let mut idle = served.client(b"").await;
        let _asked = served.client(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(timeout(SHORT, idle.read_u8()).await.is_err(), "it stays connected");
        let begun = Instant::now();
        served.stop.send(()).unwrap();
        timeout(PATIENCE, served.ended).await.unwrap().unwrap();
        let took = begun.elapsed();
        assert!(took >= BOUNDS.last_answers && took < PATIENCE / 2, "{took:?}");
        assert!(idle.read_u8().await.is_err(), "closed");
    }
}
