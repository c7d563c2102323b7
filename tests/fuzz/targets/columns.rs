//! Bodies that are well-formed MessagePack of the right fields, with columns that may or may not fit together.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use strongroom_format::layout::ObjectKey;
use strongroom_format::seal::Kind;
use strongroom_format::secrets::seal_chunk_keys;
use strongroom_fuzz::{SEALED_KINDS, SEGMENT, WORLD, allowance, bodies, enclose, memory, rng, seal_object};

#[derive(Debug, Arbitrary)]
enum Shape {
    Segment { packs: u8, lists: Vec<u32>, rows: Vec<Row>, keys: Keys, damage: Damage },
    Index { packs: Vec<Pack>, inbox: bool, damage: Damage },
    Manifest(Manifest),
    Group { packs: Vec<(u8, Vec<(u32, u32, u32)>)>, damage: Damage },
    Part { rows: Vec<[u32; 6]>, damage: Damage },
    Usage { segments: Vec<(u32, u8)>, groups: Vec<Option<u32>>, also_in: Vec<(u8, u32)>, damage: Damage },
}

#[derive(Debug, Arbitrary)]
struct Row {
    zeros: bool,
    pack: u8,
    len: u32,
    frame_len: u32,
}

#[derive(Debug, Arbitrary)]
enum Keys {
    Raw(Vec<u8>),
    Sealed(u8),
    Fitting,
}

/// Takes bytes from the end of one column, or adds some.
#[derive(Debug, Arbitrary)]
struct Damage {
    column: u8,
    bytes: i8,
}

impl Damage {
    fn apply<const N: usize>(&self, columns: [&mut Vec<u8>; N]) {
        for (n, column) in columns.into_iter().enumerate() {
            if n == usize::from(self.column) {
                column.resize(column.len().saturating_add_signed(isize::from(self.bytes)), 7);
            }
        }
    }
}

#[derive(Debug, Arbitrary)]
struct Pack {
    rows: Vec<(u32, u32)>,
    stated: Option<u32>,
    size_bytes: u32,
}

#[derive(Debug, Arbitrary)]
struct Manifest {
    volume: String,
    size_bytes: u64,
    fits: bool,
    segments: u8,
    runs: Vec<(u32, Option<(u32, u32)>)>,
    fast_cdc: Option<u32>,
}

#[derive(Serialize)]
struct SegmentBody {
    packs: serde_bytes::ByteBuf,
    list_counts: serde_bytes::ByteBuf,
    lens: serde_bytes::ByteBuf,
    packs_of: serde_bytes::ByteBuf,
    ids: serde_bytes::ByteBuf,
    offsets: serde_bytes::ByteBuf,
    frame_lens: serde_bytes::ByteBuf,
    sealed_keys: serde_bytes::ByteBuf,
}

#[derive(Serialize)]
struct IndexBody {
    packs: Vec<IndexedPack>,
    ids: serde_bytes::ByteBuf,
    plain_lens: serde_bytes::ByteBuf,
    frame_lens: serde_bytes::ByteBuf,
}

#[derive(Serialize)]
struct InboxRecord {
    packs: IndexBody,
}

#[derive(Serialize)]
struct IndexedPack {
    pack: serde_bytes::ByteBuf,
    size_bytes: u32,
    writer: String,
    chunks: u32,
}

#[derive(Serialize)]
struct GroupBody {
    packs: serde_bytes::ByteBuf,
    counts: serde_bytes::ByteBuf,
    gaps: serde_bytes::ByteBuf,
    lens: serde_bytes::ByteBuf,
    uses: serde_bytes::ByteBuf,
}

#[derive(Serialize)]
struct PartBody {
    packs: serde_bytes::ByteBuf,
    groups: serde_bytes::ByteBuf,
    indexes: serde_bytes::ByteBuf,
    sizes: serde_bytes::ByteBuf,
    live_frames: serde_bytes::ByteBuf,
    live_bytes: serde_bytes::ByteBuf,
    named_by: serde_bytes::ByteBuf,
}

#[derive(Serialize)]
struct UsageBody {
    backups: serde_bytes::ByteBuf,
    segments: serde_bytes::ByteBuf,
    segment_uses: serde_bytes::ByteBuf,
    segments_counted: serde_bytes::ByteBuf,
    groups: Vec<Option<StoredGroup>>,
    indexes: Vec<Option<serde_bytes::ByteBuf>>,
    also_in: Vec<(serde_bytes::ByteBuf, u32)>,
    swept_to: Option<serde_bytes::ByteBuf>,
    parts: Vec<u8>,
}

#[derive(Serialize)]
struct StoredGroup {
    epoch: u64,
    id: serde_bytes::ByteBuf,
    frames: u32,
    references: u64,
}

/// Ids that tell one row from the other.
fn ids(count: usize) -> Vec<u8> {
    (0..count).flat_map(|number| [u8::try_from(number % 251).expect("small"); 16]).collect()
}

fn column(values: impl Iterator<Item = u32>) -> Vec<u8> {
    values.flat_map(u32::to_le_bytes).collect()
}

fn try_body(kind: Kind, body: &impl Serialize) {
    let (_, key) = SEALED_KINDS.into_iter().find(|(k, _)| *k == kind).expect("a sealed kind");
    let packed = rmp_serde::to_vec_named(body).expect("plain types");
    let object = seal_object(kind, &key, &enclose(&packed));
    let _ = memory::within(allowance(object.len(), packed.len()), || bodies::exercise(kind, &key, &object));
}

fuzz_target!(|shape: Shape| match shape {
    Shape::Segment { packs, lists, rows, keys, damage } => {
        let chunks: Vec<&Row> = rows.iter().filter(|row| !row.zeros).collect();
        let key_bytes = |count: usize| {
            let aad = [WORLD.target.as_bytes(), ObjectKey::Segment(SEGMENT).to_string().as_bytes()].concat();
            let public = WORLD.secrets.ingest.restore_public;
            seal_chunk_keys(&public, &aad, &vec![3; count], &mut rng()).expect("a good public key")
        };
        let mut body = SegmentBody {
            packs: vec![8; usize::from(packs) * 16].into(),
            list_counts: column(lists.iter().copied()).into(),
            lens: column(rows.iter().map(|row| row.len)).into(),
            packs_of: column(rows.iter().map(|row| if row.zeros { u32::MAX } else { row.pack.into() }))
                .into(),
            ids: vec![1; chunks.len() * 32].into(),
            offsets: column(chunks.iter().map(|row| row.len)).into(),
            frame_lens: column(chunks.iter().map(|row| row.frame_len)).into(),
            sealed_keys: match keys {
                Keys::Raw(bytes) => bytes.into(),
                Keys::Sealed(count) => key_bytes(count.into()).into(),
                Keys::Fitting => key_bytes(chunks.len() * 32).into(),
            },
        };
        damage.apply([
            &mut body.packs,
            &mut body.list_counts,
            &mut body.lens,
            &mut body.packs_of,
            &mut body.ids,
            &mut body.offsets,
            &mut body.frame_lens,
        ]);
        try_body(Kind::Segment, &body);
    }
    Shape::Index { packs, inbox, damage } => {
        let rows = || packs.iter().flat_map(|pack| pack.rows.iter());
        let mut body = IndexBody {
            ids: vec![1; rows().count() * 32].into(),
            plain_lens: column(rows().map(|row| row.0)).into(),
            frame_lens: column(rows().map(|row| row.1)).into(),
            packs: packs
                .iter()
                .map(|pack| IndexedPack {
                    pack: vec![2; 16].into(),
                    size_bytes: pack.size_bytes,
                    writer: String::new(),
                    chunks: pack.stated.unwrap_or(u32::try_from(pack.rows.len()).expect("inputs are short")),
                })
                .collect(),
        };
        damage.apply([&mut body.ids, &mut body.plain_lens, &mut body.frame_lens]);
        if inbox {
            try_body(Kind::InboxRecord, &InboxRecord { packs: body });
        } else {
            try_body(Kind::Index, &body);
        }
    }
    Shape::Manifest(manifest) => try_body(Kind::Manifest, &manifest.body()),
    Shape::Group { packs, damage } => {
        let rows = || packs.iter().flat_map(|(_, rows)| rows.iter());
        let mut body = GroupBody {
            packs: packs.iter().flat_map(|(id, _)| [*id; 16]).collect::<Vec<u8>>().into(),
            counts: column(
                packs.iter().map(|(_, rows)| u32::try_from(rows.len()).expect("inputs are short")),
            )
            .into(),
            gaps: column(rows().map(|row| row.0)).into(),
            lens: column(rows().map(|row| row.1)).into(),
            uses: column(rows().map(|row| row.2)).into(),
        };
        damage.apply([&mut body.packs, &mut body.counts, &mut body.gaps, &mut body.lens, &mut body.uses]);
        try_body(Kind::Node, &body);
    }
    Shape::Part { rows, damage } => {
        let each = |number: usize| column(rows.iter().map(|row| row[number])).into();
        let mut body = PartBody {
            packs: ids(rows.len()).into(),
            groups: each(0),
            indexes: each(1),
            sizes: each(2),
            live_frames: each(3),
            live_bytes: each(4),
            named_by: each(5),
        };
        damage.apply([
            &mut body.packs,
            &mut body.groups,
            &mut body.indexes,
            &mut body.sizes,
            &mut body.named_by,
        ]);
        try_body(Kind::Node, &body);
    }
    Shape::Usage { segments, groups, also_in, damage } => {
        let mut body = UsageBody {
            backups: ids(3).into(),
            segments: ids(segments.len()).into(),
            segment_uses: column(segments.iter().map(|segment| segment.0)).into(),
            segments_counted: segments.iter().map(|segment| segment.1).collect::<Vec<u8>>().into(),
            groups: groups
                .iter()
                .map(|frames| {
                    let group = |frames: u32| StoredGroup {
                        epoch: 7,
                        id: vec![4; 16].into(),
                        frames,
                        references: frames.into(),
                    };
                    frames.map(group)
                })
                .collect(),
            indexes: vec![Some(vec![5; 16].into()), None],
            also_in: also_in.iter().map(|(pack, index)| (vec![*pack; 16].into(), *index)).collect(),
            swept_to: None,
            parts: Vec::new(),
        };
        damage.apply([
            &mut body.backups,
            &mut body.segments,
            &mut body.segment_uses,
            &mut body.segments_counted,
        ]);
        try_body(Kind::Node, &body);
    }
});

impl Manifest {
    /// The library's own type: all its fields are public.
    fn body(&self) -> strongroom_format::manifest::Manifest {
        use strongroom_format::chunker::{ChunkerParams, REGION_BYTES};
        use strongroom_format::ids::{Epoch, Incarnation, SegmentId, SessionId, TimestampMs};
        use strongroom_format::manifest::{ListRun, Manifest, RegionRun, SegmentRef};
        let regions: u64 = self.runs.iter().map(|run| u64::from(run.0)).sum();
        Manifest {
            backup: strongroom_fuzz::BACKUP,
            volume: self.volume.clone(),
            host: String::new(),
            source: String::new(),
            created: TimestampMs(self.size_bytes),
            size_bytes: if self.fits { regions.saturating_mul(REGION_BYTES) } else { self.size_bytes },
            chunker: match self.fast_cdc {
                Some(average_bytes) => ChunkerParams::FastCdc { average_bytes },
                None => ChunkerParams::Fixed { size_bytes: 4096 },
            },
            session: SessionId::from_bytes([0; 16]),
            incarnation: Incarnation::from_bytes([0; 16]),
            base_epoch: Epoch(self.size_bytes),
            parent: None,
            segments: vec![
                SegmentRef { id: SegmentId::from_bytes([3; 16]), inherited: false };
                self.segments.into()
            ],
            runs: self
                .runs
                .iter()
                .map(|(regions, at)| RegionRun {
                    regions: *regions,
                    lists: at.map(|(segment, slot)| ListRun { segment: segment % 300, slot }),
                })
                .collect(),
            new_packs: Default::default(),
            new_indexes: Vec::new(),
            stats: Default::default(),
            group: None,
        }
    }
}
