//! The console: a fleet shown to browsers and HTTP clients, and what they ask of it sent on (design: section 6).
//!
//! Invariants: nothing is changed here. What somebody asks for is a message to the dispatcher, named by an idempotency key, as if it came
//! from the command line. What is shown comes from the catalog, which tells nothing of what is in the volumes.

mod access;
mod answer;
mod api;
mod ended;
mod fleet;
mod gateway;
mod openapi;
mod pages;
mod patience;
mod problem;
mod rate;
mod seen;
mod stats;
mod words;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use strongroom_fleet::Service;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{And, NotForContentType, Predicate, SizeAbove};

pub use access::{Access, Claims, PeopleSettings, Provider, Role, Site};
pub use gateway::{Answer, Event, answer};

use patience::Room;
use rate::Limit;
use seen::Seen;

/// Shorter answers are sent as they are.
const MIN_PACKED_BYTES: u64 = 1024;

/// What handlers share.
struct Console {
    service: Service,
    access: Access,
    seen: Seen,
    room: Room,
    limits: Limits,
    limit: Limit,
}

/// What a console does at the most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests for changes it takes in a minute.
    pub changes_a_minute: u32,
    /// How long it follows a run for one client, who then asks again.
    pub follow: Duration,
}

/// More changes than people ask for, and fewer than harm a queue.
const CHANGES_A_MINUTE: u32 = 120;

impl Default for Limits {
    fn default() -> Self {
        Self { changes_a_minute: CHANGES_A_MINUTE, follow: Duration::from_secs(300) }
    }
}

/// The console of a fleet, for those whom `access` lets in.
pub fn router(service: Service, access: Access, limits: Limits) -> Router {
    let limit = Limit::new(limits.changes_a_minute);
    let (seen, room) = (Seen::default(), Room::default());
    let console = Arc::new(Console { service, access, seen, room, limits, limit });
    let (closed, _) = api::routes().split_for_parts();
    let open = match console.access.people() {
        Some(_) => pages::open_routes().merge(pages::sign_in::routes()),
        None => pages::open_routes().merge(pages::login::routes()),
    };
    let document = openapi().to_string();
    let told = get(move || {
        let document = document.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], document) }
    });
    closed
        .merge(pages::routes())
        .route_layer(from_fn(patience::of_reads))
        .route_layer(from_fn_with_state(Arc::clone(&console), access::guarded))
        .merge(open)
        .route("/v1/openapi.json", told)
        .fallback(problem::no_such_page)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(from_fn(problem::readable))
        .layer(packing())
        .layer(from_fn(access::headers))
        .with_state(console)
}

/// Packs answers for those who take them so: but events, which are to arrive one by one. Nothing secret is in an answer that somebody else
/// could have put a guess into (BREACH): tokens never are, and keys of forms are drawn anew each time.
fn packing() -> CompressionLayer<And<SizeAbove, NotForContentType>> {
    let worth_it = SizeAbove::new(MIN_PACKED_BYTES).and(NotForContentType::SSE);
    CompressionLayer::new().quality(CompressionLevel::Fastest).compress_when(worth_it)
}

impl Limits {
    /// What a console behind API Gateway does: answers are sent when they are complete (so a run is told of once, and whoever follows it asks
    /// again), and each instance counts its own changes.
    pub const BEHIND_GATEWAY: Self = Self { changes_a_minute: CHANGES_A_MINUTE, follow: Duration::ZERO };
}

/// What the interface for HTTP clients is, as an OpenAPI document.
pub fn openapi() -> serde_json::Value {
    openapi::document(api::routes().into_openapi())
}
