//! Where clients connect: a unix socket, or a port of the loopback interface.
//!
//! Invariant: nobody but this user and root gets at a backup through the socket, and nobody at all from another machine.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::umask;
use strongroom_vault::{VaultError, VaultResult};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tracing::{info, warn};

/// A connection's two directions.
pub type Halves = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

/// What clients connect to; the socket is removed when it is dropped.
#[derive(Debug)]
pub enum Listener {
    /// A socket in the filesystem.
    Unix {
        /// The socket.
        listener: UnixListener,
        /// Where it is.
        path: PathBuf,
    },
    /// A port.
    Tcp(TcpListener),
}

impl Listener {
    /// Listens on a socket at a path. One that a killed server left is replaced.
    ///
    /// # Errors
    /// `Unsafe` where a server listens, or something else is in the way; `Io`.
    pub fn unix(path: &Path) -> VaultResult<Self> {
        let io = |error| VaultError::io("listening on", path, error);
        let path = std::path::absolute(path).map_err(io)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        // Two servers that find the same dead socket must not remove each other's new one.
        let folder = File::open(folder).map_err(io)?;
        folder.lock().map_err(io)?;
        let bound = match bind_private(&path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                remove_dead(&path)?;
                bind_private(&path)
            }
            bound => bound,
        };
        let listener = bound.and_then(|bound| {
            bound.set_nonblocking(true)?;
            UnixListener::from_std(bound)
        });
        Ok(Self::Unix { listener: listener.map_err(io)?, path })
    }

    /// Listens on a port of the loopback interface.
    ///
    /// # Errors
    /// `Unsafe` for any other; `Io`.
    pub async fn tcp(address: SocketAddr) -> VaultResult<Self> {
        if !address.ip().is_loopback() {
            return Err(VaultError::Unsafe(format!(
                "{address}: only the loopback interface is listened on, such as 127.0.0.1:10809: NBD knows neither \
                 passwords nor, here, encryption. To reach it from another machine, forward the port or the socket through ssh"
            )));
        }
        let listener = TcpListener::bind(address).await;
        Ok(Self::Tcp(
            listener
                .map_err(|error| VaultError::io("listening on", Path::new(&address.to_string()), error))?,
        ))
    }

    /// What clients call it.
    ///
    /// # Errors
    /// `Io`.
    pub fn uri(&self) -> VaultResult<String> {
        match self {
            Self::Unix { path, .. } => Ok(format!("nbd+unix:///?socket={}", escaped(path))),
            Self::Tcp(listener) => {
                let address = listener.local_addr();
                let address =
                    address.map_err(|error| VaultError::io("listening on", Path::new("a port"), error))?;
                Ok(format!("nbd://{address}"))
            }
        }
    }

    /// Waits for a client.
    pub async fn accept(&self) -> io::Result<Halves> {
        match self {
            Self::Unix { listener, .. } => {
                let (reader, writer) = listener.accept().await?.0.into_split();
                Ok((Box::new(reader), Box::new(writer)))
            }
            Self::Tcp(listener) => {
                let stream = listener.accept().await?.0;
                stream.set_nodelay(true)?;
                let (reader, writer) = stream.into_split();
                Ok((Box::new(reader), Box::new(writer)))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path, .. } = self
            && let Err(error) = fs::remove_file(&*path)
        {
            warn!(path = %path.display(), %error, "the socket is left behind");
        }
    }
}

/// Binds a socket that only this user may connect to, from its first moment on.
fn bind_private(path: &Path) -> io::Result<StdUnixListener> {
    let before = umask(Mode::RWXG | Mode::RWXO);
    let bound = StdUnixListener::bind(path);
    umask(before);
    bound
}

/// Removes a socket that nobody listens on.
fn remove_dead(path: &Path) -> VaultResult<()> {
    let io = |error| VaultError::io("listening on", path, error);
    if !fs::symlink_metadata(path).map_err(io)?.file_type().is_socket() {
        return Err(VaultError::Unsafe(format!(
            "{}: exists, and is no socket; choose another name",
            path.display()
        )));
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            info!(path = %path.display(), "removed the socket that a killed server left");
            fs::remove_file(path).map_err(io)
        }
        _ => Err(VaultError::Unsafe(format!(
            "{}: another server listens there; stop it, or choose another name",
            path.display()
        ))),
    }
}

/// A path as a part of a URI.
fn escaped(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_in_uris() {
        assert_eq!(escaped(Path::new("/run/a b/ü&?.sock")), "/run/a%20b/%C3%BC%26%3F.sock");
    }

    #[tokio::test]
    async fn dead_sockets_are_replaced_and_live_ones_are_not() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::unix(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0, "for nobody but its owner");
        assert!(matches!(Listener::unix(&path), Err(VaultError::Unsafe(_))), "in use");
        drop(listener);
        assert!(!path.exists(), "removed");
        // What a killed server leaves: the socket without its owner.
        drop(StdUnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::unix(&path).unwrap());
        fs::write(&path, b"data").unwrap();
        assert!(matches!(Listener::unix(&path), Err(VaultError::Unsafe(_))), "no socket");
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[tokio::test]
    async fn only_loopback_is_listened_on() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:10809"] {
            let refused = Listener::tcp(address.parse().unwrap()).await;
            assert!(matches!(refused, Err(VaultError::Unsafe(_))), "{address}");
        }
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert!(listener.uri().unwrap().starts_with("nbd://127.0.0.1:"));
    }
}
