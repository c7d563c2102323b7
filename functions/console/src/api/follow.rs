//! Following a run (server-sent events, as in the HTML standard).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, stream};
use strongroom_format::ids::RunId;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::Console;
use crate::answer::RunAnswer;
use crate::fleet;
use crate::problem::{Answered, Problem};

/// Time between two looks at a run.
const PACE: Duration = Duration::from_secs(1);

/// What is told of a run.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the lines of an event")]
pub struct RunEvent {
    /// `run`.
    event: String,
    /// A `RunAnswer`, as JSON.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// Follows a run: an event `run` with what `/v1/runs/{run}` says, whenever that changes, until the run has ended.
#[utoipa::path(
    get, path = "/v1/runs/{run}/events", tag = "runs", params(("run" = String, Path)),
    responses((status = 200, description = "Events, until the run has ended.", content_type = "text/event-stream", body = RunEvent)),
)]
pub async fn events(
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
) -> Answered<impl IntoResponse> {
    let id: RunId = name.parse().map_err(|_| Problem::not_found("run", &name))?;
    let place = console.room.follow()?;
    let first = fleet::run(&console.service, &console.seen, id).await?;
    let first = first.ok_or_else(|| Problem::not_found("run", &name))?;
    let until = Instant::now() + console.limits.follow;
    let answer = RunAnswer::new(id, &first);
    Ok(Sse::new(followed(console, id, answer, until, place)).keep_alive(KeepAlive::default()))
}

/// What is still to be told of a run.
enum Next {
    /// This.
    Tell(RunAnswer),
    /// What is different from this.
    After(RunAnswer),
    /// Nothing.
    End,
}

fn followed(
    console: Arc<Console>,
    id: RunId,
    first: RunAnswer,
    until: Instant,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold((console, place, Next::Tell(first)), move |(console, place, next)| async move {
        let now = match next {
            Next::End => return None,
            Next::Tell(first) => first,
            Next::After(told) => another(&console, id, told, until).await?,
        };
        let event = Event::default().event("run").json_data(&now).unwrap_or_default();
        let next = if now.has_ended() { Next::End } else { Next::After(now) };
        Some((Ok(event), (console, place, next)))
    })
}

/// Waits until a run is no more as it was told; `None` if the time for that is over.
async fn another(console: &Console, id: RunId, told: RunAnswer, until: Instant) -> Option<RunAnswer> {
    while Instant::now() < until {
        tokio::time::sleep(PACE).await;
        // It can't be read just now: the next look may.
        let Ok(Some(run)) = fleet::run(&console.service, &console.seen, id).await else { continue };
        let now = RunAnswer::new(id, &run);
        if now != told {
            return Some(now);
        }
    }
    None
}
