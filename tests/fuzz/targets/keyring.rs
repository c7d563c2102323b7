//! Keyrings: the public part, which anyone can write, and the sealed settings.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use strongroom_format::keyring::{Kek, KekDescriptor, Keyring};
use strongroom_format::layout::ObjectKey;
use strongroom_format::seal::{Kind, header};
use strongroom_format::secrets::Secret32;
use strongroom_fuzz::{WORLD, allowance, enclose, memory, seal_part};

#[derive(Debug, Arbitrary)]
struct Input {
    public: Vec<u8>,
    stated_len: Option<u32>,
    settings: Settings,
}

#[derive(Debug, Arbitrary)]
enum Settings {
    Raw(Vec<u8>),
    Packed(Vec<u8>),
}

fuzz_target!(|input: Input| {
    let extra = *blake3::hash(&input.public).as_bytes();
    let plain = match &input.settings {
        Settings::Raw(plain) => plain.clone(),
        Settings::Packed(packed) => enclose(packed),
    };
    let length = input.stated_len.unwrap_or(input.public.len() as u32).to_le_bytes();
    let sealed = seal_part(Kind::Keyring, &ObjectKey::Keyring, &extra, &plain);
    let bytes = [&header(Kind::Keyring)[..], &length, &input.public, &sealed].concat();
    memory::within(allowance(bytes.len(), 64 << 10), || {
        let Ok(keyring) = Keyring::parse(&bytes) else { return };
        assert_eq!(keyring.to_bytes(), bytes, "a keyring writes back to the same");
        let _ = keyring.settings(&WORLD.sealer);
        let (kek, _) = Kek::from_key_file(&Secret32::from_bytes([1; 32]));
        for wrap in keyring.wraps() {
            let _ = wrap.open(keyring.target(), &kek);
            // Only what is refused: an accepted Argon2id takes its time and its memory, which is its purpose.
            if let KekDescriptor::Passphrase { memory_kib: 0..8192 | 1_048_577.., .. } = &wrap.kek {
                assert!(Kek::from_passphrase(b"x", &wrap.kek).is_err());
            }
        }
    });
});
