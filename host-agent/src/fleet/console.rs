//! The console of `up`: on the loopback interface, for whoever can read its token.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rand::Rng;
use rustix::io::Errno;
use serde_json::json;
use strongroom_console::{Access, Limits, Role, Site, router};
use strongroom_fleet::Service;
use strongroom_format::ids::TimestampMs;
use strongroom_vault::{Entropy, VaultError, VaultResult};
use tempfile::NamedTempFile;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;

use super::http::{self, Bounds};
use crate::open::Settings;
use crate::output::Output;

/// The file of the token, in the folder of what this host keeps.
const TOKEN_FILE: &str = "console-token";
/// The longest token, bytes.
const MAX_TOKEN_BYTES: u64 = 200;

/// How long the code of the link is good for, milliseconds: until whoever started it has opened the link.
const CODE_MS: u64 = 10 * 60_000;
/// Free ports that are tried, as one may be taken on one of the two addresses only.
const MAX_TRIES: u32 = 16;

/// A console that listens.
pub struct Console {
    listeners: Vec<TcpListener>,
    port: u16,
    token: String,
    /// Where the token is; `None` if it goes with this process.
    token_file: Option<PathBuf>,
    /// What is in the link, where somebody sees that.
    code: Option<String>,
}

impl Console {
    /// Listens, with the token that this host keeps.
    ///
    /// # Errors
    /// `Invalid` for an address that others could reach; `Io`.
    pub async fn open(settings: &Settings, address: Option<SocketAddr>) -> VaultResult<Self> {
        let address = address.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        if address.ip() != Ipv4Addr::LOCALHOST && address.ip() != Ipv6Addr::LOCALHOST {
            return Err(VaultError::Invalid(format!(
                "{address}: the console listens on the loopback interface only, such as 127.0.0.1:8464, as it has no TLS of its own; to \
                 reach it from elsewhere, put a proxy that has before it, or use `ssh -L`"
            )));
        }
        let io = |error| VaultError::io("listening on", Path::new(&address.to_string()), error);
        let (listeners, port) = listen(address.port()).await.map_err(io)?;
        let token_file = settings.global.state_dir.as_ref().map(|folder| folder.join(TOKEN_FILE));
        let token = match &token_file {
            Some(file) => token(file)?,
            None => random::<32>()?,
        };
        let code = if io::stdout().is_terminal() { Some(random::<16>()?) } else { None };
        Ok(Self { listeners, port, token, token_file, code })
    }

    fn site(&self) -> Site {
        Site::new(&self.token, self.port)
    }

    /// Says where it is: with a way in to people who see it, and to no log.
    pub fn tell(&self, output: Output) {
        let page = self.site().origin();
        let link = self.code.as_ref().map(|code| format!("{page}/login#{code}"));
        let token_file = self.token_file.as_ref().map(|file| file.display().to_string());
        let later = match &token_file {
            Some(file) => format!("takes the token in {file}"),
            None => "takes a token that nobody has: give --state-dir, where it can be kept".to_owned(),
        };
        let said = match &link {
            Some(link) => format!(
                "console: {link}\nThe link works once, within {} minutes; after that, {page}/login {later}.",
                CODE_MS / 60_000
            ),
            None => format!("console: {page}/login, which {later}"),
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        output.result(
            &said,
            &json!({ "event": "console", "page": page, "address": address, "token_file": token_file, "link": link }),
        );
        info!(%address, "the console is ready");
    }

    /// Serves it until `stop` says so.
    pub async fn serve(self, service: Service, mut stop: watch::Receiver<bool>) {
        let mut secret = [0; 32];
        service.home.target().context.entropy.with(|rng| rng.fill_bytes(&mut secret));
        let mut access = Access::new([(self.token.as_str(), Role::Operator)], &secret);
        if let Some(code) = &self.code {
            let until = TimestampMs(service.home.now().0.saturating_add(CODE_MS));
            access = access.with_code(code, &self.token, until);
        }
        let console = self.site().guard(router(service, access, Limits::default()));
        // Whoever could say so is gone: that is the same.
        let stopped = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        http::serve(self.listeners, console, Bounds::default(), stopped).await;
    }
}

/// Listens on a port of both loopback addresses, as browsers take either for a name below `localhost`: whoever else listened on one of them
/// would be shown what is meant for the console.
async fn listen(port: u16) -> io::Result<(Vec<TcpListener>, u16)> {
    let mut tries = 0;
    loop {
        tries += 1;
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let taken = first.local_addr()?.port();
        match TcpListener::bind((Ipv6Addr::LOCALHOST, taken)).await {
            Ok(second) => return Ok((vec![first, second], taken)),
            Err(error) if has_no_ipv6(&error) => return Ok((vec![first], taken)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && port == 0 && tries < MAX_TRIES => {}
            Err(error) => return Err(error),
        }
    }
}

fn has_no_ipv6(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT))
}

/// The token in a file; a new one if there is none.
fn token(file: &Path) -> VaultResult<String> {
    let io = |error| VaultError::io("reading the console's token from", file, error);
    if !file.exists() {
        let folder = file.parent().unwrap_or(file);
        std::fs::create_dir_all(folder).map_err(io)?;
        // For its owner alone, and there as a whole or not at all.
        let mut made = NamedTempFile::new_in(folder).map_err(io)?;
        writeln!(made, "{}", random::<32>()?).and_then(|()| made.as_file().sync_all()).map_err(io)?;
        match made.persist_noclobber(file) {
            Ok(_) => {}
            // Somebody else was first.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io(error.error)),
        }
    }
    let mut text = String::new();
    File::open(file)
        .and_then(|found| found.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text))
        .map_err(io)?;
    let token = text.trim();
    if text.len() as u64 <= MAX_TOKEN_BYTES
        && token.len() >= 32
        && token.bytes().all(|byte| byte.is_ascii_alphanumeric())
    {
        return Ok(token.to_owned());
    }
    Err(VaultError::Invalid(format!(
        "{}: this is no token of a console (32 letters and digits, or more); remove it, and the next start makes one",
        file.display()
    )))
}

/// So many bytes at random, in hexadecimal digits.
fn random<const BYTES: usize>() -> VaultResult<String> {
    let entropy = Entropy::from_source(&mut rand::rngs::SysRng)
        .map_err(|error| VaultError::Internal(format!("the system gives no randomness: {error}")))?;
    let mut bytes = [0_u8; BYTES];
    entropy.with(|rng| rng.fill_bytes(&mut bytes));
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Whoever listened on the other address would be shown the browser's session.
    #[tokio::test]
    async fn both_loopback_addresses_are_held() {
        let (listeners, port) = listen(0).await.unwrap();
        let addresses: Vec<SocketAddr> =
            listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        assert_eq!(addresses[0], SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        match std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
            Ok(other) => {
                assert_eq!(addresses[1..], [SocketAddr::from((Ipv6Addr::LOCALHOST, port))]);
                let taken = other.local_addr().unwrap().port();
                assert!(listen(taken).await.is_err(), "somebody else has the other one");
            }
            Err(error) => assert!(has_no_ipv6(&error) && addresses.len() == 1, "{error}"),
        }
    }

    #[test]
    fn a_token_is_made_once_and_kept_to_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state").join(TOKEN_FILE);
        let made = token(&file).unwrap();
        assert_eq!(made.len(), 64);
        assert_eq!(token(&file).unwrap(), made);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&file, "short").unwrap();
        assert!(token(&file).is_err());
    }
}
