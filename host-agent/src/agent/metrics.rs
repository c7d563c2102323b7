//! Figures for Prometheus, in its text format 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing::{info, warn};

/// The longest request that is read, bytes.
const MAX_REQUEST_BYTES: usize = 8 << 10;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the agent counts.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Counts>);

/// The counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// Runs that are worked on.
    pub running: u64,
    /// Runs by what they were and how they ended.
    pub ended: BTreeMap<(&'static str, &'static str), u64>,
    /// Bytes read from volumes.
    pub read_bytes: u64,
    /// Bytes stored by backups, written by restores.
    pub stored_bytes: u64,
    /// When each volume was last backed up well, milliseconds since the Unix epoch.
    pub backed_up: BTreeMap<String, u64>,
}

impl Metrics {
    /// The counts, to be read or changed.
    pub fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> String {
        let counts = self.counts();
        let mut text = String::new();
        let mut line = |line: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{line}");
        };
        line(format_args!("# HELP strongroom_runs_running Runs that are worked on."));
        line(format_args!("# TYPE strongroom_runs_running gauge"));
        line(format_args!("strongroom_runs_running {}", counts.running));
        line(format_args!("# HELP strongroom_runs_total Runs that ended here."));
        line(format_args!("# TYPE strongroom_runs_total counter"));
        for ((job, outcome), count) in &counts.ended {
            line(format_args!("strongroom_runs_total{{job=\"{job}\",outcome=\"{outcome}\"}} {count}"));
        }
        for (name, help, value) in [
            ("read_bytes", "Bytes read from volumes.", counts.read_bytes),
            ("stored_bytes", "Bytes stored by backups and written by restores.", counts.stored_bytes),
        ] {
            line(format_args!("# HELP strongroom_{name}_total {help}"));
            line(format_args!("# TYPE strongroom_{name}_total counter"));
            line(format_args!("strongroom_{name}_total {value}"));
        }
        line(format_args!(
            "# HELP strongroom_last_backup_seconds When a volume was last backed up, Unix time."
        ));
        line(format_args!("# TYPE strongroom_last_backup_seconds gauge"));
        for (volume, at_ms) in &counts.backed_up {
            let volume = volume.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let seconds = at_ms / 1000;
            line(format_args!("strongroom_last_backup_seconds{{volume=\"{volume}\"}} {seconds}"));
        }
        text
    }

    /// Answers requests at an address, for as long as the process lives. What goes wrong is logged.
    pub async fn serve(self: Arc<Self>, address: SocketAddr) {
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) => return warn!(%address, %error, "metrics can't be served"),
        };
        // As it was bound: port 0 is any free one.
        let address = listener.local_addr().unwrap_or(address);
        info!(%address, "metrics are served under /metrics");
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let metrics = Arc::clone(&self);
                    tokio::spawn(async move {
                        let _ = tokio::time::timeout(PATIENCE, metrics.answer(stream)).await;
                    });
                }
                Err(_) => tokio::time::sleep(PATIENCE).await,
            }
        }
    }

    async fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut request = Vec::new();
        let mut buffer = [0; 1024];
        while !request.windows(4).any(|window| window == b"\r\n\r\n") {
            let read = stream.read(&mut buffer).await?;
            if read == 0 || request.len() > MAX_REQUEST_BYTES {
                return Ok(());
            }
            request.extend_from_slice(&buffer[..read]);
        }
        let (status, body) = if request.starts_with(b"GET /metrics ") {
            ("200 OK", self.text())
        } else {
            ("404 Not Found", "metrics are under /metrics\n".to_owned())
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_volumes_can_be_anything() {
        let metrics = Metrics::default();
        metrics.counts().backed_up.insert("a\"b\\".to_owned(), 5_000);
        metrics.counts().ended.insert(("backup", "succeeded"), 3);
        let text = metrics.text();
        assert!(text.contains("strongroom_last_backup_seconds{volume=\"a\\\"b\\\\\"} 5\n"), "{text}");
        assert!(text.contains("strongroom_runs_total{job=\"backup\",outcome=\"succeeded\"} 3\n"), "{text}");
    }
}
