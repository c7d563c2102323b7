//! Cuts against the plain algorithm of `docs/format.md`, and the bounds that readers rely on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strongroom_format::chunker::{
    Chunker, ChunkerParams, MAX_CHUNK_BYTES, MIN_HOLE_BYTES, Stretch, ZERO_BLOCK_BYTES, is_zero, stretches,
};
use strongroom_format::secrets::Secret32;

/// Strict and relaxed mask of the averages 4 KiB, 8 KiB, 16 KiB: the table of the document.
const MASKS: [(u64, u64); 3] = [
    (0x0000_d903_0353_0000, 0x0000_d900_0353_0000),
    (0x0000_d903_1353_0000, 0x0000_d901_0353_0000),
    (0x0000_d90f_0353_0000, 0x0000_d903_0353_0000),
];

fn reference_cut(data: &[u8], average: usize, masks: (u64, u64), gear: &[u64; 256]) -> usize {
    let (least, most) = (average / 4, average * 4);
    if data.len() <= least {
        return data.len();
    }
    let end = data.len().min(most);
    let mut hash = 0u64;
    for at in least..end & !1 {
        hash = (hash << 1).wrapping_add(gear[usize::from(data[at])]);
        let mask = if at < average.min(end) & !1 { masks.0 } else { masks.1 };
        if hash & mask == 0 {
            return at;
        }
    }
    end
}

/// Makes long data of a short input: pairs of a byte and how often to repeat it, or what noise to put in.
fn expand(input: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    for pair in input.as_chunks::<3>().0 {
        let length = usize::from(u16::from_le_bytes([pair[1], pair[2]]));
        match pair[0] {
            0 => data.resize(data.len() + length, 0),
            1 => {
                data.resize(data.len().next_multiple_of(ZERO_BLOCK_BYTES) + length % 9 * ZERO_BLOCK_BYTES, 0)
            }
            byte if byte < 8 => data.resize(data.len() + length, byte),
            seed => {
                let start = data.len();
                data.resize(start + length, 0);
                blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut data[start..]);
            }
        }
        if data.len() > 1 << 20 {
            break;
        }
    }
    data
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, input)) = input.split_first() else { return };
    let region = expand(input);
    let key = Secret32::from_bytes([choice; 32]);
    let mut words = [0u8; 2048];
    blake3::Hasher::new_keyed(&[choice; 32]).finalize_xof().fill(&mut words);
    let gear: [u64; 256] =
        std::array::from_fn(|i| u64::from_le_bytes(words[i * 8..i * 8 + 8].try_into().expect("eight bytes")));
    let which = usize::from(choice % 4);
    let params = match which {
        3 => ChunkerParams::Fixed { size_bytes: 8192 },
        n => ChunkerParams::FastCdc { average_bytes: 4096 << n },
    };
    let chunker = Chunker::new(params, &key).expect("within the limits");

    let found = stretches(&region);
    let mut start = 0;
    for (i, stretch) in found.iter().enumerate() {
        let end = match *stretch {
            Stretch::Hole(len) => {
                assert!(is_zero(&region[start..start + len]));
                assert!(len >= MIN_HOLE_BYTES || len == region.len());
                assert!(i == 0 || matches!(found[i - 1], Stretch::Data(_)), "two holes in a row");
                start + len
            }
            Stretch::Data(len) => {
                let end = start + len;
                let mut at = start;
                while at < end {
                    let cut = chunker.cut(&region[at..end], at);
                    assert!(0 < cut && cut <= MAX_CHUNK_BYTES && at + cut <= end);
                    let expected = match which {
                        3 => (8192 - at % 8192).min(end - at),
                        n => reference_cut(&region[at..end], 4096 << n, MASKS[n], &gear),
                    };
                    assert_eq!(cut, expected);
                    at += cut;
                }
                end
            }
        };
        start = end;
    }
    assert_eq!(start, region.len());
});
