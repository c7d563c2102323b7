//! Logical units of iSCSI (RFC 7143): `iscsi://PORTAL[:PORT]/TARGET/LUN` through qemu's initiator (libiscsi), which needs nothing of the
//! kernel; `iscsi-kernel://…` through the kernel's (open-iscsi).
//!
//! Invariant: a session of the kernel's that was there before is used and left; one that was made for backups ends with the last of them, or
//! when the next one finds that its process was killed; and none ends while something else on this host uses its devices.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::sleep;
use std::time::Duration;

use serde::Deserialize;
use strongroom_vault::backup::Source;
use strongroom_vault::{VaultError, VaultResult};
use tempfile::NamedTempFile;
use tracing::warn;
use zeroize::Zeroizing;

use super::notes::{self, Note};
use super::tools::{Tool, is_plain, wait_for};
use super::{HostBackend, Leave, Place, Reading, Snapshot, SnapshotRequest, qemu};

const ISCSIADM: Tool = Tool { name: "iscsiadm", package: "the package open-iscsi or iscsi-initiator-utils" };
/// The port where none is given (RFC 7143, 12.8).
const PORT: u16 = 3260;

/// Whom a target lets in (CHAP, RFC 7143, 12.1).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Chap {
    /// The user.
    pub user: String,
    /// The file that holds the password, and nothing else.
    pub password_file: PathBuf,
}

/// Whose initiator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Initiator {
    Qemu,
    Kernel,
}

/// A logical unit.
#[derive(Debug, Clone)]
pub struct Iscsi {
    name: String,
    initiator: Initiator,
    /// Address and port.
    portal: String,
    target: String,
    lun: u32,
    chap: Option<Chap>,
}

impl Iscsi {
    /// Reads the address of a logical unit; `None` if it is something else.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let (initiator, rest) = match (text.strip_prefix("iscsi://"), text.strip_prefix("iscsi-kernel://")) {
            (Some(rest), _) => (Initiator::Qemu, rest),
            (_, Some(rest)) => (Initiator::Kernel, rest),
            _ => return Ok(None),
        };
        let form = "a logical unit is written iscsi://PORTAL[:PORT]/TARGET/LUN";
        let parts: Vec<&str> = rest.split('/').collect();
        let [portal, target, lun] = parts.as_slice() else { return Err(form.to_owned()) };
        let lun = lun.parse().map_err(|_| form.to_owned())?;
        let is_portal = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
        if portal.is_empty() || portal.starts_with('-') || !portal.bytes().all(is_portal) || !is_plain(target)
        {
            return Err(format!("{form}, such as iscsi://10.0.0.5/iqn.2026-01.org.example:disk0/1"));
        }
        let has_port = portal.rsplit_once(':').is_some_and(|(host, port)| {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        });
        let portal = if has_port { (*portal).to_owned() } else { format!("{portal}:{PORT}") };
        let target = (*target).to_owned();
        Ok(Some(Self { name: text.to_owned(), initiator, portal, target, lun, chap: None }))
    }

    /// How qemu is told of it.
    fn options(&self) -> String {
        let Self { portal, target, lun, .. } = self;
        let chap = self.chap.as_ref().map_or_else(String::new, |chap| {
            format!(",file.user={},file.password-secret=chap", qemu::escaped(&chap.user))
        });
        format!(
            "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={portal},file.target={target},file.lun={lun}{chap}"
        )
    }

    fn kernel_snapshot(&self, notes: &Path) -> VaultResult<Snapshot> {
        clean_up(notes);
        let device = PathBuf::from(format!(
            "/dev/disk/by-path/ip-{}-iscsi-{}-lun-{}",
            self.portal, self.target, self.lun
        ));
        let session = Session::join(self, notes)?;
        wait_for(&device)?;
        // A logical unit can't be made to stand still from here.
        let source = Source::open(&device)?.unchanging()?.named(Path::new(&self.name));
        let mut snapshot = Snapshot::new(source, Reading::Remote);
        snapshot.leave = Leave::with(move |_| {
            drop(session);
            Ok(())
        });
        Ok(snapshot)
    }
}

/// Whether the kernel is connected to a target.
fn has_session(portal: &str, target: &str) -> VaultResult<bool> {
    match ISCSIADM.run(&["-m", "session"]) {
        // tcp: [1] 10.0.0.5:3260,1 iqn.2026-01.org.example:disk0 (non-flash)
        Ok(told) => Ok(told.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let found = words.get(2).and_then(|word| word.split(',').next());
            found == Some(portal) && words.get(3) == Some(&target)
        })),
        Err(error @ VaultError::Invalid(_)) => Err(error),
        // It fails where there is none at all.
        Err(_) => Ok(false),
    }
}

impl HostBackend for Iscsi {
    fn place(&self) -> Place<'_> {
        Place::Name(&self.name)
    }

    fn create_snapshot(&self, request: &SnapshotRequest) -> VaultResult<Snapshot> {
        let chap = request.chap.get(&self.target).cloned();
        let unit = Self { chap, ..self.clone() };
        match self.initiator {
            Initiator::Kernel => unit.kernel_snapshot(&request.notes),
            Initiator::Qemu => unit.snapshot(),
        }
    }
}

impl Iscsi {
    fn snapshot(&self) -> VaultResult<Snapshot> {
        qemu::clean_up();
        // qemu takes a file as it is, and most end with a line.
        let password = self.chap.as_ref().map(password_file).transpose()?;
        let secret = password.as_ref().map(|file| qemu::secret("chap", file.path()));
        let open = qemu::Open::with_options(Path::new(&self.name), &self.options(), secret.as_deref(), None)?;
        let source = Source::device(Path::new(&self.name), Box::new(open));
        Ok(Snapshot::new(source, Reading::Remote))
    }
}

/// The password alone, in a file that this user alone may read, until this is dropped.
fn password_file(chap: &Chap) -> VaultResult<NamedTempFile> {
    let io = |error| VaultError::io("making", &std::env::temp_dir(), error);
    let mut file = NamedTempFile::new().map_err(io)?;
    file.write_all(chap.password()?.as_bytes()).map_err(io)?;
    Ok(file)
}

impl Chap {
    fn password(&self) -> VaultResult<Zeroizing<String>> {
        let read = std::fs::read_to_string(&self.password_file).map(Zeroizing::new);
        let password = read.map_err(|error| VaultError::io("reading", &self.password_file, error))?;
        Ok(Zeroizing::new(password.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

/// A session of the kernel's that was made for backups, which share it.
#[derive(Debug)]
struct Session {
    portal: String,
    target: String,
    /// Says so, for whoever comes after a kill.
    note: Option<Note>,
    /// Whether the kernel's tools were told of the target for it.
    made: bool,
    /// Whether there is a session.
    begun: bool,
    /// Whether others can find it.
    shared: bool,
}

/// What notes are called.
const NOTE: &str = "iscsi-session";
/// The word in them where the kernel's tools did not know the target before.
const MADE: &str = "made";
/// Sessions that were made for backups, by portal and target. Held while one begins or ends.
static SESSIONS: Mutex<BTreeMap<(String, String), Weak<Session>>> = Mutex::new(BTreeMap::new());

impl Session {
    /// Takes part in the session that other backups have, or makes one; `None` where there is one that is somebody else's.
    fn join(unit: &Iscsi, notes: &Path) -> VaultResult<Option<Arc<Self>>> {
        let key = (unit.portal.clone(), unit.target.clone());
        loop {
            let mut sessions = SESSIONS.lock().unwrap_or_else(PoisonError::into_inner);
            match sessions.get(&key).map(Weak::upgrade) {
                Some(Some(session)) => return Ok(Some(session)),
                // It is about to end.
                Some(None) => {
                    drop(sessions);
                    sleep(Duration::from_millis(20));
                }
                None if has_session(&unit.portal, &unit.target)? => return Ok(None),
                None => {
                    let mut session = Self::begin(unit, notes)?;
                    session.shared = true;
                    let session = Arc::new(session);
                    sessions.insert(key, Arc::downgrade(&session));
                    return Ok(Some(session));
                }
            }
        }
    }

    fn begin(unit: &Iscsi, notes: &Path) -> VaultResult<Self> {
        let (portal, target) = (unit.portal.clone(), unit.target.clone());
        let mut session = Self { portal, target, note: None, made: false, begun: false, shared: false };
        // What is known of it already is somebody else's, and is neither changed nor removed.
        let is_known = session.node(&[]).is_ok();
        let made = if is_known { "" } else { MADE };
        let about = format!("{} {} {made}", session.portal, session.target);
        session.note = Some(Note::write(notes, NOTE, &about)?);
        if !is_known {
            session.made = true;
            session.node(&["-o", "new"])?;
            if let Some(chap) = &unit.chap {
                session.authenticate(chap)?;
            }
        }
        session.node(&["--login"])?;
        session.begun = true;
        Ok(session)
    }

    fn authenticate(&self, chap: &Chap) -> VaultResult<()> {
        let password = chap.password()?;
        for (name, value) in [("authmethod", "CHAP"), ("username", &chap.user), ("password", &password)] {
            self.set(&format!("node.session.auth.{name}"), value)?;
        }
        Ok(())
    }

    fn node(&self, how: &[&str]) -> VaultResult<()> {
        ISCSIADM.run(&[&["-m", "node", "-T", &self.target, "-p", &self.portal], how].concat()).map(|_| ())
    }

    fn set(&self, name: &str, value: &str) -> VaultResult<()> {
        let args =
            ["-m", "node", "-T", &self.target, "-p", &self.portal, "-o", "update", "-n", name, "-v", value];
        ISCSIADM.run_hiding(&args, Some(value)).map(|_| ())
    }

    /// Ends it, unless somebody has come to use one of its devices meanwhile.
    fn leave(&self) -> VaultResult<()> {
        if self.begun && self.is_held() {
            warn!(target = self.target, "the session stays: something on this host uses one of its devices");
            return Ok(());
        }
        let out = if self.begun { self.node(&["--logout"]) } else { Ok(()) };
        let gone = if self.made { self.node(&["-o", "delete"]) } else { Ok(()) };
        out.and(gone)
    }

    /// Whether one of its devices is mounted, or part of something.
    fn is_held(&self) -> bool {
        let prefix = format!("ip-{}-iscsi-{}-lun-", self.portal, self.target);
        let entries = std::fs::read_dir("/dev/disk/by-path").into_iter().flatten().flatten();
        let mut units = entries.filter(|entry| {
            let name = entry.file_name();
            name.to_str().and_then(|name| name.strip_prefix(&prefix)).is_some_and(|lun| !lun.contains('-'))
        });
        // The kernel refuses it while anything in it is claimed (open(2), O_EXCL).
        let exclusive = i32::try_from(rustix::fs::OFlags::EXCL.bits()).unwrap_or(0);
        units.any(|unit| {
            let opened = OpenOptions::new().read(true).custom_flags(exclusive).open(unit.path());
            opened.is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut sessions = self.shared.then(|| SESSIONS.lock().unwrap_or_else(PoisonError::into_inner));
        let left = self.leave();
        if let Some(sessions) = &mut sessions {
            sessions.remove(&(self.portal.clone(), self.target.clone()));
        }
        match (left, self.note.take()) {
            (Ok(()), Some(note)) => note.remove(),
            (Ok(()), None) => {}
            (Err(error), _) => {
                warn!(%error, target = self.target, "a session stays; the next backup of iSCSI ends it");
            }
        }
    }
}

/// Ends sessions whose process was killed.
pub fn clean_up(notes: &Path) {
    for left in notes::left(notes, NOTE) {
        let mut words = left.text.split(' ');
        let (Some(portal), Some(target)) = (words.next(), words.next()) else { continue };
        let active = has_session(portal, target).unwrap_or_default();
        let was_made = words.next() == Some(MADE);
        let (portal, target) = (portal.to_owned(), target.to_owned());
        warn!(portal, target, "ending the session that a killed backup left");
        // Since the machine was started anew, one that is there is somebody else's.
        let (begun, made) = (active && left.same_boot, was_made && (left.same_boot || !active));
        let mut session = Session { portal, target, note: None, made, begun, shared: false };
        // It may not have come as far as that.
        session.made = made && session.node(&[]).is_ok();
        match session.leave() {
            Ok(()) => left.remove(),
            Err(error) => warn!(%error, "it stays"),
        }
        // Done.
        std::mem::forget(session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_meant() {
        let parsed = |text: &str| Iscsi::parse(text).unwrap().unwrap();
        let plain = parsed("iscsi://10.0.0.5/iqn.2026-01.org.example:disk0/1");
        assert_eq!((plain.portal.as_str(), plain.lun), ("10.0.0.5:3260", 1));
        assert_eq!(parsed("iscsi://[fe80::1]:860/iqn.x:y/0").portal, "[fe80::1]:860");
        assert_eq!(parsed("iscsi://[fe80::1]/iqn.x:y/0").portal, "[fe80::1]:3260");
        assert_eq!(parsed("iscsi-kernel://san:3261/iqn.x:y/0").portal, "san:3261");
        assert!(Iscsi::parse("/dev/sda").unwrap().is_none());
        for text in [
            "iscsi://host",
            "iscsi://host/iqn/x",
            "iscsi://host/iqn/1/2",
            "iscsi:///iqn/1",
            "iscsi://-h/iqn/1",
            "iscsi://host/iqn,file.lun=2/1",
            "iscsi://ho,st/iqn/1",
        ] {
            assert!(Iscsi::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_qemu_is_told_can_not_be_widened_by_names() {
        let chap = Chap { user: "a,driver=x".to_owned(), password_file: PathBuf::from("/p") };
        let unit = Iscsi { chap: Some(chap), ..Iscsi::parse("iscsi://h/iqn.x:y/3").unwrap().unwrap() };
        assert!(unit.options().ends_with(",file.lun=3,file.user=a,,driver=x,file.password-secret=chap"));
    }
}
