//! What our client writes: with our server, and with servers that are told what to say.

use super::*;

/// A server that says what it was told to, and keeps what it hears.
struct Recorded<'a> {
    said: &'a [u8],
    heard: Arc<Mutex<Vec<u8>>>,
}

impl std::io::Read for Recorded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        std::io::Read::read(&mut self.said, buffer)
    }
}

impl std::io::Write for Recorded<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.heard.lock().unwrap().extend(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A handshake for 1 MiB with structured replies and these flags, and a least block.
fn agreed_on(flags: u16, least: u32) -> Vec<u8> {
    hex(&format!(
        "4e42444d41474943 49484156454f5054 0003 \
         0003e889045565a9 00000008 00000001 00000000 \
         0003e889045565a9 0000000a 00000001 00000000 \
         0003e889045565a9 00000007 00000003 0000000c 0000 0000000000100000 {flags:04x} \
         0003e889045565a9 00000007 00000003 0000000e 0003 {least:08x} 00001000 02000000 \
         0003e889045565a9 00000007 00000001 00000000"
    ))
}

/// Simple answers to requests.
fn done(cookies: Range<u64>) -> Vec<u8> {
    cookies.flat_map(reply::done).collect()
}

/// Writes to a server that says `answers` after the handshake; what came of it, and the requests that were sent.
fn written<T>(
    flags: u16,
    least: u32,
    answers: &[u8],
    write: impl FnOnce(&mut client::Writer<Recorded<'_>>) -> T,
) -> (T, Vec<u8>) {
    let said = [agreed_on(flags, least), answers.to_vec()].concat();
    let heard = Arc::new(Mutex::default());
    let stream = Recorded { said: &said, heard: Arc::clone(&heard) };
    let mut writer = client::Client::connect(stream, "").unwrap().into_writer().unwrap();
    heard.lock().unwrap().clear();
    let done = write(&mut writer);
    let heard = heard.lock().unwrap().clone();
    (done, heard)
}

fn request(kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    hex(&format!("25609513 0000 {kind:04x} {cookie:016x} {offset:016x} {len:08x}"))
}

#[tokio::test]
async fn what_our_client_writes_is_there() {
    let export = Memory::new();
    export.bytes.lock().unwrap().fill(0xff);
    let bytes: Vec<u8> = (0..SIZE_BYTES).map(|at| (at % 251) as u8).collect();
    let mut expected = vec![0xff; bytes.len()];
    let mut given = Vec::new();
    let mut at = 1;
    while at + 9000 < bytes.len() {
        let (data, zeros) = (at..at + 1 + at % 7000, at + 7000..at + 8999);
        expected[data.clone()].copy_from_slice(&bytes[data.clone()]);
        expected[zeros.clone()].fill(0);
        given.push((data, zeros));
        at += 9001;
    }
    let memory = Arc::clone(&export);
    with_our_client(export, move |stream| {
        let mut writer = client::Client::connect(stream, "own").unwrap().into_writer().unwrap();
        assert_eq!(writer.size_bytes(), SIZE_BYTES);
        for (data, zeros) in given {
            writer.write(data.start as u64, &bytes[data]).unwrap();
            writer.write_zeroes(zeros.start as u64..zeros.end as u64).unwrap();
        }
        writer.flush().unwrap();
        assert!(*memory.bytes.lock().unwrap() == expected);
        assert_eq!(*memory.flushes.lock().unwrap(), 1);
        let beyond = writer.write(SIZE_BYTES - 3, b"four");
        assert!(matches!(beyond, Err(ClientError::Refused(_))));
        writer.write(SIZE_BYTES - 4, b"four").unwrap();
        writer.write_zeroes(5..5).unwrap();
        writer.disconnect().unwrap();
        assert!(memory.bytes.lock().unwrap().ends_with(b"four"));
    })
    .await;
}

#[tokio::test]
async fn an_export_that_is_read_only_is_not_written_to() {
    let memory = Memory { info: info(true), bytes: Mutex::default(), flushes: Mutex::default() };
    let refused = with_our_client(Arc::new(memory), |stream| {
        client::Client::connect(stream, "").unwrap().into_writer().unwrap_err()
    });
    assert!(matches!(refused.await, ClientError::ReadOnly));
}

#[test]
fn a_server_that_makes_no_zeros_by_itself_is_given_zeros() {
    let (done, heard) = written(0x0001, 1, &done(1..3), |writer| {
        writer.write_zeroes(4096..4104)?;
        writer.write(0, b"ab")?;
        writer.flush()
    });
    done.unwrap();
    let expected = [request(1, 1, 4096, 8), vec![0; 8], request(1, 2, 0, 2), b"ab".to_vec()];
    assert_eq!(heard, expected.concat(), "nor is it asked to flush");
}

#[test]
fn a_server_of_blocks_is_given_whole_ones() {
    let piece = |cookie: u64, offset: u64, byte: u8, flags: u16| {
        let head = hex(&format!("668e33ef {flags:04x} 0001 {cookie:016x} 00000208 {offset:016x}"));
        [head, vec![byte; 512]].concat()
    };
    // Two blocks are read, then three written; one is read and written; zeros need no reading where they are whole blocks.
    let answers = [
        piece(1, 512, b'a', 1),
        piece(2, 1536, b'b', 1),
        done(3..4),
        piece(4, 4096, b'c', 1),
        done(5..7),
        done(7..8),
    ];
    let (done, heard) = written(0x0045, 512, &answers.concat(), |writer| {
        writer.write(1000, &[7; 1000])?;
        writer.write_zeroes(4100..5120)?;
        writer.flush()
    });
    done.unwrap();
    let whole = [vec![b'a'; 488], vec![7; 1000], vec![b'b'; 48]];
    let edge = [vec![b'c'; 4], vec![0; 508]];
    let expected = [
        [request(0, 1, 512, 512), request(0, 2, 1536, 512), request(1, 3, 512, 1536)].concat(),
        whole.concat(),
        [request(0, 4, 4096, 512), request(1, 5, 4096, 512)].concat(),
        edge.concat(),
        [request(6, 6, 4608, 512), request(3, 7, 0, 0)].concat(),
    ];
    assert_eq!(heard, expected.concat());
}

#[test]
fn only_so_many_writes_are_on_their_way() {
    let written =
        |count: u64| written(0x0005, 1, &[], |writer| (0..count).try_for_each(|at| writer.write(at, b"x"))).0;
    assert!(written(8).is_ok());
    let ninth = written(9);
    assert!(matches!(ninth, Err(ClientError::Io(_))), "it waits for an answer");
}

#[test]
fn a_write_that_failed_is_told_at_the_latest_when_it_is_flushed() {
    let answers = [
        ("67446698 0000001c 0000000000000001", "No space"),
        ("668e33ef 0001 8001 0000000000000001 0000000a 0000001c 0004 66756c6c", "full"),
    ];
    for (answer, expected) in answers {
        let (failed, _) = written(0x0005, 1, &hex(answer), |writer| {
            writer.write(0, b"ab").unwrap();
            writer.flush()
        });
        assert!(matches!(failed, Err(ClientError::Refused(why)) if why.contains(expected)));
    }
    let broken = [
        ("another request", "67446698 00000000 0000000000000002"),
        ("data", "668e33ef 0001 0001 0000000000000001 0000000a 0000000000000000 0102"),
        ("no end", "668e33ef 0000 0000 0000000000000001 00000000"),
        ("no magic number", "00000000 00000000 0000000000000001"),
    ];
    for (what, answer) in broken {
        let (failed, _) = written(0x0005, 1, &hex(answer), |writer| {
            writer.write(0, b"ab").unwrap();
            writer.flush()
        });
        assert!(matches!(failed, Err(ClientError::Protocol(_))), "{what}: {failed:?}");
    }
}
