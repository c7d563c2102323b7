//! A loopback HTTP/1.1 proxy that counts requests by kind.
//!
//! Invariant: bytes pass unchanged; only heads of requests are looked at. It costs time, so a run through it is not timed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

/// Requests by kind.
pub type Counts = BTreeMap<String, u64>;

/// Longest head of a request that is let through.
const MAX_HEAD_BYTES: u64 = 1 << 20;

/// A running proxy. It ends with the program.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    counts: Arc<Mutex<Counts>>,
}

impl Proxy {
    /// Starts a proxy in front of a server.
    pub fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let counts = Arc::<Mutex<Counts>>::default();
        let shared = Arc::clone(&counts);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let counts = Arc::clone(&shared);
                // A connection that breaks is the client's and the server's to notice.
                std::thread::spawn(move || drop(pass(client, server, &counts)));
            }
        });
        Ok(Self { address, counts })
    }

    /// Takes what was counted since the last call.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn pass(client: TcpStream, server: SocketAddr, counts: &Mutex<Counts>) -> Result<()> {
    let mut upstream = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let (mut answers, mut back) = (upstream.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let mut requests = BufReader::new(client);
    while let Some(head) = read_head(&mut requests)? {
        let head_text = String::from_utf8_lossy(&head);
        *counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(kind(head_text.lines().next().unwrap_or_default()))
            .or_default() += 1;
        upstream.write_all(&head)?;
        if header(&head_text, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
        {
            pass_chunks(&mut requests, &mut upstream)?;
        } else if let Some(len) = header(&head_text, "content-length").and_then(|value| value.parse().ok()) {
            std::io::copy(&mut (&mut requests).take(len), &mut upstream)?;
        }
    }
    upstream.shutdown(Shutdown::Write)?;
    Ok(())
}

/// Reads up to the empty line; nothing at the end of the connection.
fn read_head(from: &mut BufReader<TcpStream>) -> Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut limited = from.take(MAX_HEAD_BYTES);
    while !head.ends_with(b"\r\n\r\n") {
        if limited.read_until(b'\n', &mut head)? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(head))
}

fn pass_chunks(from: &mut BufReader<TcpStream>, to: &mut TcpStream) -> Result<()> {
    loop {
        let mut line = String::new();
        from.take(MAX_HEAD_BYTES).read_line(&mut line)?;
        to.write_all(line.as_bytes())?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let len = u64::from_str_radix(digits, 16)?;
        // The chunk and the line end after it.
        std::io::copy(&mut from.take(len + 2), to)?;
        if len == 0 {
            return Ok(());
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// What S3 bills a request as, from its first line.
fn kind(request_line: &str) -> String {
    let mut words = request_line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let has_key = path.trim_matches('/').contains('/');
    match method {
        "GET" if !has_key => "LIST",
        "POST" if query.starts_with("delete") => "DELETE many",
        "PUT" | "POST" if query.contains("upload") => "PUT part",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        for (line, expected) in [
            ("GET /bucket?list-type=2&prefix=a HTTP/1.1", "LIST"),
            ("GET /bucket/?list-type=2 HTTP/1.1", "LIST"),
            ("GET /bucket/key HTTP/1.1", "GET"),
            ("POST /bucket?delete HTTP/1.1", "DELETE many"),
            ("POST /bucket/key?uploads HTTP/1.1", "PUT part"),
            ("PUT /bucket/key?partNumber=1&uploadId=x HTTP/1.1", "PUT part"),
            ("PUT /bucket/key HTTP/1.1", "PUT"),
            ("HEAD /bucket/key HTTP/1.1", "HEAD"),
        ] {
            assert_eq!(kind(line), expected, "{line}");
        }
    }
}
