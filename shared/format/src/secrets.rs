//! The three layers of secrets of a target, and what is derived from each.
//!
//! Invariant: no type here shows its content in `Debug`, and each wipes it when dropped. Every derived key has its own
//! context string, listed in this file and nowhere else.

use std::fmt;

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use rand::CryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::Problem;

/// BLAKE3 `derive_key` context of the key that seals catalog objects.
pub const CATALOG_SEAL_CONTEXT: &str = "strongroom v1 catalog seal key";
/// BLAKE3 `derive_key` context of the key of volume tags.
pub const VOLUME_TAG_CONTEXT: &str = "strongroom v1 catalog volume tag key";
/// BLAKE3 `derive_key` context of the key of the gear table.
pub const GEAR_CONTEXT: &str = "strongroom v1 ingest gear table key";
/// BLAKE3 `derive_key` context of the key of chunk ids.
pub const CHUNK_ID_CONTEXT: &str = "strongroom v1 ingest chunk id key";
/// BLAKE3 `derive_key` context of the secret from which chunk keys are derived.
pub const CHUNK_KEY_CONTEXT: &str = "strongroom v1 ingest chunk key derivation secret";
/// BLAKE3 `derive_key` context of the key of frame nonces.
pub const FRAME_NONCE_CONTEXT: &str = "strongroom v1 ingest frame nonce key";
/// BLAKE3 `derive_key` context of the key-encryption key made from a key file.
pub const KEY_FILE_CONTEXT: &str = "strongroom v1 key-encryption key from key file";
/// HPKE `info` of chunk keys sealed to the restore key.
pub const CHUNK_KEYS_HPKE_INFO: &[u8] = b"strongroom v1 chunk keys of a segment";

/// 256 bits that must never be shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret32([u8; 32]);

impl Secret32 {
    /// Draws a new secret.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// Wraps bytes read from a key file or an opened wrap.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Shows the bytes, to a cipher or to the one who writes a key file.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Derives an independent secret for one purpose.
    pub fn derive(&self, context: &'static str) -> Self {
        Self(blake3::derive_key(context, &self.0))
    }
}

impl fmt::Debug for Secret32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret32(…)")
    }
}

/// Opens root, nodes, index, and the layout half of manifests. Held by functions, agents and operators.
#[derive(Debug, Clone)]
pub struct CatalogSecret(pub Secret32);

impl CatalogSecret {
    /// The key that seals catalog objects.
    pub fn seal_key(&self) -> Secret32 {
        self.0.derive(CATALOG_SEAL_CONTEXT)
    }
}

/// What an agent needs to write backups, and with which it still can't read any. Held by agents.
#[derive(Debug, Clone)]
pub struct IngestSecrets {
    master: Secret32,
    /// Whom the chunk keys in segments are sealed to.
    pub restore_public: RestorePublicKey,
}

impl IngestSecrets {
    /// Binds the ingest master secret to the restore public key that belongs with it.
    pub const fn new(master: Secret32, restore_public: RestorePublicKey) -> Self {
        Self { master, restore_public }
    }

    /// The master secret, for wrapping.
    pub const fn master(&self) -> &Secret32 {
        &self.master
    }

    /// Key of the gear table of content-defined chunking.
    pub fn gear_key(&self) -> Secret32 {
        self.master.derive(GEAR_CONTEXT)
    }

    /// Key of chunk ids.
    pub fn chunk_id_key(&self) -> Secret32 {
        self.master.derive(CHUNK_ID_CONTEXT)
    }

    /// Secret from which chunk keys are derived.
    pub fn chunk_key_secret(&self) -> Secret32 {
        self.master.derive(CHUNK_KEY_CONTEXT)
    }

    /// Key of frame nonces.
    pub fn frame_nonce_key(&self) -> Secret32 {
        self.master.derive(FRAME_NONCE_CONTEXT)
    }
}

/// X25519 public key of a target's restorers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestorePublicKey(pub [u8; 32]);

/// What a restoring party needs on top of the catalog secret. Held by operators and restoring agents only.
#[derive(Debug, Clone)]
pub struct RestoreSecrets {
    private: Secret32,
    /// Key of chunk ids, to check what was decrypted.
    pub chunk_id_key: Secret32,
}

impl RestoreSecrets {
    /// Binds the X25519 private key to the chunk-id key.
    pub const fn new(private: Secret32, chunk_id_key: Secret32) -> Self {
        Self { private, chunk_id_key }
    }

    /// The X25519 private key, for wrapping.
    pub const fn private(&self) -> &Secret32 {
        &self.private
    }

    /// The public half.
    ///
    /// # Errors
    /// `Malformed` if the bytes are no X25519 key.
    pub fn public(&self) -> Result<RestorePublicKey, Problem> {
        let private = self.private_key()?;
        Ok(RestorePublicKey(X25519HkdfSha256::sk_to_pk(&private).to_bytes().into()))
    }

    /// Opens chunk keys sealed with [`seal_chunk_keys`].
    ///
    /// # Errors
    /// `NotAuthentic` if they were sealed to another key, for another object, or are damaged.
    pub fn open_chunk_keys(&self, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Problem> {
        let (encapped, ciphertext) = sealed
            .split_at_checked(ENCAPPED_LEN)
            .ok_or(Problem::Truncated { need: ENCAPPED_LEN as u64, have: sealed.len() as u64 })?;
        let encapped = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapped)
            .map_err(|_| Problem::NotAuthentic)?;
        hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.private_key()?,
            &encapped,
            CHUNK_KEYS_HPKE_INFO,
            ciphertext,
            aad,
        )
        .map(Zeroizing::new)
        .map_err(|_| Problem::NotAuthentic)
    }

    fn private_key(&self) -> Result<<X25519HkdfSha256 as Kem>::PrivateKey, Problem> {
        <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(self.private.expose())
            .map_err(|_| Problem::malformed("restore key is no X25519 private key"))
    }
}

/// Length of an encapsulated X25519 key, bytes (RFC 9180, section 7.1).
const ENCAPPED_LEN: usize = 32;

/// Seals chunk keys to the restore key: HPKE base mode (RFC 9180), DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
/// ChaCha20-Poly1305; the encapsulated key comes first.
pub fn seal_chunk_keys(
    to: &RestorePublicKey,
    aad: &[u8],
    keys: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, Problem> {
    let recipient = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&to.0)
        .map_err(|_| Problem::malformed("restore public key is no X25519 public key"))?;
    let (encapped, ciphertext) = hpke::single_shot_seal_with_rng::<
        ChaCha20Poly1305,
        HkdfSha256,
        X25519HkdfSha256,
    >(&OpModeS::Base, &recipient, CHUNK_KEYS_HPKE_INFO, keys, aad, rng)
    .map_err(|_| Problem::malformed("restore public key does not take a seal"))?;
    let mut sealed = encapped.to_bytes().to_vec();
    sealed.extend_from_slice(&ciphertext);
    Ok(sealed)
}
