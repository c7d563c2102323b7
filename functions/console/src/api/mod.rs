//! The interface for HTTP clients, under `/v1`: reads the catalog, and sends requests as the command line does.

#[allow(unused_qualifications, reason = "utoipa names parameters so")]
mod ask;
pub mod follow;
#[allow(unused_qualifications, reason = "utoipa names parameters so")]
pub mod read;

use std::sync::Arc;

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use serde::{Deserialize, Deserializer};
use strongroom_fleet::settings::HOME;
use strongroom_format::ids::BackupId;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use ask::{expect, send};
pub use read::{audited, collection_plan};

use crate::Console;
use crate::answer::Page;
use crate::problem::{Answered, Problem};

/// So many of a list at once, if nothing else is asked for.
const PAGE: usize = 100;
/// And at the most.
const MAX_PAGE: usize = 1000;

/// All of it.
pub fn routes() -> OpenApiRouter<Arc<Console>> {
    let reading = OpenApiRouter::default()
        .routes(routes!(read::volumes))
        .routes(routes!(read::volume))
        .routes(routes!(read::schedule_preview))
        .routes(routes!(read::backups))
        .routes(routes!(read::backup))
        .routes(routes!(read::runs))
        .routes(routes!(read::run))
        .routes(routes!(follow::events))
        .routes(routes!(read::hosts))
        .routes(routes!(read::targets))
        .routes(routes!(read::target))
        .routes(routes!(read::stats))
        .routes(routes!(read::retention_plan))
        .routes(routes!(read::gc_plan))
        .routes(routes!(read::audit));
    let changing = OpenApiRouter::default()
        .routes(routes!(ask::volume_put, ask::volume_delete))
        .routes(routes!(ask::schedule_patch))
        .routes(routes!(ask::volume_backup))
        .routes(routes!(ask::backup_delete))
        .routes(routes!(ask::backup_undelete))
        .routes(routes!(ask::backup_restore))
        .routes(routes!(ask::host_put, ask::host_delete))
        .routes(routes!(ask::target_put, ask::target_patch, ask::target_delete))
        .routes(routes!(ask::retention))
        .routes(routes!(ask::gc));
    reading.merge(changing)
}

/// Which target is meant.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct InTarget {
    /// A target of the fleet; the home if none is named, or `home` is.
    #[serde(default, deserialize_with = "besides_home")]
    target: Option<String>,
}

/// In which target a volume is meant.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OfVolume {
    /// A target of the fleet, or `home`; wherever the volume goes or has backups, if none is named.
    target: Option<String>,
}

/// Reads the name of a target; `None` is the home.
///
/// # Errors
/// Those of the deserializer.
pub fn besides_home<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.filter(|name| name != HOME))
}

/// What a client gave after the `?`.
type Asked<T> = Result<Query<T>, QueryRejection>;

fn asked<T>(query: Asked<T>) -> Answered<T> {
    query.map(|Query(query)| query).map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))
}

/// Cuts a list that is in order; `after`: the name of the last that was told.
///
/// # Errors
/// 400 for a limit out of bounds, 422 if that is not in the list.
pub fn cut<T>(
    all: Vec<T>,
    limit: Option<usize>,
    after: Option<&str>,
    name: impl Fn(&T) -> String,
) -> Answered<Page<T>> {
    let limit = limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::new(StatusCode::BAD_REQUEST, format!("a limit is from 1 to {MAX_PAGE}")));
    }
    let begin = match after {
        None => 0,
        Some(after) => {
            let at = all.iter().position(|item| name(item) == after);
            1 + at.ok_or_else(|| {
                Problem::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "what `after` names is not in the list; begin anew",
                )
            })?
        }
    };
    let goes_on = all.len() > begin + limit;
    let items: Vec<T> = all.into_iter().skip(begin).take(limit).collect();
    let next = items.last().map(name).filter(|_| goes_on);
    Ok(Page { items, next })
}

fn backup_id(name: &str) -> Answered<BackupId> {
    name.parse().map_err(|_| Problem::not_found("backup", name))
}
