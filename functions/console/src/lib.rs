//! The console: a fleet shown to browsers and HTTP clients, and what they ask of it sent on (design: section 6).
//!
//! Invariants: nothing is changed here. What somebody asks for is a message to the dispatcher, named by an idempotency key, as if it came
//! from the command line. What is shown comes from the catalog, which tells nothing of what is in the volumes.

mod access;
mod answer;
mod api;
mod fleet;
mod pages;
mod problem;
mod rate;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use strongroom_fleet::Service;

pub use access::{Access, Role};

use fleet::Seen;
use rate::Limit;

/// What handlers share.
struct Console {
    service: Service,
    access: Access,
    seen: Seen,
    limit: Limit,
}

/// The console of a fleet, for those whom `access` lets in.
pub fn router(service: Service, access: Access) -> Router {
    let console = Arc::new(Console { service, access, seen: Seen::default(), limit: Limit::default() });
    let (api, pages) = (api::routes(), pages::routes());
    let reading = api.reading.merge(pages.reading);
    // Whatever changes something goes through here, and nothing else does.
    let changing = api
        .changing
        .merge(pages.changing)
        .route_layer(from_fn_with_state(Arc::clone(&console), access::operators_only));
    reading
        .merge(changing)
        .route_layer(from_fn_with_state(Arc::clone(&console), access::known_only))
        .merge(pages::open_routes())
        .fallback(problem::no_such_page)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(from_fn(access::headers))
        .with_state(console)
}

/// Routes of one kind, by what they do.
struct Routes {
    /// Those that change nothing.
    reading: Router<Arc<Console>>,
    /// Those that send requests.
    changing: Router<Arc<Console>>,
}
