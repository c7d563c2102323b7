//! What a client of `serve` sends: options of the handshake, then requests.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use strongroom_fuzz::{allowance, memory};
use strongroom_nbd::handshake::{Haggling, OptionHeader, Session, Step};
use strongroom_nbd::request::{Command, RequestHeader};
use strongroom_nbd::{ExportInfo, MAX_PAYLOAD_BYTES};

#[derive(Debug, Arbitrary)]
struct Talk {
    client_flags: [u8; 4],
    option_header: [u8; 16],
    options: Vec<(u8, Data)>,
    size_bytes: u64,
    read_only: bool,
    requests: Vec<([u8; 24], bool)>,
}

#[derive(Debug, Arbitrary)]
enum Data {
    Raw(Vec<u8>),
    /// A name and items behind it, with counts and lengths that may lie.
    Named {
        name: String,
        count: u32,
        items: Vec<(Option<u32>, String)>,
    },
}

impl Data {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Raw(bytes) => bytes.clone(),
            Self::Named { name, count, items } => {
                let length = |text: &str| u32::try_from(text.len()).expect("inputs are short");
                let mut bytes = [&length(name).to_be_bytes(), name.as_bytes(), &count.to_be_bytes()].concat();
                for (stated, item) in items {
                    bytes.extend(stated.unwrap_or(length(item)).to_be_bytes());
                    bytes.extend(item.as_bytes());
                }
                bytes
            }
        }
    }
}

/// Checks that what was let through lies within the export and moves no more than it may.
fn check(command: &Command, export: &ExportInfo, session: Session) {
    let (range, writes) = match command {
        Command::Read { range, .. } => {
            assert!(range.end - range.start <= u64::from(MAX_PAYLOAD_BYTES));
            (range, false)
        }
        Command::Cache { range } => (range, false),
        Command::BlockStatus { range, .. } => {
            assert!(session.allocation && session.structured);
            (range, false)
        }
        Command::Write { range, .. } | Command::Trim { range, .. } | Command::WriteZeroes { range, .. } => {
            (range, true)
        }
        Command::Flush | Command::Disconnect => return,
    };
    assert!(range.start < range.end && range.end <= export.size_bytes);
    assert!(!(writes && export.read_only));
}

fuzz_target!(|talk: Talk| {
    let len: usize = talk.options.iter().map(|(_, data)| data.bytes().len() + 64).sum();
    let export = ExportInfo {
        name: "backup".to_owned(),
        description: "volume v".to_owned(),
        size_bytes: talk.size_bytes,
        read_only: talk.read_only,
    };
    memory::within(allowance(len, 0), || {
        let _ = OptionHeader::parse(&talk.option_header);
        let _ = Haggling::begin(&export, talk.client_flags);
        let mut haggling = Haggling::begin(&export, [0, 0, 0, 3]).expect("the fixed handshake");
        for (option, data) in &talk.options {
            match haggling.answer(u32::from(option % 16), &data.bytes()) {
                Step::Reply(bytes) | Step::Begin(bytes) | Step::Close(bytes) => {
                    assert!(bytes.len() < 1000, "replies are short");
                }
            }
        }
        let session = haggling.session();
        for (bytes, right_magic) in &talk.requests {
            let magic: [u8; 4] = if *right_magic { 0x2560_9513u32.to_be_bytes() } else { [0; 4] };
            let bytes = [&magic[..], bytes].concat().try_into().expect("28 bytes");
            let Ok(header) = RequestHeader::parse(&bytes) else { continue };
            if let Ok(payload_bytes) = header.payload_bytes() {
                assert!(payload_bytes <= MAX_PAYLOAD_BYTES);
            }
            if let Ok(command) = header.check(&export, session) {
                check(&command, &export, session);
            }
        }
    });
});
