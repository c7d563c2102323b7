//! The protocol byte by byte, as `proto.md` has it, and whole conversations with a server.

mod writing;

use std::ops::Range;
use std::slice::from_ref;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;

use crate::client::{self, ClientError};
use crate::export::{Allocation, Export, Piece, Status};
use crate::handshake::{ExportInfo, Haggling, OptionHeader, Session, Step, greeting};
use crate::reply::{self, ErrorCode, Failure};
use crate::request::{Command, RequestHeader};
use crate::server::{ServeError, serve};
use crate::wire::MAX_PAYLOAD_BYTES;

const SIZE_BYTES: u64 = 1 << 20;

fn info(read_only: bool) -> ExportInfo {
    ExportInfo { name: "own".into(), description: "a line".into(), size_bytes: SIZE_BYTES, read_only }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn haggling(info: &ExportInfo) -> Haggling<'_> {
    Haggling::begin(info, [0, 0, 0, 3]).unwrap()
}

/// One query of a meta context, for an export.
fn query(export: &str, queries: &[&str]) -> Vec<u8> {
    let string = |text: &str| [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
    let mut bytes = string(export);
    bytes.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    bytes.extend(queries.iter().flat_map(|query| string(query)));
    bytes
}

#[test]
fn the_greeting_is_that_of_fixed_newstyle() {
    assert_eq!(greeting().to_vec(), hex("4e42444d41474943 49484156454f5054 0003"));
    let info = info(true);
    assert!(Haggling::begin(&info, [0, 0, 0, 1]).is_ok());
    assert!(Haggling::begin(&info, [0, 0, 0, 2]).is_err(), "not the fixed handshake");
    assert!(Haggling::begin(&info, [0, 0, 0, 7]).is_err(), "a flag nobody knows");
}

#[test]
fn an_option_begins_with_its_magic_number() {
    let header = OptionHeader::parse(&hex("49484156454f5054 00000007 00000010").try_into().unwrap()).unwrap();
    assert_eq!(header, OptionHeader { option: 7, data_bytes: 16 });
    assert!(OptionHeader::parse(&[0; 16]).is_err());
}

#[test]
fn go_tells_size_flags_and_what_else_was_asked_for() {
    let info = info(true);
    let data = hex("00000000 0002 0003 0002");
    let Step::Begin(bytes) = haggling(&info).answer(7, &data) else { panic!("not begun") };
    let expected = [
        // NBD_INFO_EXPORT: 1 MiB; flags, read-only, multi-conn, cache.
        "0003e889045565a9 00000007 00000003 0000000c 0000 0000000000100000 0503",
        "0003e889045565a9 00000007 00000003 00000008 0002 61206c696e65",
        "0003e889045565a9 00000007 00000003 0000000e 0003 00000001 00001000 02000000",
        "0003e889045565a9 00000007 00000001 00000000",
    ];
    assert_eq!(bytes, hex(&expected.concat()));
    // The same, but the handshake goes on.
    assert!(matches!(haggling(&info).answer(6, &data), Step::Reply(_)));
    let Step::Reply(unknown) = haggling(&info).answer(7, &hex("00000001 78 0000")) else { panic!("begun") };
    assert_eq!(unknown[8..16], hex("00000007 80000006"));
}

#[test]
fn the_old_way_to_choose_an_export_works_too() {
    let info = info(false);
    // Flags, flush, FUA, trim, zeroes, multi-conn, cache.
    let told = hex("0000000000100000 056d");
    assert_eq!(haggling(&info).answer(1, b""), Step::Begin(told.clone()));
    assert_eq!(haggling(&info).answer(1, b"other"), Step::Close(Vec::new()));
    let mut with_zeroes = Haggling::begin(&info, [0, 0, 0, 1]).unwrap();
    assert_eq!(with_zeroes.answer(1, b"own"), Step::Begin([told, vec![0; 124]].concat()));
}

#[test]
fn options_are_answered_as_they_should_be() {
    let info = info(true);
    let mut haggling = haggling(&info);
    let kinds = |step: Step| match step {
        Step::Reply(bytes) => {
            let mut rest = bytes.as_slice();
            let mut kinds = Vec::new();
            while let Some((header, after)) = rest.split_first_chunk::<20>() {
                let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
                kinds.push(number(12));
                rest = &after[number(16) as usize..];
            }
            kinds
        }
        _ => Vec::new(),
    };
    const INVALID: u32 = 0x8000_0003;
    assert_eq!(kinds(haggling.answer(3, b"")), [2, 1], "a list of one export");
    assert_eq!(kinds(haggling.answer(3, b"x")), [INVALID]);
    assert_eq!(kinds(haggling.answer(5, b"")), [0x8000_0001], "no TLS");
    assert_eq!(kinds(haggling.answer(11, b"")), [0x8000_0001], "no extended headers");
    let allocation = query("", &["base:allocation"]);
    assert_eq!(kinds(haggling.answer(10, &allocation)), [INVALID], "structured replies come first");
    assert_eq!(kinds(haggling.answer(8, b"x")), [INVALID]);
    assert_eq!(kinds(haggling.answer(8, b"")), [1]);
    assert_eq!(kinds(haggling.answer(10, &allocation)), [4, 1]);
    assert!(haggling.session().allocation);
    assert_eq!(kinds(haggling.answer(10, &query("", &["qemu:dirty-bitmap:b", "base:"]))), [1]);
    assert!(!haggling.session().allocation, "what was set before is void");
    for queries in [&[][..], &["base:"], &["base:allocation", "x-y:z"]] {
        assert_eq!(kinds(haggling.answer(9, &query("own", queries))), [4, 1], "{queries:?}");
    }
    assert_eq!(kinds(haggling.answer(9, &query("other", &[]))), [0x8000_0006]);
    assert_eq!(kinds(haggling.answer(10, &hex("00000000 ffffffff"))), [INVALID], "a count that lies");
    assert_eq!(kinds(haggling.answer(7, &hex("ffffffff"))), [INVALID], "a length that lies");
    assert!(matches!(haggling.answer(2, b"bye"), Step::Close(_)));
}

fn request_bytes(flags: u16, kind: u16, offset: u64, len: u32) -> [u8; RequestHeader::BYTES] {
    let bytes = [
        &0x2560_9513u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &7u64.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ];
    bytes.concat().try_into().unwrap()
}

fn request(flags: u16, kind: u16, offset: u64, len: u32) -> RequestHeader {
    RequestHeader::parse(&request_bytes(flags, kind, offset, len)).unwrap()
}

const AGREED: Session = Session { structured: true, allocation: true };

#[test]
fn requests_are_checked() {
    let (fixed, writable) = (info(true), info(false));
    let check = |flags, kind, offset, len| request(flags, kind, offset, len).check(&writable, AGREED);
    assert_eq!(check(4, 0, 512, 1024), Ok(Command::Read { range: 512..1536, whole: true }));
    assert_eq!(check(1, 1, 0, 512), Ok(Command::Write { range: 0..512, durable: true }));
    assert_eq!(check(1, 3, 0, 0), Ok(Command::Flush));
    assert_eq!(
        check(2, 6, 0, 1 << 20),
        Ok(Command::WriteZeroes { range: 0..SIZE_BYTES, durable: false, keep_space: true })
    );
    assert_eq!(check(8, 7, 0, 512), Ok(Command::BlockStatus { range: 0..512, one: true }));
    let past_the_end = [(0, ErrorCode::Invalid), (1, ErrorCode::NoSpace), (4, ErrorCode::Invalid)];
    for (kind, code) in past_the_end.into_iter().chain([(6, ErrorCode::NoSpace), (7, ErrorCode::Invalid)]) {
        for offset in [SIZE_BYTES, SIZE_BYTES - 511, u64::MAX, u64::MAX - 511] {
            assert_eq!(check(0, kind, offset, 512), Err(code), "{kind} at {offset}");
        }
        assert_eq!(check(0, kind, 0, 0), Err(ErrorCode::Invalid), "nothing");
    }
    for (flags, kind) in [(2, 0), (4, 1), (16, 6), (32, 0), (4, 7), (1 << 15, 3)] {
        assert_eq!(check(flags, kind, 0, 512), Err(ErrorCode::Invalid), "flags {flags} of {kind}");
    }
    assert_eq!(check(0, 8, 0, 512), Err(ErrorCode::Invalid), "no such command");
    for kind in [1, 4, 6] {
        let refused = request(0, kind, 0, 512).check(&fixed, AGREED);
        assert_eq!(refused, Err(ErrorCode::NotPermitted));
    }
    assert_eq!(request(0, 7, 0, 512).check(&fixed, Session::default()), Err(ErrorCode::Invalid));
    assert_eq!(request(4, 0, 0, 512).check(&fixed, Session::default()), Err(ErrorCode::Invalid));
    let large = ExportInfo { size_bytes: u64::MAX, ..writable };
    let too_long = request(0, 0, 0, MAX_PAYLOAD_BYTES + 1);
    assert_eq!(too_long.check(&large, AGREED), Err(ErrorCode::Overflow));
    assert!(request(0, 1, 0, MAX_PAYLOAD_BYTES + 1).payload_bytes().is_err());
    assert_eq!(request(0, 1, 0, MAX_PAYLOAD_BYTES).payload_bytes(), Ok(MAX_PAYLOAD_BYTES));
    assert!(RequestHeader::parse(&[0; 28]).is_err());
}

#[test]
fn replies_are_as_the_protocol_has_them() {
    assert_eq!(reply::done(7), hex("67446698 00000000 0000000000000007"));
    let failure = Failure::new(ErrorCode::Io, "bad");
    assert_eq!(reply::failed(7, &failure, false), hex("67446698 00000005 0000000000000007"));
    assert_eq!(
        reply::failed(7, &failure, true),
        hex("668e33ef 0001 8001 0000000000000007 00000009 00000005 0003 626164")
    );
    let long = Failure::new(ErrorCode::Io, "ä".repeat(4000));
    assert_eq!(reply::failed(7, &long, true).len(), 20 + 6 + 4096);
    let pieces =
        [Piece::Data(Bytes::from_static(&[1])), Piece::Data(Bytes::from_static(&[2])), Piece::Zeros(3)];
    assert_eq!(reply::read_simple(7, &pieces), hex("67446698 00000000 0000000000000007 0102000000"));
    let done = "668e33ef 0001 0000 0000000000000007 00000000";
    assert_eq!(
        reply::read_structured(7, 16, &pieces, false),
        hex(&[
            "668e33ef 0000 0001 0000000000000007 0000000a 0000000000000010 0102",
            "668e33ef 0000 0002 0000000000000007 0000000c 0000000000000012 00000003",
            done,
        ]
        .concat())
    );
    assert_eq!(
        reply::read_structured(7, 16, &pieces, true),
        hex(&["668e33ef 0000 0001 0000000000000007 0000000d 0000000000000010 0102000000", done].concat())
    );
    let extents = [
        Status { allocation: Allocation::Data, len: 512 },
        Status { allocation: Allocation::Hole, len: 1024 },
    ];
    assert_eq!(
        reply::block_status(7, &extents),
        hex("668e33ef 0001 0005 0000000000000007 00000014 00000001 00000200 00000000 00000400 00000003")
    );
}

proptest! {
    /// Whatever a client sends, the answer is one, and what is let through lies within the export.
    #[test]
    fn no_message_does_harm(
        options in proptest::collection::vec((0u32..13, proptest::collection::vec(any::<u8>(), 0..80)), 0..8),
        header in any::<[u8; 24]>(),
        read_only in any::<bool>(),
    ) {
        let info = info(read_only);
        let mut haggling = haggling(&info);
        for (option, data) in options {
            haggling.answer(option, &data);
        }
        let bytes: [u8; 28] = [&0x2560_9513u32.to_be_bytes()[..], &header].concat().try_into().unwrap();
        let request = RequestHeader::parse(&bytes).unwrap();
        if let Ok(Command::Read { range, .. } | Command::Write { range, .. }) = request.check(&info, AGREED) {
            prop_assert!(range.start < range.end && range.end <= SIZE_BYTES);
        }
    }
}

/// An export in memory, whose last 4 KiB can't be read.
struct Memory {
    info: ExportInfo,
    bytes: Mutex<Vec<u8>>,
    flushes: Mutex<u32>,
}

impl Memory {
    fn new() -> Arc<Self> {
        let bytes = vec![0; usize::try_from(SIZE_BYTES).unwrap()];
        Arc::new(Self { info: info(false), bytes: Mutex::new(bytes), flushes: Mutex::default() })
    }
}

fn within(range: Range<u64>) -> Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

impl Export for Memory {
    fn info(&self) -> &ExportInfo {
        &self.info
    }

    async fn read(&self, range: Range<u64>) -> Result<Vec<Piece>, Failure> {
        if range.end > SIZE_BYTES - 4096 {
            return Err(Failure::new(ErrorCode::Io, "damaged"));
        }
        assert_ne!(range.start, 12_345, "a bug");
        let bytes = self.bytes.lock().unwrap()[within(range)].to_vec();
        Ok(vec![Piece::Data(bytes.into())])
    }

    async fn write(&self, offset: u64, bytes: Bytes) -> Result<(), Failure> {
        self.bytes.lock().unwrap()[within(offset..offset + bytes.len() as u64)].copy_from_slice(&bytes);
        Ok(())
    }

    async fn write_zeroes(&self, range: Range<u64>, _: bool) -> Result<(), Failure> {
        self.bytes.lock().unwrap()[within(range)].fill(0);
        Ok(())
    }

    async fn trim(&self, range: Range<u64>) -> Result<(), Failure> {
        self.write_zeroes(range, false).await
    }

    async fn flush(&self) -> Result<(), Failure> {
        *self.flushes.lock().unwrap() += 1;
        Ok(())
    }

    async fn prefetch(&self, _: Range<u64>) -> Result<(), Failure> {
        Ok(())
    }

    async fn status(&self, range: Range<u64>, _: bool) -> Result<Vec<Status>, Failure> {
        let extent = |allocation, len| Status { allocation, len };
        let holes =
            [extent(Allocation::Hole, 512), extent(Allocation::Hole, 512), extent(Allocation::Data, 0)];
        Ok(if range.start == 0 { holes.to_vec() } else { Vec::new() })
    }
}

/// A client's end of a connection, past the handshake.
struct Client {
    stream: DuplexStream,
    server: tokio::task::JoinHandle<Result<(), ServeError>>,
    stop: watch::Sender<bool>,
}

impl Client {
    fn connect(export: Arc<Memory>) -> Self {
        let (stream, other) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(other);
        let (stop, stopped) = watch::channel(false);
        Self { stream, server: tokio::spawn(serve(reader, writer, export, stopped)), stop }
    }

    async fn begun(export: Arc<Memory>) -> Self {
        let mut client = Self::connect(export);
        assert_eq!(client.take(18).await, greeting());
        client.send(&hex("00000003")).await;
        for option in ["00000008 00000000", "00000007 00000006 00000000 0000"] {
            client.send(&hex(&format!("49484156454f5054 {option}"))).await;
        }
        client.take(20 + 32 + 20).await;
        client
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    async fn ask(&mut self, flags: u16, kind: u16, offset: u64, len: u32) {
        self.send(&request_bytes(flags, kind, offset, len)).await;
    }

    /// Reads to the end, and how the server saw it.
    async fn ended(mut self) -> (Vec<u8>, Result<(), ServeError>) {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).await.unwrap();
        (rest, self.server.await.unwrap())
    }
}

#[tokio::test]
async fn a_client_writes_reads_flushes_and_leaves() {
    let export = Memory::new();
    let mut client = Client::begun(Arc::clone(&export)).await;
    client.ask(1, 1, 100, 4).await;
    client.send(b"data").await;
    assert_eq!(client.take(16).await, reply::done(7));
    assert_eq!(*export.flushes.lock().unwrap(), 1, "what is to be durable is flushed");
    client.ask(0, 0, 99, 6).await;
    let expected = reply::read_structured(7, 99, &[Piece::Data(Bytes::from_static(b"\0data\0"))], false);
    assert_eq!(client.take(expected.len()).await, expected);
    client.ask(0, 0, SIZE_BYTES - 512, 512).await;
    let failed = reply::failed(7, &Failure::new(ErrorCode::Io, "damaged"), true);
    assert_eq!(client.take(failed.len()).await, failed);
    // The payload of a write that is refused is taken off the wire all the same.
    client.ask(0, 1, SIZE_BYTES, 4).await;
    client.send(b"data").await;
    let refused = reply::failed(7, &ErrorCode::NoSpace.into(), true);
    assert_eq!(client.take(refused.len()).await, refused);
    client.ask(0, 3, 0, 0).await;
    assert_eq!(client.take(16).await, reply::done(7));
    client.ask(0, 2, 0, 0).await;
    let (rest, ended) = client.ended().await;
    assert!(rest.is_empty() && ended.is_ok());
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_cut_off() {
    let mut out_of_step = Client::begun(Memory::new()).await;
    out_of_step.send(&[0; 28]).await;
    assert!(matches!(out_of_step.ended().await.1, Err(ServeError::Protocol(_))));
    let mut too_much = Client::begun(Memory::new()).await;
    too_much.ask(0, 1, 0, u32::MAX).await;
    assert!(matches!(too_much.ended().await.1, Err(ServeError::Protocol(_))));
    let mut long_option = Client::connect(Memory::new());
    long_option.send(&hex("00000003 49484156454f5054 00000007 ffffffff")).await;
    let (rest, ended) = long_option.ended().await;
    assert!(ended.is_ok() && rest[18 + 12..18 + 16] == hex("80000009"));
    let mut endless = Client::connect(Memory::new());
    endless.send(&hex("00000003")).await;
    for _ in 0..64 {
        endless.send(&hex("49484156454f5054 00000003 00000000")).await;
    }
    assert!(matches!(endless.ended().await.1, Err(ServeError::Protocol(_))));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_cut_off() {
    let client = Client::connect(Memory::new());
    assert!(matches!(client.ended().await.1, Err(ServeError::Timeout)));
}

#[tokio::test]
async fn a_bug_ends_the_connection_and_nothing_else() {
    let mut client = Client::begun(Memory::new()).await;
    client.ask(0, 0, 12_345, 512).await;
    assert!(matches!(client.ended().await.1, Err(ServeError::Io(_))));
}

#[tokio::test]
async fn a_server_that_stops_answers_what_it_has_read() {
    let mut client = Client::begun(Memory::new()).await;
    client.ask(0, 3, 0, 0).await;
    assert_eq!(client.take(16).await, reply::done(7));
    client.stop.send_replace(true);
    let (rest, ended) = client.ended().await;
    assert!(rest.is_empty() && ended.is_ok());
}

#[tokio::test]
async fn allocation_is_told_in_extents_that_differ() {
    let mut client = Client::connect(Memory::new());
    client.take(18).await;
    let set = query("", &["base:allocation"]);
    let set = [&hex("49484156454f5054 0000000a 0000001b")[..], &set].concat();
    client.send(&hex("00000003 49484156454f5054 00000008 00000000")).await;
    client.send(&set).await;
    client.send(&hex("49484156454f5054 00000007 00000006 00000000 0000")).await;
    client.take(20 + 39 + 20 + 32 + 20).await;
    client.ask(0, 7, 0, 4096).await;
    let told = reply::block_status(7, &[Status { allocation: Allocation::Hole, len: 1024 }]);
    assert_eq!(client.take(told.len()).await, told);
    // An export that knows nothing says so.
    client.ask(0, 7, 512, 512).await;
    let told = reply::block_status(7, &[Status { allocation: Allocation::Data, len: 512 }]);
    assert_eq!(client.take(told.len()).await, told);
}

/// Lets a blocking client talk to the server.
async fn with_our_client<T: Send + 'static>(
    export: Arc<Memory>,
    talk: impl FnOnce(std::os::unix::net::UnixStream) -> T + Send + 'static,
) -> T {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let (reader, writer) = tokio::net::UnixStream::from_std(theirs).unwrap().into_split();
    let (_stop, stopped) = watch::channel(false);
    let server = tokio::spawn(serve(reader, writer, export, stopped));
    let answer = tokio::task::spawn_blocking(move || talk(ours)).await.unwrap();
    // Who is refused hangs up.
    let _ended = server.await.unwrap();
    answer
}

#[tokio::test]
async fn our_client_and_our_server_understand_each_other() {
    let export = Memory::new();
    let bytes: Vec<u8> = (0..SIZE_BYTES).map(|at| (at % 251) as u8).collect();
    export.bytes.lock().unwrap().copy_from_slice(&bytes);
    with_our_client(export, move |stream| {
        let mut client = client::Client::connect(stream, "own").unwrap();
        assert_eq!((client.size_bytes(), client.tells_holes()), (SIZE_BYTES, true));
        // As the server has it: a hole of 1024 bytes, and data.
        let extents = client.status(0..SIZE_BYTES).unwrap();
        assert_eq!(extents[0].allocation, Allocation::Hole);
        let mut buffer = vec![0xff; 4096];
        client.read(1000, &[1000..1003, 2000..5000], &mut buffer).unwrap();
        assert_eq!(buffer[..3], bytes[1000..1003]);
        assert!(buffer[3..1000].iter().all(|&byte| byte == 0xff), "what was not asked for is left alone");
        assert_eq!(buffer[1000..4000], bytes[2000..5000]);
        // The last sector is damaged.
        let damaged = client.read(SIZE_BYTES - 512, from_ref(&(SIZE_BYTES - 512..SIZE_BYTES)), &mut buffer);
        assert!(matches!(damaged, Err(ClientError::Refused(why)) if why.contains("damaged")));
        client.disconnect().unwrap();
    })
    .await;
    let unknown =
        with_our_client(Memory::new(), |stream| client::Client::connect(stream, "other").unwrap_err());
    assert!(matches!(unknown.await, ClientError::Refused(why) if why.contains("no export")));
}

/// What a server says, and nobody listens to the client.
struct Script<'a>(&'a [u8]);

impl std::io::Read for Script<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        std::io::Read::read(&mut self.0, buffer)
    }
}

impl std::io::Write for Script<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A handshake for 1 MiB with structured replies and allocation under number 5.
fn agreed() -> Vec<u8> {
    hex("4e42444d41474943 49484156454f5054 0003 \
         0003e889045565a9 00000008 00000001 00000000 \
         0003e889045565a9 0000000a 00000004 00000013 00000005 626173653a616c6c6f636174696f6e \
         0003e889045565a9 0000000a 00000001 00000000 \
         0003e889045565a9 00000007 00000003 0000000c 0000 0000000000100000 0503 \
         0003e889045565a9 00000007 00000001 00000000")
}

/// Reads 8 bytes at 16 with what a server answers.
fn read_with(answer: &str) -> Result<[u8; 8], ClientError> {
    let said = [agreed(), hex(answer)].concat();
    let mut client = client::Client::connect(Script(&said), "")?;
    let mut buffer = [0xff; 8];
    client.read(16, from_ref(&(16..24)), &mut buffer)?;
    Ok(buffer)
}

#[test]
fn answers_to_reads_are_taken_whole_or_not_at_all() {
    let data = |flags: &str, cookie: u8, offset: u64, bytes: &str| {
        let len = 8 + bytes.len() / 2;
        format!("668e33ef {flags} 0001 00000000000000{cookie:02x} {len:08x} {offset:016x} {bytes}")
    };
    let hole = |offset: u64, len: u32| {
        format!("668e33ef 0000 0002 0000000000000001 0000000c {offset:016x} {len:08x}")
    };
    let end = "668e33ef 0001 0000 0000000000000001 00000000";
    assert_eq!(read_with(&data("0001", 1, 16, "0102030405060708")).unwrap(), [1, 2, 3, 4, 5, 6, 7, 8]);
    // In pieces, the last first.
    let pieces = [data("0000", 1, 22, "0708"), hole(18, 4), data("0000", 1, 16, "0102"), end.to_owned()];
    assert_eq!(read_with(&pieces.concat()).unwrap(), [1, 2, 0, 0, 0, 0, 7, 8]);
    let broken = [
        ("left out", [data("0000", 1, 16, "010203040506"), end.to_owned()].concat()),
        ("twice", [data("0000", 1, 16, "0102030405060708"), hole(20, 4), end.to_owned()].concat()),
        ("before it", data("0001", 1, 15, "0102030405060708")),
        ("beyond it", data("0001", 1, 17, "0102030405060708")),
        ("at the end of numbers", hole(u64::MAX, 4)),
        ("an empty piece", hole(16, 0)),
        ("another request", data("0001", 2, 16, "0102030405060708")),
        ("an unknown kind", "668e33ef 0001 0003 0000000000000001 00000000".to_owned()),
        ("not structured", "67446698 00000000 0000000000000001 0102030405060708".to_owned()),
        ("an endless error", "668e33ef 0001 8001 0000000000000001 ffffffff".to_owned()),
    ];
    for (what, answer) in broken {
        assert!(matches!(read_with(&answer), Err(ClientError::Protocol(_))), "{what}");
    }
    let refused = read_with("668e33ef 0001 8001 0000000000000001 0000000a 00000005 0004 6f6f7073");
    assert!(matches!(refused, Err(ClientError::Refused(why)) if why.contains("oops")));
    assert!(matches!(read_with(&data("0001", 1, 16, "01")[..40]), Err(ClientError::Io(_))), "cut off");
}

#[test]
fn a_hole_that_is_not_said_to_be_zeros_is_read() {
    let answer = "668e33ef 0001 0005 0000000000000001 0000001c 00000005 \
                  00000200 00000001 00000200 00000003 00000200 00000002";
    let said = [agreed(), hex(answer)].concat();
    let mut client = client::Client::connect(Script(&said), "").unwrap();
    let allocations: Vec<_> =
        client.status(0..2048).unwrap().iter().map(|extent| extent.allocation).collect();
    assert_eq!(allocations, [Allocation::Data, Allocation::Hole, Allocation::Hole]);
    for empty in
        ["00000004 00000005", "0000000c 00000005 00000000 00000000", "0000000c 00000006 00000200 00000000"]
    {
        let said = [agreed(), hex(&format!("668e33ef 0001 0005 0000000000000001 {empty}"))].concat();
        let mut client = client::Client::connect(Script(&said), "").unwrap();
        assert!(matches!(client.status(0..2048), Err(ClientError::Protocol(_))), "{empty}");
    }
}

proptest! {
    /// Whatever a server says, a client ends, and does not panic.
    #[test]
    fn a_client_survives_any_server(
        noise in proptest::collection::vec(any::<u8>(), 0..400),
        at in 0_usize..150,
        flip in any::<u8>(),
    ) {
        let talk = |said: &[u8]| {
            let Ok(mut client) = client::Client::connect(Script(said), "") else { return };
            let mut buffer = vec![0; 4096];
            if client.status(0..4096).is_ok() {
                let _ = client.read(0, from_ref(&(0..4096)), &mut buffer);
            }
        };
        talk(&noise);
        let mut said = [agreed(), noise].concat();
        talk(&said);
        let len = agreed().len();
        said[at % len] ^= flip;
        talk(&said);
    }
}
