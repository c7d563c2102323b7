//! What a server of network block devices sends: anything, or a right handshake and then anything.
#![no_main]

use std::io::{Read, Result, Write};
use std::slice::from_ref;

use libfuzzer_sys::fuzz_target;
use strongroom_fuzz::{allowance, memory};
use strongroom_nbd::Client;

/// The most that an answer has to be held at once for, bytes.
const HELD_BYTES: usize = 2 << 20;

/// What a server says, and nobody listens to the client.
struct Script<'a>(&'a [u8]);

impl Read for Script<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Script<'_> {
    fn write(&mut self, buffer: &[u8]) -> Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A handshake for 1 MiB with these flags, structured replies and allocation under number 5.
fn agreed(flags: u8) -> Vec<u8> {
    let reply = |option: u32, kind: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).expect("it is short");
        let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        bytes.extend([option, kind, length].iter().flat_map(|number| number.to_be_bytes()));
        bytes.extend(data);
        bytes
    };
    [
        b"NBDMAGICIHAVEOPT\0\x03".to_vec(),
        reply(8, 1, &[]),
        reply(10, 4, b"\0\0\0\x05base:allocation"),
        reply(10, 1, &[]),
        reply(7, 3, &[0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0x05, flags]),
        reply(7, 1, &[]),
    ]
    .concat()
}

fuzz_target!(|input: (bool, bool, Vec<u8>)| {
    let (from_the_start, read_only, bytes) = input;
    let flags = if read_only { 0x03 } else { 0x6d };
    let said = if from_the_start { bytes } else { [agreed(flags), bytes].concat() };
    memory::within(allowance(said.len(), 0) + HELD_BYTES, || {
        let Ok(mut client) = Client::connect(Script(&said), "") else { return };
        assert!(from_the_start || client.size_bytes() == 1 << 20);
        let mut buffer = vec![0; 1 << 16];
        // Whichever comes first: what is left of the script is for the other.
        let _ = client.read(16, from_ref(&(16..1 << 16)), &mut buffer);
        if let Ok(extents) = client.status(0..1 << 20) {
            assert!(!extents.is_empty() && extents.iter().all(|extent| extent.len > 0));
        }
        // The same answers, to writes.
        let writer = Client::connect(Script(&said), "").and_then(Client::into_writer);
        if let Ok(mut writer) = writer {
            let _ = writer.write(1, &buffer).and_then(|()| writer.write_zeroes(1 << 17..1 << 18));
            let _ = writer.flush();
        }
    });
});
