//! Packs whose directory is what the fuzzer makes up, sealed and hashed as it should be.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use strongroom_format::layout::ObjectKey;
use strongroom_format::pack::{check_pack, directory_tail_len, open_directory};
use strongroom_format::seal::{Kind, header};
use strongroom_fuzz::{PACK, WORLD, allowance, enclose, memory, seal_part};

#[derive(Debug, Arbitrary)]
struct Input {
    body: Vec<u8>,
    directory: Directory,
    trailer: Option<[u8; 8]>,
    tail_cut: u16,
}

#[derive(Debug, Arbitrary)]
enum Directory {
    Plain(Vec<u8>),
    Packed(Vec<u8>),
    Fields {
        rows: Vec<(u32, u32)>,
        fitting: bool,
        padding_bytes: u32,
        column: u8,
        cut: u8,
        damage_hash: bool,
    },
}

#[derive(Serialize)]
struct DirectoryBody {
    writer: String,
    session: serde_bytes::ByteBuf,
    body_hash: serde_bytes::ByteBuf,
    padding_bytes: u32,
    ids: serde_bytes::ByteBuf,
    plain_lens: serde_bytes::ByteBuf,
    frame_lens: serde_bytes::ByteBuf,
}

fn column(values: impl Iterator<Item = u32>) -> Vec<u8> {
    values.flat_map(u32::to_le_bytes).collect()
}

fuzz_target!(|input: Input| {
    let mut pack = header(Kind::Pack).to_vec();
    pack.extend(&input.body);
    let mut packed_len = 0;
    let mut raw = false;
    let plain = match input.directory {
        Directory::Plain(plain) => {
            raw = true;
            plain
        }
        Directory::Packed(packed) => {
            packed_len = packed.len();
            enclose(&packed)
        }
        Directory::Fields { mut rows, fitting, padding_bytes, column: damaged, cut, damage_hash } => {
            let mut padding_bytes = padding_bytes;
            if fitting {
                // Frames that add up to the body, and the rest is padding.
                let mut left = input.body.len() as u32;
                for row in &mut rows {
                    row.1 = row.1.checked_rem(left + 1).unwrap_or(0);
                    left -= row.1;
                }
                padding_bytes = left;
            }
            let hash = if damage_hash { [0; 32] } else { *blake3::hash(&pack).as_bytes() };
            let mut body = DirectoryBody {
                writer: "fuzz".to_owned(),
                session: vec![0; 16].into(),
                body_hash: hash.to_vec().into(),
                padding_bytes,
                ids: vec![5; rows.len() * 32].into(),
                plain_lens: column(rows.iter().map(|row| row.0)).into(),
                frame_lens: column(rows.iter().map(|row| row.1)).into(),
            };
            let columns = [
                &mut body.ids,
                &mut body.plain_lens,
                &mut body.frame_lens,
                &mut body.body_hash,
                &mut body.session,
            ];
            if let Some(damaged) = columns.into_iter().nth(damaged.into()) {
                let kept = damaged.len().saturating_sub(cut.into());
                damaged.truncate(kept);
            }
            let packed = rmp_serde::to_vec_named(&body).expect("plain types");
            packed_len = packed.len();
            enclose(&packed)
        }
    };
    let sealed = seal_part(Kind::Pack, &ObjectKey::Pack(PACK), &[], &plain);
    pack.extend(&sealed);
    match input.trailer {
        Some(trailer) => pack.extend(trailer),
        None => {
            pack.extend((sealed.len() as u32).to_le_bytes());
            pack.extend(b"STRO");
        }
    }
    // A directory unpacks to at most 64 MiB.
    let limit = if raw { 80 << 20 } else { allowance(pack.len(), packed_len) };
    memory::within(limit, || {
        let size = pack.len() as u64;
        let whole = check_pack(&WORLD.sealer, PACK, &pack);
        if let Ok(directory) = &whole {
            let mut end = 12;
            for entry in &directory.entries {
                assert_eq!(entry.offset, end);
                end += entry.frame_len;
            }
            assert!(u64::from(end) <= size);
        }
        let tail = &pack[usize::from(input.tail_cut).min(pack.len())..];
        let from_tail = open_directory(&WORLD.sealer, PACK, size, tail);
        match directory_tail_len(PACK, size, tail) {
            Ok(need) if need <= tail.len() as u64 => {
                assert!(whole.is_err() || whole == from_tail, "a directory reads alike from tail and whole");
            }
            _ => assert!(from_tail.is_err()),
        }
    });
});
