#!/usr/bin/env python3
"""Restores a backup from a directory target: read_backup.py TARGET_DIR KEY_FILE BACKUP_ID > volume

An independent reader of Strongroom's byte format, written from docs/format.md alone ("section" refers to it) to prove
that the document suffices. Plain and slow; needs Python 3.11 and requirements.txt.
"""

import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import msgpack
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

MIB = 1 << 20
REGION_BYTES = 8 * MIB
ZEROS = 0xFFFFFFFF

KEYRING, ROOT, NODE, MANIFEST, SEGMENT, PACK, INDEX, INBOX_OPEN, INBOX_RECORD, READER = range(1, 11)
# Section 17: what a body of each kind may unpack to.
MAX_BODY_BYTES = {
    KEYRING: 64 << 10,
    ROOT: 256 * MIB,
    NODE: 128 * MIB,
    MANIFEST: 256 * MIB,
    SEGMENT: 16 * MIB,
    PACK: 64 * MIB,
    INDEX: 128 * MIB,
    INBOX_OPEN: 64 << 10,
    INBOX_RECORD: 128 * MIB,
    READER: 64 << 10,
}
MAX_OBJECT_BYTES = {KEYRING: MIB, PACK: 256 * MIB}
MAX_CHUNK_BYTES = 4 * MIB
MAX_FRAME_BYTES = MAX_CHUNK_BYTES + 41


class Refused(Exception):
    """Stored bytes that are not as the document says, or do not authenticate."""


def check(condition, reason):
    if not condition:
        raise Refused(reason)


# --- Primitives (section 2) -------------------------------------------------------------------------------------


def hash32(message):
    return blake3(message).digest()


def keyed(key, message, length=32):
    return blake3(message, key=key).digest(length)


def derive(context, secret):
    return blake3(secret, derive_key_context=context).digest()


def hchacha20(key, nonce16):
    """The subkey of XChaCha20: 20 rounds of ChaCha without the final addition."""
    s = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce16))

    def quarter(a, b, c, d):
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            s[z] ^= s[x]
            s[z] = ((s[z] << turn) | (s[z] >> (32 - turn))) & 0xFFFFFFFF

    for _ in range(10):
        quarter(0, 4, 8, 12)
        quarter(1, 5, 9, 13)
        quarter(2, 6, 10, 14)
        quarter(3, 7, 11, 15)
        quarter(0, 5, 10, 15)
        quarter(1, 6, 11, 12)
        quarter(2, 7, 8, 13)
        quarter(3, 4, 9, 14)
    return struct.pack("<8I", *s[0:4], *s[12:16])


def xchacha_open(key, sealed, aad, what):
    """Opens `nonce (24) ‖ ciphertext ‖ tag (16)`."""
    check(len(sealed) >= 40, f"{what}: truncated")
    subkey = hchacha20(key, sealed[:16])
    try:
        return ChaCha20Poly1305(subkey).decrypt(bytes(4) + sealed[16:24], sealed[24:], aad)
    except InvalidTag:
        raise Refused(f"{what}: does not authenticate") from None


def padme(length):
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    kept = exponent.bit_length() - 1 + 1
    mask = (1 << (exponent - kept)) - 1
    return (length + mask) & ~mask


def unpack_zstd(frame, limit, what):
    try:
        size = zstandard.get_frame_parameters(frame).content_size
        check(size <= limit, f"{what}: states {size} bytes where at most {limit} are allowed")
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        content = decompressor.decompress(frame)
    except zstandard.ZstdError as error:
        raise Refused(f"{what}: {error}") from None
    check(len(content) == size and decompressor.eof, f"{what}: not as long as stated")
    check(not decompressor.unused_data, f"{what}: bytes follow the zstd frame")
    return content


# --- MessagePack (section 2) ------------------------------------------------------------------------------------


def distinct(pairs):
    found = dict(pairs)
    check(len(found) == len(pairs), "a map has a key twice")
    return found


def parse(packed, what):
    try:
        return msgpack.unpackb(packed, raw=False, strict_map_key=False, object_pairs_hook=distinct)
    except (ValueError, msgpack.UnpackException) as error:
        raise Refused(f"{what}: {error}") from None


def fields(value, keys, what, optional=""):
    """Checks that a map has just these keys, some of which may be absent, and returns it."""
    known = isinstance(value, dict) and set(value) - set(optional.split()) == set(keys.split())
    check(known, f"{what}: not the fields it should have")
    return value


def column(data, width, what):
    check(isinstance(data, bytes) and len(data) % width == 0, f"{what}: no column of {width} bytes")
    return [data[i : i + width] for i in range(0, len(data), width)]


def numbers(data, what):
    return [int.from_bytes(value, "little") for value in column(data, 4, what)]


# --- Keys of objects (section 3) --------------------------------------------------------------------------------


def pack_key(pack):
    return f"packs/{pack[:1].hex()}/{pack.hex()}"


# --- Keys and secrets (section 4) -------------------------------------------------------------------------------


def key_file_secret(text):
    for line in text.splitlines():
        line = line.strip()
        if not line.startswith("#") and line.startswith("strongroom-key-v1"):
            secret = bytes.fromhex("".join(line.removeprefix("strongroom-key-v1").split()))
            check(len(secret) == 32, "key file: not 64 hexadecimal digits")
            return secret
    raise Refused("key file: no line with a key")


def key_file_kek(secret):
    return derive("strongroom v1 key-encryption key from key file", secret)


PURPOSES = {"catalog": 1, "ingest": 2, "restore": 3}


def open_wrap(wrap, kek, target):
    aad = b"strongroom/v1/wrap" + target + bytes([PURPOSES[wrap["purpose"]], 1])
    try:
        return AESGCM(kek).decrypt(wrap["nonce"], wrap["sealed"], aad)
    except InvalidTag:
        raise Refused("keyring: a wrap does not open with this key") from None


# --- The seal (section 5) ---------------------------------------------------------------------------------------


def after_header(kind, data, what):
    check(len(data) >= 12, f"{what}: truncated")
    check(data[:8] == b"STRONGRM", f"{what}: not a Strongroom object")
    newest = 2 if kind == MANIFEST else 1
    check(1 <= data[8] <= newest, f"{what}: format version {data[8]} is unknown to this reader, which knows {newest}")
    check(data[9] == kind, f"{what}: is of kind {data[9]} where {kind} was expected")
    check(data[10:12] == bytes(2), f"{what}: reserved bytes are not zero")
    return data[12:]


def read_body(plain, kind, what):
    check(len(plain) >= 4, f"{what}: truncated")
    length = int.from_bytes(plain[:4], "little")
    check(len(plain) == padme(4 + length), f"{what}: not padded as it should be")
    check(not any(plain[4 + length :]), f"{what}: padding is not zero")
    return parse(unpack_zstd(plain[4 : 4 + length], MAX_BODY_BYTES[kind], what), what)


@dataclass
class Target:
    """A directory target and the secrets that a key opened."""

    folder: Path
    target: bytes = b""
    seal_key: bytes = b""
    restore_key: bytes = b""
    chunk_id_key: bytes = b""
    settings: dict | None = None

    def read(self, key, kind):
        path = self.folder / key
        limit = MAX_OBJECT_BYTES.get(kind, 64 * MIB)
        check(path.stat().st_size <= limit, f"{key}: larger than {limit} bytes")
        return path.read_bytes()

    def open_part(self, kind, key, sealed, extra=b"", what=None, version=1):
        header = b"STRONGRM" + bytes([version, kind, 0, 0])
        aad = b"strongroom/v1/object" + header + self.target + struct.pack("<H", len(key)) + key.encode() + extra
        return read_body(xchacha_open(self.seal_key, sealed, aad, what or key), kind, what or key)

    def open_object(self, kind, key, sealed_as=None):
        data = self.read(key, kind)
        part = after_header(kind, data, key)
        return self.open_part(kind, sealed_as or key, part, what=key, version=data[8])

    # --- Keyring (section 6) ---

    def unlock(self, secret):
        rest = after_header(KEYRING, self.read("keyring", KEYRING), "keyring")
        length = int.from_bytes(rest[:4], "little")
        check(len(rest) >= 4 + length, "keyring: truncated")
        public_bytes, sealed = rest[4 : 4 + length], rest[4 + length :]
        public = fields(parse(public_bytes, "keyring"), "target wraps", "keyring")
        self.target = public["target"]
        kek = key_file_kek(secret)
        fingerprint = hash32(kek)[:8]
        layers = {}
        for wrap in public["wraps"]:
            fields(wrap, "purpose kek nonce sealed", "keyring: wrap")
            if wrap["kek"] == {"key_file": {"fingerprint": fingerprint}}:
                layers[wrap["purpose"]] = open_wrap(wrap, kek, self.target)
        check("catalog" in layers and "restore" in layers, "keyring: this key file opens no catalog and restore keys")
        self.seal_key = derive("strongroom v1 catalog seal key", layers["catalog"])
        self.restore_key, self.chunk_id_key = layers["restore"][:32], layers["restore"][32:]
        body = self.open_part(KEYRING, "keyring", sealed, extra=hash32(public_bytes))
        self.settings = fields(
            fields(body, "settings", "keyring")["settings"],
            "chunker pack_bytes zstd_level dedup_across_hosts grace_ms created",
            "keyring",
        )
        return layers

    # --- Root (section 13) ---

    def root(self, copy_of_epoch=None):
        key = "root" if copy_of_epoch is None else f"roots/{copy_of_epoch:020}"
        root = fields(
            self.open_object(ROOT, key, sealed_as="root"),
            "target incarnation epoch previous written oldest_vouched volumes indexes released dead",
            key,
        )
        check(root["target"] == self.target, f"{key}: of another target")
        check(copy_of_epoch in (None, root["epoch"]), f"{key}: of another epoch")
        return root

    # --- Manifests (section 11) ---

    def manifest(self, backup):
        key = f"manifests/{backup.hex()}"
        manifest = fields(
            self.open_object(MANIFEST, key),
            "backup volume host source created size_bytes chunker session incarnation base_epoch parent segments runs"
            " new_packs new_indexes stats",
            key,
            optional="group",
        )
        if "group" in manifest:
            fields(manifest["group"], "id members", key)
        check(manifest["backup"] == backup, f"{key}: describes another backup")
        for segment in manifest["segments"]:
            fields(segment, "id inherited", key)
        regions = 0
        for run in manifest["runs"]:
            at = fields(run, "n at", key)["at"]
            check(at is None or fields(at, "s i", key)["s"] < len(manifest["segments"]), f"{key}: no such segment")
            regions += run["n"]
        check(regions == -(-manifest["size_bytes"] // REGION_BYTES), f"{key}: its runs do not cover the volume")
        return manifest

    # --- Segments (section 10) ---

    def segment(self, segment):
        key = f"segments/{segment.hex()}"
        body = fields(
            self.open_object(SEGMENT, key),
            "packs list_counts lens packs_of ids offsets frame_lens sealed_keys",
            key,
        )
        packs = column(body["packs"], 16, key)
        aad = self.target + key.encode()
        info = b"strongroom v1 chunk keys of a segment"
        keys = column(hpke_open(self.restore_key, body["sealed_keys"], info, aad, key), 32, key)
        ids = column(body["ids"], 32, key)
        offsets, frame_lens = numbers(body["offsets"], key), numbers(body["frame_lens"], key)
        lens, packs_of = numbers(body["lens"], key), numbers(body["packs_of"], key)
        check(len(lens) == len(packs_of), f"{key}: columns do not fit")
        check(len(keys) == len(ids) == len(offsets) == len(frame_lens), f"{key}: columns do not fit")
        extents, chunk = [], 0
        for length, pack in zip(lens, packs_of):
            check(length > 0, f"{key}: an extent of no length")
            if pack == ZEROS:
                extents.append((length, None))
                continue
            check(pack < len(packs) and chunk < len(ids), f"{key}: columns do not fit")
            check(length <= MAX_CHUNK_BYTES and frame_lens[chunk] <= MAX_FRAME_BYTES, f"{key}: too long a chunk")
            place = (packs[pack], offsets[chunk], frame_lens[chunk])
            extents.append((length, Chunk(ids[chunk], keys[chunk], length, place)))
            chunk += 1
        check(chunk == len(ids), f"{key}: columns do not fit")
        lists, start = [], 0
        for count in numbers(body["list_counts"], key):
            check(start + count <= len(extents), f"{key}: a list reaches past the extents")
            lists.append(extents[start : start + count])
            start += count
        check(start == len(extents), f"{key}: extents belong to no list")
        return lists

    # --- Packs (section 8) and index objects (section 9) ---

    def directory(self, pack, data):
        """Checks a whole pack; returns its directory with rows (id, plain_len, offset, frame_len)."""
        key = pack_key(pack)
        after_header(PACK, data, key)
        check(len(data) >= 20 and data[-4:] == b"STRO", f"{key}: no trailer")
        length = int.from_bytes(data[-8:-4], "little")
        front = len(data) - 8 - length
        check(front >= 12, f"{key}: truncated")
        body = fields(
            self.open_part(PACK, key, data[front:-8]),
            "writer session body_hash padding_bytes ids plain_lens frame_lens",
            key,
        )
        rows, end = directory_rows(body["ids"], body["plain_lens"], body["frame_lens"], key)
        check(end + body["padding_bytes"] == front, f"{key}: lengths do not add up")
        check(hash32(data[:front]) == body["body_hash"], f"{key}: damaged")
        body["rows"] = rows
        return body

    def index_packs(self, body, what):
        """The directories in the body of an index object: pack id to rows."""
        fields(body, "packs ids plain_lens frame_lens", what)
        ids, plains, frames = body["ids"], body["plain_lens"], body["frame_lens"]
        found = {}
        for pack in body["packs"]:
            n = fields(pack, "pack size_bytes writer chunks", what)["chunks"]
            rows, _ = directory_rows(ids[: n * 32], plains[: n * 4], frames[: n * 4], what)
            check(len(rows) == n, f"{what}: columns do not fit")
            found[pack["pack"]] = rows
            ids, plains, frames = ids[n * 32 :], plains[n * 4 :], frames[n * 4 :]
        check(not (ids or plains or frames), f"{what}: rows are left over")
        return found

    def elsewhere(self, chunk):
        """Other places of a chunk, from the index objects of the root."""
        for index in self.root()["indexes"]:
            key = f"index/{index['id'].hex()}"
            for pack, rows in self.index_packs(self.open_object(INDEX, key), key).items():
                for row_id, _, offset, frame_len in rows:
                    if row_id == chunk.id:
                        yield pack, offset, frame_len

    # --- Frames (section 7) ---

    def read_chunk(self, chunk):
        problems = []
        for places in (lambda: [chunk.place], lambda: self.elsewhere(chunk)):
            try:
                for pack, offset, frame_len in places():
                    try:
                        return self.read_frame(chunk, pack, offset, frame_len)
                    except (Refused, OSError) as problem:
                        problems.append(str(problem))
            except (Refused, OSError) as problem:
                problems.append(str(problem))
        raise Refused(f"chunk {chunk.id.hex()} is lost: " + "; ".join(problems))

    def read_frame(self, chunk, pack, offset, frame_len):
        with open(self.folder / pack_key(pack), "rb") as file:
            file.seek(offset)
            frame = file.read(frame_len)
        return open_frame(frame, chunk.id, chunk.key, chunk.length, self.chunk_id_key)

    # --- How to restore (section 16) ---

    def restore(self, backup, out):
        manifest = self.manifest(backup)
        segments = {}
        region = 0
        for run in manifest["runs"]:
            for i in range(run["n"]):
                length = min(REGION_BYTES, manifest["size_bytes"] - region * REGION_BYTES)
                if run["at"] is None:
                    out.write(bytes(length))
                else:
                    number, slot = run["at"]["s"], run["at"]["i"] + i
                    if number not in segments:
                        segments[number] = self.segment(manifest["segments"][number]["id"])
                    check(slot < len(segments[number]), f"region {region}: no such list")
                    extents = segments[number][slot]
                    check(sum(n for n, _ in extents) == length, f"region {region}: its list does not cover it")
                    for n, chunk in extents:
                        out.write(bytes(n) if chunk is None else self.read_chunk(chunk))
                region += 1


@dataclass(frozen=True)
class Chunk:
    """A chunk of a list: where it lay (pack, offset, frame length) and how to open it."""

    id: bytes
    key: bytes
    length: int
    place: tuple


def directory_rows(ids, plain_lens, frame_lens, what):
    rows, offset = [], 12
    columns = column(ids, 32, what), numbers(plain_lens, what), numbers(frame_lens, what)
    check(len({len(values) for values in columns}) == 1, f"{what}: columns do not fit")
    for chunk_id, plain_len, frame_len in zip(*columns):
        check(frame_len <= MAX_FRAME_BYTES, f"{what}: too long a frame")
        rows.append((chunk_id, plain_len, offset, frame_len))
        offset += frame_len
    return rows, offset


def open_frame(frame, chunk_id, chunk_key, length, chunk_id_key):
    what = f"frame of chunk {chunk_id.hex()}"
    aad = b"strongroom/v1/frame" + chunk_id + struct.pack("<I", length)
    payload = xchacha_open(chunk_key, frame, aad, what)
    check(payload[:1] in (b"\0", b"\1"), f"{what}: unknown encoding")
    plain = payload[1:] if payload[0] == 0 else unpack_zstd(payload[1:], length, what)
    check(len(plain) == length and keyed(chunk_id_key, hash32(plain)) == chunk_id, f"{what}: other content")
    return plain


# --- HPKE (RFC 9180): base mode, X25519, HKDF-SHA256, ChaCha20-Poly1305 (section 10) ----------------------------


def hmac_sha256(key, message):
    mac = hmac.HMAC(key, hashes.SHA256())
    mac.update(message)
    return mac.finalize()


def labeled_extract(suite, salt, label, material):
    return hmac_sha256(salt or bytes(32), b"HPKE-v1" + suite + label + material)


def labeled_expand(suite, key, label, info, length):
    info = struct.pack(">H", length) + b"HPKE-v1" + suite + label + info
    out, block, n = b"", b"", 0
    while len(out) < length:
        n += 1
        block = hmac_sha256(key, block + info + bytes([n]))
        out += block
    return out[:length]


def hpke_open(private_key, sealed, info, aad, what):
    check(len(sealed) >= 48, f"{what}: sealed keys are truncated")
    encapsulated, ciphertext = sealed[:32], sealed[32:]
    private = X25519PrivateKey.from_private_bytes(private_key)
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x03"
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(encapsulated))
        extracted = labeled_extract(kem, b"", b"eae_prk", shared)
        secret = labeled_expand(kem, extracted, b"shared_secret", encapsulated + public, 32)
        context = b"\x00" + labeled_extract(suite, b"", b"psk_id_hash", b"")
        context += labeled_extract(suite, b"", b"info_hash", info)
        secret = labeled_extract(suite, secret, b"secret", b"")
        key = labeled_expand(suite, secret, b"key", context, 32)
        nonce = labeled_expand(suite, secret, b"base_nonce", context, 12)
        return ChaCha20Poly1305(key).decrypt(nonce, ciphertext, aad)
    except (InvalidTag, ValueError):
        raise Refused(f"{what}: the chunk keys do not open with this restore key") from None


def main(arguments):
    if len(arguments) != 3:
        print("usage: read_backup.py TARGET_DIR KEY_FILE BACKUP_ID > volume", file=sys.stderr)
        return 2
    folder, key_file, backup = arguments
    try:
        target = Target(Path(folder))
        target.unlock(key_file_secret(Path(key_file).read_text(encoding="utf-8")))
        target.restore(bytes.fromhex(backup), sys.stdout.buffer)
    except (Refused, OSError, ValueError) as problem:
        print(f"read_backup.py: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
