//! Key-encryption keys: from a key file, a passphrase, or AWS KMS.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use strongroom_format::ids::TargetId;
use strongroom_format::keyring::{Kek, KekDescriptor, Purpose, Wrap};
use strongroom_format::secrets::Secret32;
use strongroom_vault::target::KekProvider;
use strongroom_vault::{Context, VaultError, VaultResult};
use zeroize::Zeroizing;

/// The word before the key in a key file.
const KEY_FILE_WORD: &str = "strongroom-key-v1";

/// A key file: 256 random bits that whoever holds the file can open the target with.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    create: bool,
}

impl KeyFile {
    /// Uses a key file that is there.
    pub const fn existing(path: PathBuf) -> Self {
        Self { path, create: false }
    }

    /// Makes the key file when it is first needed, if it is not there.
    pub const fn created(path: PathBuf) -> Self {
        Self { path, create: true }
    }

    fn read(&self) -> VaultResult<Secret32> {
        let text = std::fs::read_to_string(&self.path)
            .map(Zeroizing::new)
            .map_err(|error| VaultError::io("reading key file", &self.path, error))?;
        parse_key(&text).ok_or_else(|| {
            VaultError::Invalid(format!(
                "{}: no key file: it has no line '{KEY_FILE_WORD} <64 hexadecimal digits>'",
                self.path.display()
            ))
        })
    }

    fn read_or_create(&self, context: &Context) -> VaultResult<Secret32> {
        if self.create && !self.path.exists() {
            let secret = context.entropy.with(Secret32::random);
            write_secret_file(&self.path, &key_file_text(&secret))?;
            return Ok(secret);
        }
        self.read()
    }
}

/// Finds the key in the text of a key file or a recovery kit.
pub fn parse_key(text: &str) -> Option<Secret32> {
    let digits: Zeroizing<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| line.strip_prefix(KEY_FILE_WORD))
        .map(|rest| rest.split_whitespace().collect::<String>())
        .map(Zeroizing::new)?;
    let bytes = Zeroizing::new(hex::decode(digits.as_bytes()).ok()?);
    Some(Secret32::from_bytes(bytes.as_slice().try_into().ok()?))
}

/// The line of a key, in groups of eight digits that people can copy by hand.
pub fn key_line(secret: &Secret32) -> Zeroizing<String> {
    let mut line = Zeroizing::new(KEY_FILE_WORD.to_owned());
    for (n, byte) in secret.expose().iter().enumerate() {
        if n % 4 == 0 {
            line.push(' ');
        }
        line.push_str(&format!("{byte:02x}"));
    }
    line
}

fn key_file_text(secret: &Secret32) -> Zeroizing<String> {
    Zeroizing::new(format!(
        "# Strongroom key file. Whoever has it can read the backups of its target; without it nobody can.\n\
         # Keep a copy in a safe place, away from the target: `strongroom target export-recovery-kit`.\n{}\n",
        key_line(secret).as_str()
    ))
}

/// Writes a file that only its owner can read, and that was not there.
pub fn write_secret_file(path: &Path, text: &str) -> VaultResult<()> {
    let io = |error| VaultError::io("writing", path, error);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)
}

#[async_trait::async_trait]
impl KekProvider for KeyFile {
    async fn create(&self, _: TargetId, _: Purpose, context: &Context) -> VaultResult<(Kek, KekDescriptor)> {
        Ok(Kek::from_key_file(&self.read_or_create(context)?))
    }

    async fn recover(&self, _: TargetId, wrap: &Wrap) -> VaultResult<Option<Kek>> {
        let (kek, descriptor) = Kek::from_key_file(&self.read()?);
        Ok((wrap.kek == descriptor).then_some(kek))
    }
}

/// A key that is in memory only: that of a recovery kit being made.
#[derive(Debug)]
pub struct KeyInHand(pub Secret32);

#[async_trait::async_trait]
impl KekProvider for KeyInHand {
    async fn create(&self, _: TargetId, _: Purpose, _: &Context) -> VaultResult<(Kek, KekDescriptor)> {
        Ok(Kek::from_key_file(&self.0))
    }

    async fn recover(&self, _: TargetId, wrap: &Wrap) -> VaultResult<Option<Kek>> {
        let (kek, descriptor) = Kek::from_key_file(&self.0);
        Ok((wrap.kek == descriptor).then_some(kek))
    }
}

/// A passphrase, stretched by Argon2id.
pub struct Passphrase {
    text: Zeroizing<String>,
    /// The key derived last: stretching takes a while, and all wraps of a keyring share their parameters.
    last: Mutex<Option<(KekDescriptor, Kek)>>,
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

impl Passphrase {
    /// Takes a passphrase.
    ///
    /// # Errors
    /// `Invalid` if it is empty.
    pub fn new(text: Zeroizing<String>) -> VaultResult<Self> {
        if text.is_empty() {
            return Err(VaultError::Invalid("the passphrase is empty".to_owned()));
        }
        Ok(Self { text, last: Mutex::default() })
    }

    /// Takes the first line of a file.
    ///
    /// # Errors
    /// `Io`; `Invalid` if it is empty.
    pub fn read(path: &Path) -> VaultResult<Self> {
        let text = std::fs::read_to_string(path)
            .map(Zeroizing::new)
            .map_err(|error| VaultError::io("reading passphrase file", path, error))?;
        Self::new(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
    }

    fn derive(&self, descriptor: &KekDescriptor) -> VaultResult<Kek> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, kek)) = last.as_ref().filter(|(before, _)| before == descriptor) {
            return Ok(kek.clone());
        }
        let kek = Kek::from_passphrase(self.text.as_bytes(), descriptor)
            .map_err(|problem| problem.of("keyring"))?;
        *last = Some((descriptor.clone(), kek.clone()));
        Ok(kek)
    }
}

#[async_trait::async_trait]
impl KekProvider for Passphrase {
    async fn create(&self, _: TargetId, _: Purpose, context: &Context) -> VaultResult<(Kek, KekDescriptor)> {
        let before = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((descriptor, kek)) = before {
            return Ok((kek, descriptor));
        }
        let descriptor = context.entropy.with(Kek::new_passphrase_descriptor);
        Ok((self.derive(&descriptor)?, descriptor))
    }

    async fn recover(&self, _: TargetId, wrap: &Wrap) -> VaultResult<Option<Kek>> {
        match wrap.kek {
            KekDescriptor::Passphrase { .. } => self.derive(&wrap.kek).map(Some),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files_read_back() {
        let secret = Secret32::from_bytes(std::array::from_fn(|n| u8::try_from(n).unwrap()));
        let text = key_file_text(&secret);
        assert_eq!(parse_key(&text).unwrap().expose(), secret.expose());
        for bad in [
            "",
            "strongroom-key-v1",
            "strongroom-key-v1 00",
            "strongroom-key-v1 zz",
            "# strongroom-key-v1 00",
            "strongroom-key-v1 é",
        ] {
            assert!(parse_key(bad).is_none(), "{bad}");
        }
    }
}
