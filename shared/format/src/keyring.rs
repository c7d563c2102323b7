//! The keyring: a target's secrets wrapped under key-encryption keys, and its settings.
//!
//! Invariant: without a key-encryption key, only the target id, the format version and how to unwrap are readable.
//! The settings' seal binds the whole public part, so a changed byte anywhere is found by whoever can open it.

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use rand::CryptoRng;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::chunker::ChunkerParams;
use crate::codec;
use crate::error::{FormatError, Problem};
use crate::ids::{TargetId, TimestampMs};
use crate::layout::ObjectKey;
use crate::seal::{HEADER_LEN, Kind, Sealer, after_header, header};
use crate::secrets::{
    CatalogSecret, IngestSecrets, KEY_FILE_CONTEXT, RestorePublicKey, RestoreSecrets, Secret32,
};

/// The most a reader takes for a keyring, bytes.
pub const MAX_KEYRING_BYTES: u64 = 1 << 20;
/// Version of the wrap format, bound into each wrap.
const WRAP_VERSION: u8 = 1;
/// First bytes of a wrap's associated data.
const WRAP_DOMAIN: &[u8] = b"strongroom/v1/wrap";
/// The most wraps a keyring may hold.
const MAX_WRAPS: usize = 64;

/// Which layer of secrets a wrap holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Purpose {
    /// The catalog secret.
    Catalog = 1,
    /// The ingest secrets.
    Ingest = 2,
    /// The restore secrets.
    Restore = 3,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Catalog, Self::Ingest, Self::Restore];
}

/// How to come by a key-encryption key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KekDescriptor {
    /// From a key file.
    KeyFile {
        /// First 8 bytes of BLAKE3 of the derived key-encryption key: tells key files apart.
        #[serde(with = "serde_bytes")]
        fingerprint: [u8; 8],
    },
    /// From a passphrase, by Argon2id version 0x13 (RFC 9106).
    Passphrase {
        /// Random salt.
        #[serde(with = "serde_bytes")]
        salt: [u8; 16],
        /// Memory, KiB.
        memory_kib: u32,
        /// Passes.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// From AWS KMS: a data key, encrypted under a KMS key.
    Kms {
        /// ARN or alias of the KMS key.
        key_id: String,
        /// The encrypted data key.
        #[serde(with = "serde_bytes")]
        encrypted_key: Vec<u8>,
    },
}

/// A key-encryption key.
#[derive(Debug, Clone)]
pub struct Kek(Secret32);

impl Kek {
    /// Derives the key-encryption key of a key file, and how it is described.
    pub fn from_key_file(secret: &Secret32) -> (Self, KekDescriptor) {
        let kek = Self(secret.derive(KEY_FILE_CONTEXT));
        let digest = blake3::hash(kek.0.expose());
        let fingerprint = *digest.as_bytes().first_chunk().expect("a hash has more than 8 bytes");
        (kek, KekDescriptor::KeyFile { fingerprint })
    }

    /// Takes a data key from a key management service.
    pub const fn from_data_key(secret: Secret32) -> Self {
        Self(secret)
    }

    /// Derives the key-encryption key of a passphrase.
    ///
    /// # Errors
    /// `Malformed` when the parameters are out of bounds: a hostile keyring must not make its reader take hours or all
    /// memory.
    pub fn from_passphrase(passphrase: &[u8], descriptor: &KekDescriptor) -> Result<Self, Problem> {
        let KekDescriptor::Passphrase { salt, memory_kib, passes, lanes } = descriptor else {
            return Err(Problem::malformed("not a passphrase wrap"));
        };
        if !(8 * 1024..=1024 * 1024).contains(memory_kib)
            || !(1..=16).contains(passes)
            || !(1..=16).contains(lanes)
        {
            return Err(Problem::malformed("Argon2id parameters are out of bounds"));
        }
        let params = argon2::Params::new(*memory_kib, *passes, *lanes, Some(32))
            .map_err(|error| Problem::malformed(format!("Argon2id: {error}")))?;
        let mut key = Zeroizing::new([0; 32]);
        argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
            .hash_password_into(passphrase, salt, key.as_mut())
            .map_err(|error| Problem::malformed(format!("Argon2id: {error}")))?;
        Ok(Self(Secret32::from_bytes(*key)))
    }

    /// Describes a new passphrase wrap: 64 MiB, 3 passes, 4 lanes, the second recommendation of RFC 9106, section 4.
    pub fn new_passphrase_descriptor(rng: &mut impl CryptoRng) -> KekDescriptor {
        let mut salt = [0; 16];
        rng.fill_bytes(&mut salt);
        KekDescriptor::Passphrase { salt, memory_kib: 64 * 1024, passes: 3, lanes: 4 }
    }
}

/// A layer of secrets under a key-encryption key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wrap {
    /// Which layer.
    pub purpose: Purpose,
    /// How to come by the key.
    pub kek: KekDescriptor,
    #[serde(with = "serde_bytes")]
    nonce: [u8; 12],
    #[serde(with = "serde_bytes")]
    sealed: Vec<u8>,
}

/// What holds for a target from its start, or until it is changed on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetSettings {
    /// How volumes are chunked unless a backup says otherwise.
    pub chunker: ChunkerParams,
    /// Frame bytes at which a pack is closed.
    pub pack_bytes: u32,
    /// zstd level of frames.
    pub zstd_level: i32,
    /// Whether chunks written by other hosts are deduplicated against.
    pub dedup_across_hosts: bool,
    /// How long removed backups can be undeleted and condemned packs pardoned, milliseconds.
    pub grace_ms: u64,
    /// When the target was initialised.
    pub created: TimestampMs,
}

/// The part of a keyring that reads without a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicPart {
    target: TargetId,
    wraps: Vec<Wrap>,
}

/// A target's keyring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyring {
    public: PublicPart,
    public_bytes: Vec<u8>,
    sealed_settings: Vec<u8>,
}

/// All secrets of a target.
#[derive(Debug, Clone)]
pub struct TargetSecrets {
    /// Opens the catalog.
    pub catalog: CatalogSecret,
    /// Writes backups.
    pub ingest: IngestSecrets,
    /// Reads them.
    pub restore: RestoreSecrets,
}

impl TargetSecrets {
    /// Draws the secrets of a new target.
    ///
    /// # Errors
    /// Never in practice: any 32 bytes are an X25519 private key.
    pub fn generate(rng: &mut impl CryptoRng) -> Result<Self, Problem> {
        let catalog = CatalogSecret(Secret32::random(rng));
        let master = Secret32::random(rng);
        let provisional = RestoreSecrets::new(Secret32::random(rng), Secret32::from_bytes([0; 32]));
        let ingest = IngestSecrets::new(master, provisional.public()?);
        let restore = RestoreSecrets::new(provisional.private().clone(), ingest.chunk_id_key());
        Ok(Self { catalog, ingest, restore })
    }

    fn payload(&self, purpose: Purpose) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match purpose {
            Purpose::Catalog => self.catalog.0.expose().to_vec(),
            Purpose::Ingest => [*self.ingest.master().expose(), self.ingest.restore_public.0].concat(),
            Purpose::Restore => {
                [*self.restore.private().expose(), *self.restore.chunk_id_key.expose()].concat()
            }
        })
    }

    /// Wraps one layer under a key-encryption key.
    pub fn wrap(
        &self,
        target: TargetId,
        purpose: Purpose,
        kek: &Kek,
        descriptor: KekDescriptor,
        rng: &mut impl CryptoRng,
    ) -> Wrap {
        wrap_payload(target, purpose, &self.payload(purpose), kek, descriptor, rng)
    }
}

fn wrap_payload(
    target: TargetId,
    purpose: Purpose,
    payload: &[u8],
    kek: &Kek,
    descriptor: KekDescriptor,
    rng: &mut impl CryptoRng,
) -> Wrap {
    let mut nonce = [0; 12];
    rng.fill_bytes(&mut nonce);
    let sealed = Aes256Gcm::new(kek.0.expose().into())
        .encrypt(&Nonce::from(nonce), Payload { msg: payload, aad: &wrap_aad(target, purpose) })
        .expect("payloads are under 100 bytes");
    Wrap { purpose, kek: descriptor, nonce, sealed }
}

/// One opened layer.
#[derive(Debug, Clone)]
pub enum Unwrapped {
    /// The catalog secret.
    Catalog(CatalogSecret),
    /// The ingest secrets.
    Ingest(IngestSecrets),
    /// The restore secrets.
    Restore(RestoreSecrets),
}

impl Wrap {
    /// Opens the wrap.
    ///
    /// # Errors
    /// `NotAuthentic` for another key.
    pub fn open(&self, target: TargetId, kek: &Kek) -> Result<Unwrapped, Problem> {
        let payload = self.payload(target, kek)?;
        let half =
            |n: usize| payload.get(n * 32..n * 32 + 32).and_then(|half| <[u8; 32]>::try_from(half).ok());
        let secret =
            |n| half(n).map(Secret32::from_bytes).ok_or_else(|| Problem::malformed("a wrap is too short"));
        Ok(match self.purpose {
            Purpose::Catalog => Unwrapped::Catalog(CatalogSecret(secret(0)?)),
            Purpose::Ingest => {
                let public = half(1).ok_or_else(|| Problem::malformed("a wrap is too short"))?;
                Unwrapped::Ingest(IngestSecrets::new(secret(0)?, RestorePublicKey(public)))
            }
            Purpose::Restore => Unwrapped::Restore(RestoreSecrets::new(secret(0)?, secret(1)?)),
        })
    }

    /// Wraps the same secrets under another key-encryption key, without looking at them.
    ///
    /// # Errors
    /// `NotAuthentic` for another key.
    pub fn rewrap(
        &self,
        target: TargetId,
        from: &Kek,
        to: &Kek,
        descriptor: KekDescriptor,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, Problem> {
        let payload = self.payload(target, from)?;
        Ok(wrap_payload(target, self.purpose, &payload, to, descriptor, rng))
    }

    fn payload(&self, target: TargetId, kek: &Kek) -> Result<Zeroizing<Vec<u8>>, Problem> {
        Aes256Gcm::new(kek.0.expose().into())
            .decrypt(
                &Nonce::from(self.nonce),
                Payload { msg: &self.sealed, aad: &wrap_aad(target, self.purpose) },
            )
            .map(Zeroizing::new)
            .map_err(|_| Problem::NotAuthentic)
    }
}

fn wrap_aad(target: TargetId, purpose: Purpose) -> Vec<u8> {
    [WRAP_DOMAIN, target.as_bytes(), &[purpose as u8, WRAP_VERSION]].concat()
}

/// The sealed settings as stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsBody {
    settings: TargetSettings,
}

impl Keyring {
    /// Builds a keyring of wraps and settings.
    pub fn build(
        sealer: &Sealer,
        wraps: Vec<Wrap>,
        settings: &TargetSettings,
        rng: &mut impl CryptoRng,
    ) -> Self {
        let public = PublicPart { target: sealer.target(), wraps };
        let public_bytes =
            rmp_serde::to_vec_named(&public).expect("the public part holds only types MessagePack has");
        let sealed_settings = sealer.seal_part(
            &header(Kind::Keyring),
            &ObjectKey::Keyring,
            blake3::hash(&public_bytes).as_bytes(),
            codec::encode(&SettingsBody { settings: *settings }),
            rng,
        );
        Self { public, public_bytes, sealed_settings }
    }

    /// Writes the object: `header ‖ u32le length ‖ public part ‖ sealed settings`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.public_bytes.len()).expect("keyrings are small");
        [&header(Kind::Keyring)[..], &length.to_le_bytes(), &self.public_bytes, &self.sealed_settings]
            .concat()
    }

    /// Reads what can be read without a key.
    ///
    /// # Errors
    /// A [`FormatError`] naming the keyring.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::parse_parts(bytes).map_err(|problem| problem.of(ObjectKey::Keyring))
    }

    fn parse_parts(bytes: &[u8]) -> Result<Self, Problem> {
        let rest = after_header(Kind::Keyring, bytes)?;
        let truncated = |need: u64| Problem::Truncated { need, have: bytes.len() as u64 };
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(|| truncated(HEADER_LEN as u64 + 4))?;
        let length = u32::from_le_bytes(*length) as usize;
        let (public_bytes, sealed_settings) =
            rest.split_at_checked(length).ok_or_else(|| truncated((HEADER_LEN + 4 + length) as u64))?;
        let mut reader = public_bytes;
        let public = PublicPart::deserialize(&mut rmp_serde::Deserializer::new(&mut reader))
            .map_err(|error| Problem::malformed(error.to_string()))?;
        if !reader.is_empty() || public.wraps.len() > MAX_WRAPS {
            return Err(Problem::malformed("the public part has too much in it"));
        }
        Ok(Self { public, public_bytes: public_bytes.to_vec(), sealed_settings: sealed_settings.to_vec() })
    }

    /// The target.
    pub const fn target(&self) -> TargetId {
        self.public.target
    }

    /// The wraps.
    pub fn wraps(&self) -> &[Wrap] {
        &self.public.wraps
    }

    /// Opens the settings, and with them checks the whole keyring.
    ///
    /// # Errors
    /// `NotAuthentic`, naming the keyring, when any of it was changed.
    pub fn settings(&self, sealer: &Sealer) -> Result<TargetSettings, FormatError> {
        sealer
            .open_part(
                &header(Kind::Keyring),
                &ObjectKey::Keyring,
                blake3::hash(&self.public_bytes).as_bytes(),
                &self.sealed_settings,
            )
            .and_then(|plain| codec::decode::<SettingsBody>(&plain, 64 << 10))
            .map(|body| body.settings)
            .map_err(|problem| problem.of(ObjectKey::Keyring))
    }
}
