//! The S3 server that all tools are measured against, and where each tool keeps its repository.
//!
//! Invariant: every tool and repetition has a folder and a server process of its own, stopped when dropped.

use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::proxy::{Counts, Proxy};

/// The bucket of all tools.
pub const BUCKET: &str = "bench";
/// Credentials of servers that this program starts.
pub const ACCESS_KEY: &str = "benchkey";
/// Their secret half.
pub const SECRET_KEY: &str = "benchsecret123";
/// How often a server that starts is asked whether it listens; 10 s in all.
const START_ATTEMPTS: u32 = 200;

/// Which store the run is about.
#[derive(Debug, Clone)]
pub enum Store {
    /// An `s3s-fs` program, started afresh for each tool.
    Program(PathBuf),
    /// A server that runs already, with a bucket that is there.
    Endpoint {
        /// Its address, as `http://host:port`.
        url: String,
        /// The bucket.
        bucket: String,
    },
    /// Folders, without a server.
    Folder,
}

/// How a tool reaches its repository.
#[derive(Debug, Clone)]
pub enum Repository {
    /// A folder.
    Folder(PathBuf),
    /// A bucket and prefix.
    S3 {
        /// The endpoint, as `http://host:port`.
        endpoint: String,
        /// The bucket.
        bucket: String,
        /// The folder in the bucket.
        prefix: String,
    },
}

/// One tool's place for one repetition.
#[derive(Debug)]
pub struct Place {
    /// Working folder: home, caches, keys, logs, restored files.
    pub folder: PathBuf,
    /// The repository.
    pub repository: Repository,
    /// Credentials, if the environment's are not meant.
    pub credentials: Option<(&'static str, &'static str)>,
    stored_in: Option<PathBuf>,
    server: Option<Child>,
    proxy: Option<Proxy>,
}

impl Place {
    /// Makes a place, with a server of its own where there is to be one, and a proxy that counts if `count` says so.
    pub fn create(folder: PathBuf, store: &Store, name: &str, count: bool) -> Result<Self> {
        for part in ["home", "cache", "repository"] {
            std::fs::create_dir_all(folder.join(part))?;
        }
        let data = folder.join("repository");
        let mut place = Self {
            repository: Repository::Folder(data.join("repo")),
            stored_in: Some(data.clone()),
            credentials: None,
            server: None,
            proxy: None,
            folder,
        };
        let (url, bucket, prefix) = match store {
            Store::Folder => return Ok(place),
            Store::Program(program) => {
                std::fs::create_dir_all(data.join(BUCKET))?;
                let log = place.folder.join("server.log");
                let (server, address) = start(program, &data, &log)?;
                place.server = Some(server);
                place.credentials = Some((ACCESS_KEY, SECRET_KEY));
                (format!("http://{address}"), BUCKET.to_owned(), name.to_owned())
            }
            Store::Endpoint { url, bucket } => {
                place.stored_in = None;
                let run = place.folder.display().to_string().replace(['/', '.'], "-");
                (url.clone(), bucket.clone(), format!("bench{run}/{name}"))
            }
        };
        let mut endpoint = url.trim_end_matches('/').to_owned();
        if count {
            let host = endpoint.strip_prefix("http://").context("requests are counted on http:// only")?;
            let server = host.to_socket_addrs()?.next().context("the endpoint has no address")?;
            let proxy = Proxy::start(server)?;
            endpoint = format!("http://{}", proxy.address);
            place.proxy = Some(proxy);
        }
        place.repository = Repository::S3 { endpoint, bucket, prefix };
        Ok(place)
    }

    /// Bytes stored, where they can be seen.
    pub fn stored_bytes(&self) -> Result<Option<u64>> {
        self.stored_in.as_deref().map(folder_bytes).transpose()
    }

    /// Requests since the last call, where they are counted.
    pub fn take_requests(&self) -> Option<Counts> {
        self.proxy.as_ref().map(Proxy::take)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            // It may have ended by itself; either way it is gone now.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn start(program: &Path, data: &Path, log: &Path) -> Result<(Child, SocketAddr)> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut server = Command::new(program)
        .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
        .args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY])
        .arg(data)
        .env("RUST_LOG", "error")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(log)?)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    for _ in 0..START_ATTEMPTS {
        if TcpStream::connect(address).is_ok() {
            return Ok((server, address));
        }
        if let Some(status) = server.try_wait()? {
            bail!("{} stopped: {status}; see {}", program.display(), log.display());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = server.kill();
    let _ = server.wait();
    bail!("{} does not listen on {address}", program.display())
}

/// Adds up the files of a folder.
pub fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        total += if about.is_dir() { folder_bytes(&entry.path())? } else { about.len() };
    }
    Ok(total)
}
