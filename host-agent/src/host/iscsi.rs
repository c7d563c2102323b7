//! Logical units of iSCSI (RFC 7143): `iscsi://PORTAL[:PORT]/TARGET/LUN` through qemu's initiator (libiscsi), which needs nothing of the
//! kernel; `iscsi-kernel://…` through the kernel's (open-iscsi).
//!
//! Invariant: a session of the kernel's that was there before is used and left; one that was made for a backup ends with it, or when the
//! next one finds that its process was killed.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use strongroom_vault::backup::Source;
use strongroom_vault::{VaultError, VaultResult};
use tracing::warn;

use super::tools::{Tool, is_plain, wait_for};
use super::{HostBackend, Leave, Place, Reading, Snapshot, SnapshotRequest, owner, qemu};

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
        let session = if self.has_session()? { None } else { Some(Session::begin(self, notes)?) };
        wait_for(&device)?;
        // A logical unit can't be made to stand still from here.
        let source = Source::open(&device)?.unchanging()?.named(Path::new(&self.name));
        let mut snapshot = Snapshot::new(source, Reading::Remote);
        snapshot.leave = Leave::with(move |_| session.map_or(Ok(()), Session::end));
        Ok(snapshot)
    }

    /// Whether the kernel is connected to the target by itself.
    fn has_session(&self) -> VaultResult<bool> {
        match ISCSIADM.run(&["-m", "session"]) {
            // tcp: [1] 10.0.0.5:3260,1 iqn.2026-01.org.example:disk0 (non-flash)
            Ok(told) => Ok(told.lines().any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let portal = words.get(2).and_then(|word| word.split(',').next());
                portal == Some(&self.portal) && words.get(3) == Some(&self.target.as_str())
            })),
            Err(error @ VaultError::Invalid(_)) => Err(error),
            // It fails where there is none at all.
            Err(_) => Ok(false),
        }
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
        let secret = self.chap.as_ref().map(|chap| qemu::secret("chap", &chap.password_file));
        let open = qemu::Open::with_options(Path::new(&self.name), &self.options(), secret.as_deref(), None)?;
        let source = Source::device(Path::new(&self.name), Box::new(open));
        Ok(Snapshot::new(source, Reading::Remote))
    }
}

/// A session of the kernel's that was made for a backup.
struct Session {
    portal: String,
    target: String,
    /// Says so, for whoever comes after a kill.
    note: PathBuf,
    /// Whether the kernel's tools were told of the target for it.
    made: bool,
    /// Whether there may be a session.
    begun: bool,
    ended: bool,
}

/// What the names of notes begin with.
const NOTE: &str = "iscsi-session-";
/// The word in them where the kernel's tools did not know the target before.
const MADE: &str = "made";

impl Session {
    fn begin(unit: &Iscsi, notes: &Path) -> VaultResult<Self> {
        let (portal, target) = (unit.portal.clone(), unit.target.clone());
        let note = notes.join(format!("{NOTE}{}", owner::mine()));
        let mut session = Self { portal, target, note, made: false, begun: false, ended: false };
        // What is known of it already is somebody else's, and is neither changed nor removed.
        session.made = session.node(&[]).is_err();
        let made = if session.made { MADE } else { "" };
        let about = format!("{} {} {made}", session.portal, session.target);
        let io = |error| VaultError::io("noting a session in", &session.note, error);
        std::fs::create_dir_all(notes).and_then(|()| std::fs::write(&session.note, about)).map_err(io)?;
        if session.made {
            session.node(&["-o", "new"])?;
            if let Some(chap) = &unit.chap {
                session.authenticate(chap)?;
            }
        }
        session.node(&["--login"])?;
        session.begun = true;
        Ok(session)
    }

    fn authenticate(&self, Chap { user, password_file }: &Chap) -> VaultResult<()> {
        let password = std::fs::read_to_string(password_file)
            .map_err(|error| VaultError::io("reading", password_file, error))?;
        let password = password.trim_end_matches(['\r', '\n']);
        for (name, value) in [("authmethod", "CHAP"), ("username", user), ("password", password)] {
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

    fn end(mut self) -> VaultResult<()> {
        self.leave()
    }

    fn leave(&mut self) -> VaultResult<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let out = if self.begun { self.node(&["--logout"]) } else { Ok(()) };
        let gone = if self.made { self.node(&["-o", "delete"]) } else { Ok(()) };
        let _ = std::fs::remove_file(&self.note);
        out.and(gone)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = self.leave() {
            warn!(%error, target = self.target, "a session stays; the next backup of iSCSI ends it");
        }
    }
}

/// Ends sessions whose process was killed.
pub fn clean_up(notes: &Path) {
    for entry in std::fs::read_dir(notes).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(mark) = name.to_str().and_then(|name| name.strip_prefix(NOTE)) else { continue };
        let Ok(about) = std::fs::read_to_string(entry.path()) else { continue };
        let mut words = about.split(' ');
        let (Some(portal), Some(target)) = (words.next(), words.next()) else { continue };
        if owner::is_gone(mark) {
            warn!(portal, target, "ending the session that a killed backup left");
            let made = words.next() == Some(MADE);
            let (portal, target, note) = (portal.to_owned(), target.to_owned(), entry.path());
            // It may not have come as far as a session.
            drop(Session { portal, target, note, made, begun: true, ended: false });
        }
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
