//! Raw bytes, as a store may return them, into the parser of every kind of object.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_format::keyring::Keyring;
use strongroom_format::pack::{TRAILER_LEN, check_pack, directory_tail_len, open_directory};
use strongroom_fuzz::{PACK, SEALED_KINDS, WORLD, allowance, bodies, memory};

fuzz_target!(|object: &[u8]| {
    let sealer = &WORLD.sealer;
    memory::within(allowance(object.len(), 0), || {
        for (kind, key) in SEALED_KINDS {
            // Nothing that does not authenticate is ever unpacked.
            let _ = bodies::exercise(kind, &key, object);
        }
        if let Ok(keyring) = Keyring::parse(object) {
            let _ = keyring.settings(sealer);
            assert!(keyring.wraps().len() <= 64);
        }
        let _ = check_pack(sealer, PACK, object);
        for size_bytes in [object.len() as u64, object.len() as u64 + 1000, u64::MAX] {
            if let Ok(need) = directory_tail_len(PACK, size_bytes, object) {
                assert!(need >= TRAILER_LEN as u64 && need < size_bytes);
            }
            let _ = open_directory(sealer, PACK, size_bytes, object);
        }
    });
});
