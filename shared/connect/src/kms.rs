//! AWS KMS as the key-encryption key of a target.

use std::collections::BTreeMap;

use strongroom_aws::{AwsConnection, AwsSettings, KmsErrorKind, KmsKek};
use strongroom_format::ids::TargetId;
use strongroom_format::keyring::{Kek, KekDescriptor, Purpose, Wrap};
use strongroom_format::secrets::Secret32;
use strongroom_store::{StoreError, StoreErrorKind};
use strongroom_vault::target::KekProvider;
use strongroom_vault::{Context, VaultError, VaultResult};

/// A key in AWS KMS, which wraps a data key for each layer of secrets; or two of them, so that who may use the one need
/// not be allowed the restore secrets.
#[derive(Debug)]
pub struct Kms {
    key: KmsKek,
    restore: Option<KmsKek>,
}

impl Kms {
    /// The key of that id, alias or ARN.
    pub async fn new(aws: AwsSettings, key_id: &str) -> Self {
        Self::apart(aws, key_id, None).await
    }

    /// One key for catalog and ingest secrets, another one for the restore secrets if it is named.
    pub async fn apart(aws: AwsSettings, key_id: &str, restore_key_id: Option<&str>) -> Self {
        let connection = AwsConnection::from_environment(aws).await;
        let restore = restore_key_id.map(|key_id| KmsKek::new(&connection, key_id));
        Self { key: KmsKek::new(&connection, key_id), restore }
    }

    fn key_for(&self, purpose: Purpose) -> &KmsKek {
        match (purpose, &self.restore) {
            (Purpose::Restore, Some(restore)) => restore,
            _ => &self.key,
        }
    }
}

/// A secret that whoever may use an HMAC key in KMS has, and nobody else: the code of `purpose` under it.
///
/// # Errors
/// `WrongKey`, `Store`: KMS denies it, knows no such key, or can't be reached.
pub async fn kms_secret(aws: AwsSettings, key_id: &str, purpose: &[u8]) -> VaultResult<Secret32> {
    let connection = AwsConnection::from_environment(aws).await;
    let secret = KmsKek::new(&connection, key_id).mac(purpose).await.map_err(kms_error)?;
    Ok(Secret32::from_bytes(*secret))
}

fn kms_context(target: TargetId, purpose: Purpose) -> BTreeMap<String, String> {
    let purpose = match purpose {
        Purpose::Catalog => "catalog",
        Purpose::Ingest => "ingest",
        Purpose::Restore => "restore",
    };
    BTreeMap::from([
        ("strongroom-target".to_owned(), target.to_string()),
        ("strongroom-purpose".to_owned(), purpose.to_owned()),
    ])
}

fn kms_error(error: strongroom_aws::KmsError) -> VaultError {
    let kind = match error.kind {
        KmsErrorKind::Denied => StoreErrorKind::Denied,
        KmsErrorKind::Unavailable => StoreErrorKind::Unavailable,
        KmsErrorKind::OtherKey | KmsErrorKind::Invalid => return VaultError::WrongKey(error.to_string()),
    };
    VaultError::Store(StoreError::new(kind, "kms", "keyring", error.to_string()))
}

#[async_trait::async_trait]
impl KekProvider for Kms {
    async fn create(
        &self,
        target: TargetId,
        purpose: Purpose,
        _: &Context,
    ) -> VaultResult<(Kek, KekDescriptor)> {
        let key = self.key_for(purpose);
        let data_key = key.generate_data_key(&kms_context(target, purpose)).await.map_err(kms_error)?;
        let descriptor = KekDescriptor::Kms {
            key_id: key.key_id().to_owned(),
            encrypted_key: data_key.ciphertext.clone(),
        };
        Ok((Kek::from_data_key(Secret32::from_bytes(*data_key.plaintext)), descriptor))
    }

    async fn recover(&self, target: TargetId, wrap: &Wrap) -> VaultResult<Option<Kek>> {
        let KekDescriptor::Kms { encrypted_key, .. } = &wrap.kek else { return Ok(None) };
        let key = self.key_for(wrap.purpose);
        match key.decrypt(encrypted_key, &kms_context(target, wrap.purpose)).await {
            Ok(key) => Ok(Some(Kek::from_data_key(Secret32::from_bytes(*key)))),
            // A role may be allowed some layers and not others, and some may be under a key that was not named.
            Err(error) if matches!(error.kind, KmsErrorKind::Denied | KmsErrorKind::OtherKey) => Ok(None),
            Err(error) => Err(kms_error(error)),
        }
    }
}
