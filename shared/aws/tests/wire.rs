//! What goes over the wire, and what is made of answers that no emulator gives: against a server of canned answers.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use strongroom_aws::{AwsConnection, AwsSettings, S3Options, S3Store, StaticCredentials};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{ETag, ObjectStore, StoreErrorKind};

/// Answers every request with the same bytes, then closes the connection. Keeps the heads of requests.
struct Server {
    endpoint_url: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answer: impl Into<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint_url = format!("http://{}", listener.local_addr().unwrap());
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&heads), answer.into());
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (log, answer) = (Arc::clone(&log), answer.clone());
                std::thread::spawn(move || serve(connection.unwrap(), &log, &answer));
            }
        });
        Self { endpoint_url, heads }
    }

    fn store(&self) -> S3Store {
        store(&self.endpoint_url)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn serve(connection: TcpStream, log: &Mutex<Vec<String>>, answer: &str) {
    let mut reader = BufReader::new(connection);
    let mut head = String::new();
    while reader.read_line(&mut head).is_ok_and(|length| length > 2) {}
    let head = head.to_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    reader.by_ref().take(length).read_to_end(&mut Vec::new()).unwrap();
    log.lock().unwrap().push(head);
    let mut connection = reader.into_inner();
    // The client may have hung up: that is its business.
    let _ = connection.write_all(answer.as_bytes());
}

fn store(endpoint_url: &str) -> S3Store {
    let credentials = StaticCredentials {
        access_key_id: "AKIAEXAMPLE".to_owned(),
        secret_access_key: "secret".to_owned().into(),
        session_token: None,
    };
    let settings = AwsSettings { region: None, endpoint_url: Some(endpoint_url.to_owned()) };
    let options =
        S3Options { bucket: "bucket".to_owned(), prefix: "some/prefix".to_owned(), path_style: None };
    S3Store::new(&AwsConnection::with_credentials(credentials, settings), options).unwrap()
}

fn error_answer(status: u16, code: &str) -> String {
    let body = format!("<Error><Code>{code}</Code><Message>Because.</Message></Error>");
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/xml\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

fn object_answer(headers: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\netag: \"e\"\r\nconnection: close\r\n{headers}\r\n\r\n{body}")
}

#[tokio::test]
async fn a_put_is_one_request_with_condition_and_checksum_and_no_hash_of_the_body() {
    let server = Server::start(object_answer("content-length: 0", ""));
    let store = server.store();
    let etag = store.put_if_absent(&ObjectKey::Root, vec![1; 100_000].into()).await.unwrap();
    assert_eq!(etag, ETag("\"e\"".to_owned()));
    store.put_if_match(&ObjectKey::Root, "new".into(), &etag).await.unwrap();
    let heads = server.heads();
    assert_eq!(heads.len(), 2);
    assert!(heads[0].starts_with("put /bucket/some/prefix/root?"), "{}", heads[0]);
    assert!(heads[0].contains("\r\nif-none-match: *\r\n"), "{}", heads[0]);
    assert!(heads[0].contains("\r\ncontent-length: 100000\r\n"), "{}", heads[0]);
    assert!(heads[1].contains("\r\nif-match: \"e\"\r\n"), "{}", heads[1]);
    for head in heads {
        assert!(head.contains("\r\nx-amz-checksum-crc32: "), "{head}");
        assert!(head.contains("\r\nx-amz-content-sha256: unsigned-payload\r\n"), "{head}");
    }
}

#[tokio::test]
async fn a_listing_sends_no_delimiter_and_counts_from_the_prefix() {
    let body = "<ListBucketResult><IsTruncated>true</IsTruncated>\
                <Contents><Key>some/prefix/</Key><Size>0</Size></Contents>\
                <Contents><Key>some/prefix/runs/a</Key><Size>5</Size>\
                <LastModified>2026-01-02T03:04:05.678Z</LastModified></Contents></ListBucketResult>";
    let server = Server::start(object_answer(&format!("content-length: {}", body.len()), body));
    let page = server.store().list(KeyPrefix::Runs, Some("runs/0")).await.unwrap();
    assert_eq!(page.next.as_deref(), Some("runs/a"));
    assert_eq!(page.objects.len(), 1, "the folder's marker is no object");
    assert_eq!((page.objects[0].size_bytes, page.objects[0].modified_ms), (5, 1_767_323_045_678));
    let head = &server.heads()[0];
    assert!(head.contains("prefix=some%2fprefix%2fruns%2f&"), "{head}");
    assert!(head.contains("start-after=some%2fprefix%2fruns%2f0"), "{head}");
    assert!(!head.contains("delimiter"), "{head}");
}

#[tokio::test]
async fn an_object_too_long_is_refused_before_its_body_comes() {
    // The body never comes: who waits for it waits for ever.
    let server = Server::start(object_answer("content-length: 5000000000", ""));
    let get = tokio::time::timeout(Duration::from_secs(10), async {
        server.store().get(&ObjectKey::Root, 1000).await.unwrap_err()
    });
    let error = get.await.unwrap();
    assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
    assert!(error.message.contains("5000000000"), "{error}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_worth_a_retry() {
    let server = Server::start(object_answer("content-length: 100", "only this"));
    for error in [
        server.store().get(&ObjectKey::Root, 1000).await.unwrap_err(),
        server.store().get_range(&ObjectKey::Root, 0..100).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
    }
}

#[tokio::test]
async fn a_store_that_ignores_ranges_is_found_out() {
    let server = Server::start(object_answer("content-length: 9", "ten bytes"));
    let error = server.store().get_range(&ObjectKey::Root, 2..4).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn a_peek_is_one_request_for_the_range_that_also_tells_the_version() {
    let answer = "HTTP/1.1 206 Partial Content\r\netag: \"e\"\r\nconnection: close\r\ncontent-length: 2\r\n\
                  content-range: bytes 2-3/100\r\n\r\nno";
    let server = Server::start(answer);
    let peeked = server.store().peek(&ObjectKey::Root, 2..4).await.unwrap();
    assert_eq!((&peeked.bytes[..], peeked.etag), (&b"no"[..], ETag("\"e\"".to_owned())));
    let heads = server.heads();
    assert!(heads.len() == 1 && heads[0].contains("\r\nrange: bytes=2-3\r\n"), "{heads:?}");
}

#[tokio::test]
async fn errors_have_kinds_and_say_what_to_do_and_the_sdk_does_not_try_again() {
    for (status, code, kind, advice) in [
        (503, "SlowDown", StoreErrorKind::Unavailable, "SlowDown"),
        (500, "InternalError", StoreErrorKind::Unavailable, "Because"),
        (409, "ConditionalRequestConflict", StoreErrorKind::Unavailable, "Because"),
        (412, "PreconditionFailed", StoreErrorKind::Conflict, "Because"),
        (403, "AccessDenied", StoreErrorKind::Denied, "s3:PutObject"),
        (403, "SignatureDoesNotMatch", StoreErrorKind::Denied, "secret access key"),
        (404, "NoSuchBucket", StoreErrorKind::Invalid, "create it first"),
        (501, "NotImplemented", StoreErrorKind::Invalid, "use another"),
        (301, "PermanentRedirect", StoreErrorKind::Invalid, "region us-east-1"),
    ] {
        let server = Server::start(error_answer(status, code));
        let error = server.store().put_if_absent(&ObjectKey::Root, "x".into()).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(advice), "{error}");
        assert!(!error.to_string().contains("secret\""), "{error}");
        assert_eq!(server.heads().len(), 1, "{code}: the SDK makes one try");
    }
}

#[tokio::test]
async fn a_delete_reports_the_key_that_failed() {
    let body = "<DeleteResult><Error><Key>some/prefix/root</Key><Code>AccessDenied</Code>\
                <Message>Locked.</Message></Error></DeleteResult>";
    let server = Server::start(object_answer(&format!("content-length: {}", body.len()), body));
    let error = server.store().delete(&[ObjectKey::Keyring, ObjectKey::Root]).await.unwrap_err();
    assert_eq!((error.kind, error.key.as_str()), (StoreErrorKind::Denied, "root"), "{error}");
    server.store().delete(&[]).await.unwrap();
    assert_eq!(server.heads().len(), 1, "deleting nothing sends nothing");
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = store(&format!("http://127.0.0.1:{port}")).get(&ObjectKey::Root, 10).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn options_that_can_not_be_right_are_refused() {
    let settings = AwsSettings { region: None, endpoint_url: None };
    let credentials = StaticCredentials {
        access_key_id: String::new(),
        secret_access_key: String::new().into(),
        session_token: None,
    };
    assert!(!format!("{credentials:?}").contains("secret"));
    let connection = AwsConnection::with_credentials(credentials, settings);
    for (bucket, prefix) in
        [("", ""), ("a/b", ""), ("bucket", "a//b"), ("bucket", "a/../b"), ("bucket", "a\nb")]
    {
        let options = S3Options { bucket: bucket.to_owned(), prefix: prefix.to_owned(), path_style: None };
        let error = S3Store::new(&connection, options).unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
    }
}
