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

    /// Lists the objects of a folder that a commit could name.
    ///
    /// # Errors
    /// `Store`.
    pub async fn list_stored(&self, prefix: KeyPrefix) -> VaultResult<Vec<Stored>> {
        let mut stored = Vec::new();
        let mut after = None;
        loop {
            let (page, next) = self.list_page(prefix, after.as_deref()).await?;
            stored.extend(page);
            after = next;
            if after.is_none() {
                return Ok(stored);
            }
        }
    }

    /// One page of such a listing, and where the next one begins.
    ///
    /// # Errors
    /// `Store`.
    pub async fn list_page(
        &self,
        prefix: KeyPrefix,
        after: Option<&str>,
    ) -> VaultResult<(Vec<Stored>, Option<String>)> {
        let page = self.context.store.list(prefix, after).await?;
        let stored = page.objects.into_iter().filter_map(|row| {
            Some(Stored {
                name: ObjectName::from_key(&ObjectKey::parse(&row.key)?)?,
                size_bytes: row.size_bytes,
                modified: TimestampMs(row.modified_ms),
            })
        });
        Ok((stored.collect(), page.next))
    }
}
