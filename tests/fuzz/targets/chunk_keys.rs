//! What claims to be chunk keys sealed to the restore key, and secrets that claim to be X25519 keys.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use strongroom_format::secrets::{RestorePublicKey, RestoreSecrets, Secret32, seal_chunk_keys};
use strongroom_fuzz::{WORLD, allowance, memory, rng};

#[derive(Debug, Arbitrary)]
struct Input {
    sealed: Vec<u8>,
    aad: Vec<u8>,
    public: [u8; 32],
    private: [u8; 32],
    keys: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let size = input.sealed.len() + input.aad.len() + input.keys.len();
    memory::within(allowance(size, 0), || {
        assert!(WORLD.secrets.restore.open_chunk_keys(&input.aad, &input.sealed).is_err());
        let _ = seal_chunk_keys(&RestorePublicKey(input.public), &input.aad, &input.keys, &mut rng());
        let restore = RestoreSecrets::new(Secret32::from_bytes(input.private), Secret32::from_bytes([0; 32]));
        let public = restore.public().expect("any 32 bytes are a private key");
        let sealed =
            seal_chunk_keys(&public, &input.aad, &input.keys, &mut rng()).expect("a good public key");
        let opened = restore.open_chunk_keys(&input.aad, &sealed).expect("sealed to this key");
        assert_eq!(*opened, input.keys);
    });
});
