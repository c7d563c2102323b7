//! The executable definition of an object store: every property that Strongroom stands on, one function each.
//!
//! For tests of stores and of what wraps them. Every function panics where the store breaks its property, draws names
//! of its own, and removes what it wrote, so that all may run at once on a store in use.

mod listing;
mod races;
mod reading;
mod writing;

use bytes::Bytes;
use rand::rngs::SysRng;
use rand::{SeedableRng, rngs::StdRng};
use strongroom_format::ids::{RunId, SessionId};
use strongroom_format::layout::ObjectKey;

use crate::{ETag, ObjectStore, StoreErrorKind, StoreResult};

pub use listing::{
    listing_covers_every_folder_in_byte_order, listing_pages_through_more_than_a_thousand,
    listing_starts_after_any_text,
};
pub use races::{
    a_counter_loses_no_update, one_of_many_creators_wins, one_of_many_replacers_wins,
    readers_see_whole_objects,
};
pub use reading::{
    a_missing_object_is_not_found, empty_objects_are_objects, get_is_bounded, ranges_are_exact,
    written_is_read,
};
pub use writing::{
    a_deleted_name_is_free_again, create_refuses_the_same_bytes, create_refuses_to_overwrite,
    delete_is_idempotent, replace_needs_the_current_version,
};

/// Checks every property, one after the other.
pub async fn run(store: &dyn ObjectStore) {
    written_is_read(store).await;
    empty_objects_are_objects(store).await;
    a_missing_object_is_not_found(store).await;
    get_is_bounded(store).await;
    ranges_are_exact(store).await;
    create_refuses_to_overwrite(store).await;
    replace_needs_the_current_version(store).await;
    delete_is_idempotent(store).await;
    a_deleted_name_is_free_again(store).await;
    one_of_many_creators_wins(store).await;
    one_of_many_replacers_wins(store).await;
    a_counter_loses_no_update(store).await;
    readers_see_whole_objects(store).await;
    listing_covers_every_folder_in_byte_order(store).await;
    listing_starts_after_any_text(store).await;
    listing_pages_through_more_than_a_thousand(store).await;
}

fn rng() -> StdRng {
    StdRng::try_from_rng(&mut SysRng).expect("the operating system has randomness")
}

fn new_run() -> ObjectKey {
    ObjectKey::Run(RunId::random(&mut rng()))
}

fn new_session() -> SessionId {
    SessionId::random(&mut rng())
}

async fn create(store: &dyn ObjectStore, key: &ObjectKey, content: impl Into<Bytes>) -> ETag {
    match store.put_if_absent(key, content.into()).await {
        Ok(etag) => etag,
        Err(error) => panic!("a new name can be created: {error}"),
    }
}

async fn content(store: &dyn ObjectStore, key: &ObjectKey) -> Bytes {
    match store.get(key, u64::MAX).await {
        Ok(object) => object.bytes,
        Err(error) => panic!("an object that was written can be read: {error}"),
    }
}

async fn clean_up(store: &dyn ObjectStore, keys: &[ObjectKey]) {
    if let Err(error) = store.delete(keys).await {
        panic!("objects can be deleted: {error}");
    }
}

#[track_caller]
fn expect_kind<T: std::fmt::Debug>(answer: StoreResult<T>, kind: StoreErrorKind, what: &str) {
    match answer {
        Err(error) => assert_eq!(error.kind, kind, "{what}: {error}"),
        Ok(value) => panic!("{what}: expected {kind:?}, got {value:?}"),
    }
}
