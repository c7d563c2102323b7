//! A backup: what it added and shares, its restore, and the trash.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use askama::Template;
use axum::extract::{self, Extension, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use strongroom_fleet::message::Wanted;
use strongroom_fleet::settings::HOME;
use strongroom_fleet::text::{ago, bytes, time};
use strongroom_format::ids::BackupId;

use super::{ConfirmPage, Filled, InTarget, Pressed, Shown, ask, filled, in_target, key, show, some};
use crate::Console;
use crate::access::{Caller, Role};
use crate::fleet::{self, Fleet};
use crate::problem::Problem;

#[derive(Template)]
#[template(path = "backup.html")]
struct BackupPage<'a> {
    id: BackupId,
    volume: &'a str,
    facts: Vec<(&'static str, String)>,
    /// Of a thousand bytes of the volume, those that were stored for this backup.
    stored_permille: u64,
    may_change: bool,
    is_live: bool,
    hosts: Vec<String>,
    own_host: &'a str,
    length: String,
    logical_bytes: u64,
    expected: String,
    target: String,
    volume_in: String,
    in_target: String,
    key: String,
}

pub async fn backup(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    extract::Path(name): extract::Path<String>,
    Query(asked): Query<InTarget>,
) -> Shown {
    let id: BackupId = name.parse().map_err(|_| Problem::not_found("backup", &name))?;
    let fleet = Fleet::of_backup(&console.service, &console.seen, asked.target.as_deref(), id).await?;
    let root = match fleet.root(asked.target.as_deref()) {
        Some(Ok(root)) => root,
        Some(Err(reason)) => return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason).into()),
        None => return Err(Problem::not_found("target", asked.target.as_deref().unwrap_or(HOME)).into()),
    };
    let (volume, backup) = root.backup(id).ok_or_else(|| Problem::not_found("backup", &name))?;
    let shares = backup.logical_bytes.saturating_sub(backup.stored_bytes);
    let mut facts = vec![
        ("Made", format!("{} ({})", time(backup.created), ago(backup.created, fleet.now))),
        ("Length", bytes(backup.logical_bytes)),
        ("Added", format!("{} stored for it", bytes(backup.stored_bytes))),
        ("Shares", format!("{} with other backups, as zeros, or by compression", bytes(shares))),
        ("State", backup.trashed.map_or("live".to_owned(), |at| format!("in the trash since {}", time(at)))),
    ];
    if let Some(group) = backup.group {
        facts.push(("Group", format!("{} of {} backups", group.id, group.members)));
    }
    let own_host =
        fleet.line(volume, Some(asked.target.as_deref())).and_then(|line| line.host()).unwrap_or_default();
    let may_change = caller.role == Role::Operator;
    // Where a restore is offered.
    let pace = match may_change && backup.is_live() {
        true => fleet::restore_pace(&console.service, &console.seen).await,
        false => None,
    };
    let expected = match pace {
        Some(pace) => format!(
            "about {} at {} a second, the pace of the newest restore known here",
            duration(backup.logical_bytes / pace.max(1)),
            bytes(pace)
        ),
        None => "not known yet: no restore is known of here".to_owned(),
    };
    let permille = u128::from(backup.stored_bytes) * 1000;
    show(&BackupPage {
        id,
        volume,
        facts,
        stored_permille: permille
            .checked_div(u128::from(backup.logical_bytes))
            .and_then(|permille| u64::try_from(permille).ok())
            .unwrap_or(0)
            .min(1000),
        may_change,
        is_live: backup.is_live(),
        hosts: fleet.settings.hosts.keys().cloned().collect(),
        own_host,
        length: bytes(backup.logical_bytes),
        logical_bytes: backup.logical_bytes,
        expected,
        target: asked.target.clone().unwrap_or_default(),
        volume_in: in_target(Some(asked.target.as_deref().unwrap_or(HOME))),
        in_target: in_target(asked.target.as_deref()),
        key: key(&console),
    })
}

/// Some seconds, in their largest unit.
fn duration(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..120 => (seconds.max(1), "second"),
        120..7200 => (seconds / 60, "minute"),
        _ => (seconds / 3600, "hour"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// What the form of a restore says.
#[derive(Debug, Deserialize)]
pub struct Restored {
    key: String,
    host: String,
    destination: String,
    #[serde(default)]
    overwrite: bool,
    #[serde(default, deserialize_with = "super::named")]
    target: Option<String>,
    #[serde(default)]
    start: String,
    #[serde(default)]
    end: String,
}

impl Restored {
    /// The bytes it asks for; all if it says nothing of that.
    fn range(&self) -> Result<Option<(u64, u64)>, Problem> {
        let unprocessable = |reason: &str| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, reason);
        let number = |text: &str| {
            text.trim().parse::<u64>().map_err(|_| unprocessable("a range is two numbers of bytes"))
        };
        match (some(self.start.trim()), some(self.end.trim())) {
            (None, None) => Ok(None),
            (start, Some(end)) => {
                let (start, end) = (start.map_or(Ok(0), number)?, number(end)?);
                if start < end {
                    return Ok(Some((start, end)));
                }
                Err(unprocessable("a range ends after it starts"))
            }
            (Some(_), None) => Err(unprocessable("say where the range ends, too")),
        }
    }
}

/// Says whether a restore to a destination writes over what is there, whatever that is: a device, or a network block device. A link to one is
/// not known here from a file.
fn is_overwritten(destination: &str) -> bool {
    let mut path = PathBuf::new();
    for part in Path::new(destination).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            part => path.push(part),
        }
    }
    path.starts_with("/dev") || destination.starts_with("nbd")
}

pub async fn restore(
    State(console): State<Arc<Console>>,
    extract::Path(backup): extract::Path<String>,
    form: Filled<Restored>,
) -> Shown {
    let sent = filled(form)?;
    let range = sent.range()?;
    let Restored { key, host, destination, overwrite, target, .. } = sent;
    let destination = destination.trim().to_owned();
    if is_overwritten(&destination) && !overwrite {
        let reason = "a device is written over where it is, and what is on it is lost: tick “Write over what is there” if that is meant";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, reason).into());
    }
    ask(&console, &key, Wanted::Restore { backup, host, destination, range, overwrite, target }).await
}

pub async fn confirm_delete(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    extract::Path(name): extract::Path<String>,
    Query(asked): Query<InTarget>,
) -> Shown {
    caller.operates()?;
    let id: BackupId = name.parse().map_err(|_| Problem::not_found("backup", &name))?;
    let root = fleet::root(&console.service, asked.target.as_deref()).await?;
    let (volume, backup) = root.backup(id).ok_or_else(|| Problem::not_found("backup", &name))?;
    show(&ConfirmPage {
        question: format!("Move the backup of {volume} of {} to the trash?", time(backup.created)),
        consequence: "It can be taken out again until the target's grace is over. After that it is gone.",
        action: format!("/backups/{id}/delete"),
        fields: vec![("key", key(&console)), ("target", asked.target.clone().unwrap_or_default())],
        button: "Move to the trash",
        back: format!("/backups/{id}{}", in_target(asked.target.as_deref())),
        is_target: false,
    })
}

pub async fn delete(
    State(console): State<Arc<Console>>,
    extract::Path(backup): extract::Path<String>,
    form: Filled<Pressed>,
) -> Shown {
    let Pressed { key, target } = filled(form)?;
    ask(&console, &key, Wanted::Delete { backups: vec![backup], target }).await
}

pub async fn undelete(
    State(console): State<Arc<Console>>,
    extract::Path(backup): extract::Path<String>,
    form: Filled<Pressed>,
) -> Shown {
    let Pressed { key, target } = filled(form)?;
    ask(&console, &key, Wanted::Undelete { backups: vec![backup], target }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_however_it_is_written() {
        for device in [
            "/dev/sdb",
            "//dev/sdb",
            "/srv/../dev/vg0/x",
            "/dev/./sdb",
            "/../dev/sdb",
            "nbd+unix:///x?socket=/run/x",
        ] {
            assert!(is_overwritten(device), "{device}");
        }
        for file in [
            "/srv/x",
            "/devices/x",
            "/dev/../srv/x",
            "qemu:qcow2:/srv/x",
            "zfs:tank/dev",
            "lvm-thin:vg/pool/dev",
        ] {
            assert!(!is_overwritten(file), "{file}");
        }
    }

    #[test]
    fn a_range_is_whole_or_none() {
        let range = |start: &str, end: &str| {
            let sent = Restored {
                key: String::new(),
                host: String::new(),
                destination: String::new(),
                overwrite: false,
                target: None,
                start: start.to_owned(),
                end: end.to_owned(),
            };
            sent.range().map_err(|problem| problem.status)
        };
        assert_eq!(range("", " "), Ok(None));
        assert_eq!(range("", "5"), Ok(Some((0, 5))));
        assert_eq!(range("4096", "8192"), Ok(Some((4096, 8192))));
        for (start, end) in [("5", ""), ("5", "5"), ("x", "5"), ("0", "-1"), ("0", "99999999999999999999")] {
            assert_eq!(range(start, end), Err(StatusCode::UNPROCESSABLE_ENTITY), "{start}..{end}");
        }
    }
}
