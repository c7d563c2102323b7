//! Frames: raw bytes, and payloads that the fuzzer makes up under the chunk's own key.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use strongroom_format::chunker::MAX_CHUNK_BYTES;
use strongroom_format::frame::{ChunkNamer, FrameSealer, PlaintextHash, open_frame};
use strongroom_format::ids::ChunkId;
use strongroom_format::secrets::Secret32;
use strongroom_fuzz::{WORLD, memory, seal_frame};

#[derive(Debug, Arbitrary)]
struct Input {
    plaintext_len: u32,
    id: Option<u8>,
    content: Content,
}

#[derive(Debug, Arbitrary)]
enum Content {
    Frame(Vec<u8>),
    Payload(Vec<u8>),
    Compressed { encoding: u8, plain: Vec<u8>, repeat: u8, stated_right: bool },
    Honest { plain: Vec<u8>, repeat: u8, level: i8 },
}

fuzz_target!(|input: Input| {
    let namer = ChunkNamer::new(WORLD.secrets.restore.chunk_id_key.clone());
    let key = Secret32::from_bytes([4; 32]);
    let mut plaintext_len = input.plaintext_len as usize;
    let mut id = ChunkId::from_bytes([input.id.unwrap_or_default(); 32]);
    let mut honest = None;
    let frame = match input.content {
        Content::Frame(frame) => frame,
        Content::Payload(payload) => seal_frame(key.expose(), id.as_bytes(), input.plaintext_len, &payload),
        Content::Compressed { encoding, plain, repeat, stated_right } => {
            let plain = plain.repeat(repeat.into());
            if stated_right {
                plaintext_len = plain.len();
            }
            if input.id.is_none() {
                id = namer.id(&PlaintextHash::of(&plain));
            }
            let compressed = zstd::bulk::compress(&plain, 1).expect("a growable buffer is long enough");
            let payload = [&[encoding][..], if encoding == 0 { &plain } else { &compressed }].concat();
            let frame = seal_frame(key.expose(), id.as_bytes(), plaintext_len as u32, &payload);
            if stated_right && input.id.is_none() && encoding < 2 {
                honest = Some(plain);
            }
            frame
        }
        Content::Honest { plain, repeat, level } => {
            let plain = plain.repeat(repeat.into());
            let hash = PlaintextHash::of(&plain);
            let Ok(mut sealer) = FrameSealer::new(&WORLD.secrets.ingest, level.into()) else { return };
            (id, plaintext_len) = (sealer.id(&hash), plain.len());
            let frame = sealer.seal(&id, &key, &plain).to_vec();
            honest = Some(plain);
            frame
        }
    };
    // Twice the payload, once the plaintext: and never more than the longest chunk.
    let limit = 3 * frame.len() + 2 * plaintext_len.min(MAX_CHUNK_BYTES) + (64 << 10);
    let opened = memory::within(limit, || open_frame(&namer, &id, &key, plaintext_len, &frame));
    match honest {
        Some(plain) => assert_eq!(opened, Ok(plain)),
        None => {
            if let Ok(plain) = opened {
                assert_eq!(plain.len(), plaintext_len);
                assert_eq!(namer.id(&PlaintextHash::of(&plain)), id);
            }
        }
    }
});
