//! Targets and hosts.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use strongroom_fleet::message::Wanted;
use strongroom_fleet::settings::{TargetEntry, check_target_name};
use strongroom_fleet::text::time;

use super::{ConfirmPage, Filled, Shown, ask, filled, key, show, some};
use crate::Console;
use crate::access::{Caller, Role};
use crate::problem::Problem;

struct TargetRow {
    name: String,
    address: String,
    region: String,
}

struct HostRow {
    name: String,
    added: String,
}

#[derive(Template)]
#[template(path = "targets.html")]
struct TargetsPage {
    may_change: bool,
    key: String,
    targets: Vec<TargetRow>,
    hosts: Vec<HostRow>,
}

pub async fn targets(State(console): State<Arc<Console>>, Extension(caller): Extension<Caller>) -> Shown {
    let settings = console.service.home.settings().await?;
    let target = |(name, entry): (String, TargetEntry)| TargetRow {
        name,
        address: entry.address,
        region: entry.region.unwrap_or_default(),
    };
    show(&TargetsPage {
        may_change: caller.role == Role::Operator,
        key: key(&console),
        targets: settings.targets.into_iter().map(target).collect(),
        hosts: settings
            .hosts
            .into_iter()
            .map(|(name, host)| HostRow { name, added: time(host.added) })
            .collect(),
    })
}

/// What the form of a target says.
#[derive(Debug, Deserialize)]
pub struct Described {
    key: String,
    name: String,
    address: String,
    #[serde(default)]
    region: String,
    #[serde(default)]
    kms_key: String,
}

pub async fn target_put(State(console): State<Arc<Console>>, form: Filled<Described>) -> Shown {
    let Described { key, name, address, region, kms_key } = filled(form)?;
    let given = |text: &str| some(text.trim()).map(str::to_owned);
    let target =
        TargetEntry { address: address.trim().to_owned(), kms_key: given(&kms_key), region: given(&region) };
    check_target_name(&name)
        .and_then(|()| target.check())
        .map_err(|reason| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, reason))?;
    ask(&console, &key, Wanted::TargetPut { name, target }).await
}

/// Which target is forgotten.
#[derive(Debug, Deserialize)]
pub struct Named {
    key: String,
    name: String,
}

/// Which target is to be asked about.
#[derive(Debug, Deserialize)]
pub struct Meant {
    name: String,
}

pub async fn confirm_forget(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    Query(Meant { name }): Query<Meant>,
) -> Shown {
    caller.operates()?;
    if !console.service.home.settings().await?.targets.contains_key(&name) {
        return Err(Problem::not_found("target", &name).into());
    }
    show(&ConfirmPage {
        question: format!("Forget target {name}?"),
        consequence: "The fleet no longer knows how it is reached. Its objects stay, with all backups in it: added again, they are there.",
        action: "/targets/forget".to_owned(),
        fields: vec![("key", key(&console)), ("name", name)],
        button: "Forget this target",
        back: "/targets".to_owned(),
        is_target: true,
    })
}

pub async fn target_forget(State(console): State<Arc<Console>>, form: Filled<Named>) -> Shown {
    let Named { key, name } = filled(form)?;
    ask(&console, &key, Wanted::TargetDelete { name }).await
}
