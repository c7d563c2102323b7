//! The console of `up`: on the loopback interface, for whoever can read its token.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rand::Rng;
use serde_json::json;
use strongroom_console::{Access, Limits, Role, router};
use strongroom_fleet::Service;
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

/// A console that listens.
pub struct Console {
    listener: TcpListener,
    address: SocketAddr,
    token: String,
    /// Where the token is; `None` if it goes with this process.
    token_file: Option<PathBuf>,
}

impl Console {
    /// Listens, with the token that this host keeps.
    ///
    /// # Errors
    /// `Invalid` for an address that others could reach; `Io`.
    pub async fn open(settings: &Settings, address: Option<SocketAddr>) -> VaultResult<Self> {
        let address = address.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        if !address.ip().is_loopback() {
            return Err(VaultError::Invalid(format!(
                "{address}: the console listens on the loopback interface only, such as 127.0.0.1:8464, as it has no TLS of its own; to \
                 reach it from elsewhere, put a proxy that has before it, or use `ssh -L`"
            )));
        }
        let io = |error| VaultError::io("listening on", Path::new(&address.to_string()), error);
        let listener = TcpListener::bind(address).await.map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        let token_file = settings.global.state_dir.as_ref().map(|folder| folder.join(TOKEN_FILE));
        let token = match &token_file {
            Some(file) => token(file)?,
            None => new_token()?,
        };
        Ok(Self { listener, address, token, token_file })
    }

    /// Says where it is: with the token to people who see it, and to no log.
    pub fn tell(&self, output: Output) {
        let page = format!("http://{}", self.address);
        let link = io::stdout().is_terminal().then(|| format!("{page}/login?token={}", self.token));
        let token_file = self.token_file.as_ref().map(|file| file.display().to_string());
        let said = match (&link, &token_file) {
            (Some(link), _) => format!("console: {link}"),
            (None, Some(file)) => format!("console: {page}/login?token=…, with the token in {file}"),
            (None, None) => format!(
                "console: {page}, which nobody has the token of: give --state-dir, where it can be kept"
            ),
        };
        output.result(
            &said,
            &json!({ "event": "console", "page": page, "token_file": token_file, "link": link }),
        );
        info!(console = page, "the console is ready");
    }

    /// Serves it until `stop` says so.
    pub async fn serve(self, service: Service, mut stop: watch::Receiver<bool>) {
        let mut secret = [0; 32];
        service.home.target().context.entropy.with(|rng| rng.fill_bytes(&mut secret));
        let access = Access::new([(self.token.as_str(), Role::Operator)], &secret);
        let console = router(service, access, Limits::default());
        // Whoever could say so is gone: that is the same.
        let stopped = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        http::serve(vec![self.listener], console, Bounds::default(), stopped).await;
    }
}

/// The token in a file; a new one if there is none.
fn token(file: &Path) -> VaultResult<String> {
    let io = |error| VaultError::io("reading the console's token from", file, error);
    if !file.exists() {
        let folder = file.parent().unwrap_or(file);
        std::fs::create_dir_all(folder).map_err(io)?;
        // For its owner alone, and there as a whole or not at all.
        let mut made = NamedTempFile::new_in(folder).map_err(io)?;
        writeln!(made, "{}", new_token()?).and_then(|()| made.as_file().sync_all()).map_err(io)?;
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

fn new_token() -> VaultResult<String> {
    let entropy = Entropy::from_source(&mut rand::rngs::SysRng)
        .map_err(|error| VaultError::Internal(format!("the system gives no randomness: {error}")))?;
    let mut bytes = [0_u8; 32];
    entropy.with(|rng| rng.fill_bytes(&mut bytes));
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

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
