//! Listing what a target's store holds.

use strongroom_catalog::collect::Stored;
use strongroom_catalog::dead::ObjectName;
use strongroom_format::ids::TimestampMs;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::Listed;

use crate::error::VaultResult;
use crate::target::Target;

impl Target {
    /// Lists every object of a folder that is ours, in order.
    ///
    /// # Errors
    /// `Store`.
    pub async fn list(&self, prefix: KeyPrefix) -> VaultResult<Vec<(ObjectKey, Listed)>> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = self.context.store.list(prefix, after.as_deref()).await?;
            found.extend(page.objects.into_iter().filter_map(|row| Some((ObjectKey::parse(&row.key)?, row))));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(found),
            }
        }
    }

    /// Lists every object that a commit could name.
    ///
    /// # Errors
    /// `Store`.
    pub async fn list_stored(&self) -> VaultResult<Vec<Stored>> {
        let mut stored = Vec::new();
        for prefix in [KeyPrefix::Packs, KeyPrefix::Segments, KeyPrefix::Index, KeyPrefix::Manifests] {
            stored.extend(self.list(prefix).await?.into_iter().filter_map(|(key, row)| {
                Some(Stored {
                    name: ObjectName::from_key(&key)?,
                    size_bytes: row.size_bytes,
                    modified: TimestampMs(row.modified_ms),
                })
            }));
        }
        Ok(stored)
    }
}
