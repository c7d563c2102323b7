//! The worked example of `docs/format.md`, worked out again from the fixtures with bare primitives, and compared with
//! what the document says.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use strongroom_format::ids::ChunkId;
use strongroom_format::layout::ObjectKey;
use strongroom_format::manifest::Manifest;
use strongroom_format::pack::check_pack;
use strongroom_format::segment::Segment;

use super::{fixture_folder, hex, key_file_secret, object, unlock};

/// Opens every fence of the document that is taken from the fixtures; its name follows.
const FENCE: &str = "```text example=";

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/format.md")
}

/// Puts the blocks into the document, and returns it with the names it asked for.
fn filled(text: &str, blocks: &BTreeMap<&str, String>) -> (String, Vec<String>) {
    let (mut out, mut names) = (String::new(), Vec::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        writeln!(out, "{line}").unwrap();
        if let Some(name) = line.strip_prefix(FENCE) {
            let block = blocks.get(name).unwrap_or_else(|| panic!("the document asks for '{name}'"));
            writeln!(out, "{}\n```", block.trim_end()).unwrap();
            names.push(name.to_owned());
            assert!(lines.any(|line| line == "```"), "the fence of '{name}' ends");
        }
    }
    (out, names)
}

#[test]
fn the_document_shows_the_fixtures() {
    let text = std::fs::read_to_string(document()).unwrap();
    let blocks = blocks();
    let (filled, names) = filled(&text, &blocks);
    for (ours, theirs) in filled.lines().zip(text.lines()) {
        assert_eq!(ours, theirs, "docs/format.md; run the ignored test `fill_in_the_document` to correct it");
    }
    assert_eq!(filled, text);
    assert_eq!(names.len(), blocks.len(), "every block is shown once: {names:?}");
}

#[test]
#[ignore = "writes to docs/format.md; only needed with new fixtures"]
fn fill_in_the_document() {
    let text = std::fs::read_to_string(document()).unwrap();
    std::fs::write(document(), filled(&text, &blocks()).0).unwrap();
}

/// Collects a list of named values.
#[derive(Default)]
struct Values(String);

impl Values {
    fn add(&mut self, name: &str, value: impl AsRef<[u8]>) -> &mut Self {
        self.text(name, &hex(value.as_ref()))
    }

    /// Hexadecimal is broken where it would not fit a line.
    fn text(&mut self, name: &str, value: &str) -> &mut Self {
        for (n, part) in value.as_bytes().chunks(80).enumerate() {
            let part = std::str::from_utf8(part).expect("values are ASCII");
            writeln!(self.0, "{:<22}{part}", if n == 0 { name } else { "" }).unwrap();
        }
        self
    }
}

/// Prints bytes with their offsets, part by part, each with what it is.
fn dump(bytes: &[u8], parts: &[(usize, &str)]) -> String {
    let mut out = String::new();
    let mut at = 0;
    for (len, what) in parts {
        for (n, row) in bytes[at..at + len].chunks(16).enumerate() {
            let what = if n == 0 { format!("  {what}") } else { String::new() };
            writeln!(out, "{:04x}  {:<32}{what}", at + n * 16, hex(row)).unwrap();
        }
        at += len;
    }
    assert_eq!(at, bytes.len(), "the parts cover the object");
    out.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Opens a seal with nothing but the cipher; returns its associated data and the plaintext.
fn unseal(folder: &Path, kind: u8, key: &ObjectKey, sealed: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (secrets, sealer) = unlock(folder);
    let name = key.to_string();
    let aad = [
        b"strongroom/v1/object",
        &b"STRONGRM\x01"[..],
        &[kind, 0, 0],
        sealer.target().as_bytes(),
        &u16::try_from(name.len()).unwrap().to_le_bytes(),
        name.as_bytes(),
    ]
    .concat();
    let seal_key = blake3::derive_key("strongroom v1 catalog seal key", secrets.catalog.0.expose());
    let plain = decrypt(&seal_key, &sealed[..24], &aad, &sealed[24..]);
    (aad, plain)
}

fn decrypt(key: &[u8; 32], nonce: &[u8], aad: &[u8], msg: &[u8]) -> Vec<u8> {
    let nonce = XNonce::from(<[u8; 24]>::try_from(nonce).unwrap());
    XChaCha20Poly1305::new(key.into()).decrypt(&nonce, Payload { msg, aad }).unwrap()
}

fn packed(plain: &[u8]) -> (usize, Vec<u8>) {
    let length = u32::from_le_bytes(plain[..4].try_into().unwrap()) as usize;
    (length, zstd::bulk::decompress(&plain[4..4 + length], 1 << 20).unwrap())
}

/// Everything the worked example shows.
fn blocks() -> BTreeMap<&'static str, String> {
    let folder = fixture_folder();
    let (secrets, sealer) = unlock(&folder);
    let mut blocks = BTreeMap::new();
    blocks.insert("files", files(&folder));
    blocks.insert("keys", keys(&folder));

    // The backup of volume `example`: one manifest, one segment, one pack.
    let manifest_key = super::object_keys(&folder)
        .into_iter()
        .find(|key| {
            let ObjectKey::Manifest(_) = key else { return false };
            sealer.open::<Manifest>(key, &object(&folder, key)).unwrap().volume == "example"
        })
        .expect("the fixtures have the example");
    let manifest: Manifest = sealer.open(&manifest_key, &object(&folder, &manifest_key)).unwrap();
    let segment_key = ObjectKey::Segment(manifest.segments[0].id);
    let segment = Segment::open(&sealer, manifest.segments[0].id, &object(&folder, &segment_key)).unwrap();
    let chunk_keys = segment.open_keys(&sealer.target(), &secrets.restore).unwrap();
    let pack_id = segment.packs()[0];
    assert_eq!(pack_id, sealer.pack_name(manifest.session, 0), "packs are named after their session");
    let pack_key = ObjectKey::Pack(pack_id);
    let pack = object(&folder, &pack_key);

    let volume = super::read(&folder, &format!("volumes/{}", manifest.backup));
    let plains = [&volume[..4096], &volume[4096..]];
    let mut frames = BTreeMap::new();
    for (n, (plain, name)) in plains.iter().zip(["chunk-1", "chunk-2"]).enumerate() {
        let super::Extent::Chunk(chunk) = segment.list(0).unwrap()[n] else { panic!("a chunk") };
        let frame = &pack[chunk.offset as usize..][..chunk.frame_len as usize];
        let key = *chunk_keys.get(n).unwrap().expose();
        blocks.insert(name, chunk_values(&secrets, plain, &chunk.id, &key, frame));
        frames.insert(chunk.offset, (chunk.frame_len as usize, n + 1));
    }

    blocks.insert("pack", pack_dump(&pack, &frames));
    let body_len =
        pack.len() - 8 - u32::from_le_bytes(pack[pack.len() - 8..][..4].try_into().unwrap()) as usize;
    let (aad, plain) = unseal(&folder, 6, &pack_key, &pack[body_len..pack.len() - 8]);
    let (length, body) = packed(&plain);
    let mut values = Values::default();
    values
        .text("key", &pack_key.to_string())
        .add("associated data", &aad)
        .add("nonce", &pack[body_len..body_len + 24])
        .add("plaintext", &plain)
        .text("compressed length", &length.to_string())
        .text("MessagePack length", &body.len().to_string());
    blocks.insert("directory", values.0);
    blocks.insert("directory-messagepack", message_pack(&body));
    let hash = blake3::hash(&pack[..body_len]);
    assert!(body.windows(32).any(|window| window == hash.as_bytes()), "the directory holds the body's hash");
    check_pack(&sealer, pack_id, &pack).unwrap();

    let bytes = object(&folder, &manifest_key);
    blocks.insert(
        "manifest",
        dump(
            &bytes,
            &[
                (8, "magic \"STRONGRM\""),
                (1, "format version 1"),
                (1, "kind 4: manifest"),
                (2, "reserved"),
                (24, "nonce"),
                (bytes.len() - 36 - 16, "ciphertext"),
                (16, "tag"),
            ],
        ),
    );
    let (aad, plain) = unseal(&folder, 4, &manifest_key, &bytes[12..]);
    let (length, body) = packed(&plain);
    let mut values = Values::default();
    values
        .text("key", &manifest_key.to_string())
        .add("associated data", &aad)
        .add("plaintext", &plain)
        .text("compressed length", &length.to_string())
        .text("MessagePack length", &body.len().to_string());
    blocks.insert("manifest-seal", values.0);
    blocks.insert("manifest-messagepack", message_pack(&body));

    let (_, plain) = unseal(&folder, 5, &segment_key, &object(&folder, &segment_key)[12..]);
    blocks.insert("segment-messagepack", message_pack(&packed(&plain).1));
    let mut values = Values::default();
    let aad = [sealer.target().as_bytes(), segment_key.to_string().as_bytes()].concat();
    values
        .text("key", &segment_key.to_string())
        .text("HPKE info", "\"strongroom v1 chunk keys of a segment\"")
        .add("HPKE aad", &aad)
        .add("opened", [*chunk_keys.get(0).unwrap().expose(), *chunk_keys.get(1).unwrap().expose()].concat());
    blocks.insert("segment-keys", values.0);
    blocks
}

/// Every file of the fixture target with its kind and length.
fn files(folder: &Path) -> String {
    let mut out = String::new();
    for key in super::object_keys(folder) {
        let bytes = object(folder, &key);
        writeln!(out, "{:>6}  {:>2}  {key}", bytes.len(), bytes[9]).unwrap();
    }
    out
}

fn keys(folder: &Path) -> String {
    let (secrets, sealer) = unlock(folder);
    let key_file = key_file_secret(folder);
    let kek = blake3::derive_key("strongroom v1 key-encryption key from key file", key_file.expose());
    let master = secrets.ingest.master().expose();
    let mut values = Values::default();
    values
        .add("target id", sealer.target().as_bytes())
        .add("key file", key_file.expose())
        .add("key-encryption key", kek)
        .add("fingerprint", &blake3::hash(&kek).as_bytes()[..8])
        .add("catalog secret", secrets.catalog.0.expose())
        .add("seal key", blake3::derive_key("strongroom v1 catalog seal key", secrets.catalog.0.expose()))
        .add(
            "volume tag key",
            blake3::derive_key("strongroom v1 catalog volume tag key", secrets.catalog.0.expose()),
        )
        .add("ingest master", master)
        .add("gear key", blake3::derive_key("strongroom v1 ingest gear table key", master))
        .add("chunk-id key", blake3::derive_key("strongroom v1 ingest chunk id key", master))
        .add(
            "chunk-key secret",
            blake3::derive_key("strongroom v1 ingest chunk key derivation secret", master),
        )
        .add("frame-nonce key", blake3::derive_key("strongroom v1 ingest frame nonce key", master))
        .add("restore private key", secrets.restore.private().expose())
        .add("restore public key", secrets.ingest.restore_public.0);
    let tag = sealer.volume_tag("example");
    values.add("tag of \"example\"", tag.0);
    values.0
}

/// Works out all there is to a chunk, and checks that it leads to the very frame.
fn chunk_values(
    secrets: &super::TargetSecrets,
    plain: &[u8],
    id: &ChunkId,
    key: &[u8; 32],
    frame: &[u8],
) -> String {
    let master = secrets.ingest.master().expose();
    let derive = |context| blake3::derive_key(context, master);
    let hash = blake3::hash(plain);
    let keyed = |context, message: &[u8]| *blake3::keyed_hash(&derive(context), message).as_bytes();
    assert_eq!(keyed("strongroom v1 ingest chunk id key", hash.as_bytes()), *id.as_bytes());
    assert_eq!(keyed("strongroom v1 ingest chunk key derivation secret", hash.as_bytes()), *key);
    let length = u32::try_from(plain.len()).unwrap().to_le_bytes();
    let aad = [b"strongroom/v1/frame", &id.as_bytes()[..], &length].concat();
    let payload = decrypt(key, &frame[..24], &aad, &frame[24..]);
    let mut nonce = [0; 24];
    blake3::Hasher::new_keyed(&derive("strongroom v1 ingest frame nonce key"))
        .update(id.as_bytes())
        .update(&payload)
        .finalize_xof()
        .fill(&mut nonce);
    assert_eq!(nonce, frame[..24]);
    let mut values = Values::default();
    values
        .add("h", hash.as_bytes())
        .add("id", id.as_bytes())
        .add("chunk key", key)
        .add("payload", &payload)
        .add("nonce", nonce)
        .add("associated data", &aad)
        .text("frame length", &frame.len().to_string());
    values.0
}

fn pack_dump(pack: &[u8], frames: &BTreeMap<u32, (usize, usize)>) -> String {
    let sealed_len = u32::from_le_bytes(pack[pack.len() - 8..][..4].try_into().unwrap()) as usize;
    let mut parts = vec![
        (8, "magic \"STRONGRM\"".to_owned()),
        (1, "format version 1".to_owned()),
        (1, "kind 6: pack".to_owned()),
        (2, "reserved".to_owned()),
    ];
    for (len, number) in frames.values() {
        parts.push((24, format!("frame of chunk {number}: nonce")));
        parts.push((len - 40, "ciphertext".to_owned()));
        parts.push((16, "tag".to_owned()));
    }
    let frames_end: usize = parts.iter().map(|part| part.0).sum();
    parts.push((pack.len() - 8 - sealed_len - frames_end, "padding (random)".to_owned()));
    parts.push((24, "directory: nonce".to_owned()));
    parts.push((sealed_len - 40, "ciphertext".to_owned()));
    parts.push((16, "tag".to_owned()));
    parts.push((4, format!("length of the sealed directory: {sealed_len}")));
    parts.push((4, "\"STRO\"".to_owned()));
    dump(pack, &parts.iter().map(|(len, what)| (*len, what.as_str())).collect::<Vec<_>>())
}

/// Prints MessagePack item by item. Knows what our writers use, and no more.
fn message_pack(bytes: &[u8]) -> String {
    let mut out = String::new();
    let mut reader = Reader { bytes, at: 0 };
    reader.item(0, &mut out);
    assert_eq!(reader.at, bytes.len());
    out
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, len: usize) -> &[u8] {
        self.at += len;
        &self.bytes[self.at - len..self.at]
    }

    fn number(&mut self, len: usize) -> u64 {
        self.take(len).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn item(&mut self, depth: usize, out: &mut String) {
        let start = self.at;
        let first = self.take(1)[0];
        let small = |bits: u8| usize::from(first & bits);
        let length = |value: u64| usize::try_from(value).expect("the example is small");
        let (mut entries, mut content) = (None, None);
        let meaning = match first {
            0x00..=0x7f => first.to_string(),
            0x80..=0x8f => {
                entries = Some(2 * small(15));
                format!("map of {}", small(15))
            }
            0xde => {
                let pairs = length(self.number(2));
                entries = Some(2 * pairs);
                format!("map of {pairs}")
            }
            0x90..=0x9f => {
                entries = Some(small(15));
                format!("array of {}", small(15))
            }
            0xa0..=0xbf => {
                content = Some(small(31));
                String::new()
            }
            0xd9 => {
                content = Some(length(self.number(1)));
                String::new()
            }
            0xc0 => "nil".to_owned(),
            0xc2 => "false".to_owned(),
            0xc3 => "true".to_owned(),
            0xc4 => {
                content = Some(length(self.number(1)));
                format!("bin of {}", content.unwrap_or_default())
            }
            0xcc => self.number(1).to_string(),
            0xcd => self.number(2).to_string(),
            0xce => self.number(4).to_string(),
            0xcf => self.number(8).to_string(),
            other => panic!("MessagePack {other:02x} is not in the example"),
        };
        let head = self.at;
        let content = self.take(content.unwrap_or(0)).to_vec();
        let is_text = matches!(first, 0xa0..=0xbf | 0xd9);
        let meaning = if is_text { format!("\"{}\"", String::from_utf8_lossy(&content)) } else { meaning };
        let pad = "  ".repeat(depth);
        let shown: Vec<u8> = if is_text {
            [&self.bytes[start..head], &content].concat()
        } else {
            self.bytes[start..head].to_vec()
        };
        writeln!(out, "{start:04x}  {pad}{}  {meaning}", hex(&shown)).unwrap();
        if !is_text {
            for (n, row) in content.chunks(32).enumerate() {
                writeln!(out, "{:04x}  {pad}  {}", head + n * 32, hex(row)).unwrap();
            }
        }
        for _ in 0..entries.unwrap_or(0) {
            self.item(depth + 1, out);
        }
    }
}
