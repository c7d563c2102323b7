//! Plaintext under the seal, as a hostile holder of the catalog key would put it there: past authentication.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_fuzz::{SEALED_KINDS, allowance, bodies, enclose, memory, seal_object};

/// What a body may be unpacked to is bounded by the kind's limit, of which the greatest is 256 MiB.
const RAW_LIMIT_BYTES: usize = 300 << 20;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, input)) = input.split_first() else { return };
    let (kind, key) = SEALED_KINDS[usize::from(choice) % SEALED_KINDS.len()];
    let packed = choice < 0x80;
    let object = seal_object(kind, &key, &if packed { enclose(input) } else { input.to_vec() });
    let limit = if packed { allowance(object.len(), input.len()) } else { RAW_LIMIT_BYTES };
    let _ = memory::within(limit, || bodies::exercise(kind, &key, &object));
});
