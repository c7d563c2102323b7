//! Whatever is done to the index, it answers as a map would that holds all live index objects and the session's packs.

use proptest::prelude::*;

use super::*;

const INDEXES: u64 = 24;
const CHUNKS: u64 = 1500;
const WRITERS: [&str; 2] = ["host a", "host b"];

#[derive(Debug, Clone)]
enum Step {
    /// The root lists these index objects; what is missing is fetched, or not.
    Root {
        live: u32,
        fetch: bool,
    },
    /// Uploads packs of so many chunks, from a chunk number on.
    Upload {
        packs: u8,
        chunks: u64,
        first: u64,
    },
    Exclude(Vec<u64>),
    OnlyWriter(Option<usize>),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u32>(), prop::bool::weighted(0.9)).prop_map(|(live, fetch)| Step::Root { live, fetch }),
        4 => (1..6u8, 1..120u64, 0..CHUNKS)
            .prop_map(|(packs, chunks, first)| Step::Upload { packs, chunks, first }),
        2 => prop::collection::vec(0..INDEXES * 3, 0..12).prop_map(Step::Exclude),
        1 => prop::option::of(0..WRITERS.len()).prop_map(Step::OnlyWriter),
        1 => Just(Step::Reopen),
    ]
}

/// What index object `number` lists: packs that overlap those of others in chunks, and now and then the same pack.
fn content(number: u64) -> Vec<PackDirectory> {
    (0..3)
        .map(|n| {
            let pack = if number.is_multiple_of(5) && n == 0 { 1 } else { number * 3 + n };
            let writer = WRITERS[usize::try_from(pack % 2).unwrap()];
            directory(pack, writer, (0..40 + pack).map(|chunk| (pack * 37 + chunk * 3) % CHUNKS))
        })
        .collect()
}

struct Model {
    contents: Vec<Vec<PackDirectory>>,
    /// Index objects that are live and were fetched.
    answered: HashSet<u64>,
    session: Vec<PackDirectory>,
    excluded: HashSet<PackId>,
    writer: Option<&'static str>,
}

impl Model {
    fn expected(&self) -> HashMap<ChunkId, HashSet<Location>> {
        let mut expected: HashMap<_, HashSet<_>> = HashMap::new();
        let listed =
            self.answered.iter().flat_map(|number| &self.contents[usize::try_from(*number).unwrap()]);
        for directory in listed.chain(&self.session) {
            if !self.excluded.contains(&directory.pack)
                && self.writer.is_none_or(|writer| writer == directory.writer)
            {
                for (id, location) in locations(directory) {
                    expected.entry(id).or_default().insert(location);
                }
            }
        }
        expected
    }
}

fn check(steps: Vec<Step>, disk_bytes: u64) -> Result<(), TestCaseError> {
    let sampled = disk_bytes < AMPLE_DISK_BYTES;
    let dir = tempfile::tempdir().unwrap();
    let mut dedup = DedupIndex::open_within(Some(dir.path()), tiny(disk_bytes)).unwrap();
    let mut model = Model {
        contents: (0..INDEXES).map(content).collect(),
        answered: HashSet::new(),
        session: Vec::new(),
        excluded: HashSet::new(),
        writer: None,
    };
    let numbers: HashMap<_, _> = (0..INDEXES).map(|number| (index(number), number)).collect();
    let mut next_pack = 1_000_000;
    for step in steps {
        match step {
            Step::Root { live, fetch } => {
                let live: Vec<_> = (0..INDEXES).filter(|number| live >> number & 1 == 1).collect();
                let ids: Vec<_> = live.iter().map(|number| index(*number)).collect();
                dedup.retain(&ids);
                let missing: HashSet<_> = dedup.missing(&ids).iter().map(|id| numbers[id]).collect();
                let lost = model.answered.iter().any(|number| missing.contains(number));
                prop_assert!(sampled || !lost, "what stays live is not fetched twice");
                model.answered = live.iter().filter(|number| !missing.contains(number)).copied().collect();
                for number in missing.into_iter().filter(|_| fetch) {
                    let directories = &model.contents[usize::try_from(number).unwrap()];
                    dedup.add_index(index(number), directories).unwrap();
                    model.answered.insert(number);
                }
                prop_assert_eq!(dedup.missing(&ids).is_empty(), model.answered.len() == ids.len());
            }
            Step::Upload { packs, chunks, first } => {
                for _ in 0..packs {
                    let writer = WRITERS[usize::try_from(next_pack % 2).unwrap()];
                    let numbers = (first..first + chunks).map(|number| number % CHUNKS);
                    let pack = directory(next_pack, writer, numbers);
                    dedup.insert_session_pack(&pack);
                    model.session.push(pack);
                    next_pack += 1;
                }
            }
            Step::Exclude(packs) => {
                model.excluded = packs.into_iter().map(pack).chain([pack(next_pack - 1)]).collect();
                dedup.exclude_packs(model.excluded.clone());
            }
            Step::OnlyWriter(writer) => {
                model.writer = writer.map(|writer| WRITERS[writer]);
                dedup.only_writer(model.writer.map(str::to_owned));
            }
            Step::Reopen => {
                let old = std::mem::replace(
                    &mut dedup,
                    DedupIndex::open_within(Some(dir.path()), tiny(disk_bytes)).unwrap(),
                );
                drop(old);
                model.session.clear();
                model.excluded.clear();
                model.writer = None;
                for number in 0..CHUNKS {
                    prop_assert_eq!(dedup.lookup(&chunk(number)), None, "nothing is declared live yet");
                }
                let live: Vec<_> = model.answered.iter().map(|number| index(*number)).collect();
                prop_assert!(sampled || dedup.missing(&live).is_empty());
                dedup.retain(&live);
                for number in dedup.missing(&live).iter().map(|id| numbers[id]) {
                    let directories = &model.contents[usize::try_from(number).unwrap()];
                    dedup.add_index(index(number), directories).unwrap();
                }
            }
        }
        let expected = model.expected();
        for number in 0..CHUNKS {
            let id = chunk(number);
            match (dedup.lookup(&id), expected.get(&id)) {
                (Some(found), Some(places)) => prop_assert!(places.contains(&found)),
                (Some(found), None) => prop_assert!(false, "answered {found:?} for an unknown chunk"),
                (None, Some(_)) => prop_assert!(sampled, "missed chunk {number}"),
                (None, None) => {}
            }
        }
        let stats = dedup.stats();
        // Apart from what every index object costs.
        prop_assert!(stats.disk_bytes <= disk_bytes + INDEXES * 300, "{stats:?}");
        prop_assert!(stats.tables < 40, "{stats:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn answers_like_a_map(steps in prop::collection::vec(step(), 1..14)) {
        check(steps, AMPLE_DISK_BYTES)?;
    }

    #[test]
    fn answers_nothing_a_map_would_not_when_sampled(steps in prop::collection::vec(step(), 1..14)) {
        check(steps, 64 << 10)?;
    }
}
