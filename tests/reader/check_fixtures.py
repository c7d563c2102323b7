#!/usr/bin/env python3
"""Reads the frozen fixtures with the independent reader: check_fixtures.py [FIXTURE_FOLDER]

Opens every object of the fixture target, restores every backup, cuts the volumes anew and compares everything with
expected.json. Exits with 1 and a reason if anything differs.
"""

import dataclasses
import io
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

import chunker
import read_backup as reader

PASSPHRASE = b"correct horse battery staple"
KMS_DATA_KEY = bytes([0x4B]) * 32


def plain(value):
    """Turns what MessagePack gave into what expected.json has."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def same(found, expected, key):
    """Compares; byte strings are hexadecimal or lists of numbers in expected.json."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys(), f"{key}: {found} {expected}"
        for name in expected:
            same(found[name], expected[name], f"{key}: {name}")
    elif isinstance(expected, list) and isinstance(found, bytes):
        assert list(found) == expected or column(found, expected) == expected, f"{key}: {found.hex()} {expected}"
    elif isinstance(expected, list):
        assert len(found) == len(expected), f"{key}: {found} {expected}"
        for number, item in enumerate(expected):
            same(found[number], item, f"{key}: {number}")
    else:
        assert plain(found) == expected, f"{key}: {found} {expected}"


def column(data, expected):
    width = len(data) // max(1, len(expected))
    return [data[i : i + width].hex() for i in range(0, len(data), max(1, width))]


def rows(found):
    return [[row[0].hex(), *row[1:]] for row in found]


def kek_of(wrap, secret):
    (source, how), = wrap["kek"].items()
    if source == "key_file":
        return reader.key_file_kek(secret)
    if source == "passphrase":
        return Argon2id(
            salt=how["salt"],
            length=32,
            iterations=how["passes"],
            lanes=how["lanes"],
            memory_cost=how["memory_kib"],
        ).derive(PASSPHRASE)
    return KMS_DATA_KEY


def check_keyring(target, secret, catalog, expected):
    rest = reader.after_header(reader.KEYRING, target.read("keyring", reader.KEYRING), "keyring")
    public = reader.parse(rest[4 : 4 + int.from_bytes(rest[:4], "little")], "keyring")
    same(public["target"], expected["target"], "keyring")
    same(target.settings, expected["settings"], "keyring")
    assert len(public["wraps"]) == len(expected["wraps"])
    for wrap, (purpose, kek) in zip(public["wraps"], expected["wraps"]):
        same(wrap["purpose"], purpose, "keyring")
        same(wrap["kek"], kek, "keyring")
        opened = reader.open_wrap(wrap, kek_of(wrap, secret), target.target)
        assert purpose != "catalog" or opened == catalog


def check_object(target, key, expected):
    folder, _, rest = key.partition("/")
    if key == "root":
        same(target.root(), expected, key)
    elif folder == "roots":
        same(target.root(int(rest)), expected, key)
    elif folder == "nodes":
        same(target.open_object(reader.NODE, key), expected, key)
    elif folder == "manifests":
        same(target.manifest(bytes.fromhex(rest)), expected, key)
    elif folder == "segments":
        lists = expected["lists"]
        found = target.segment(bytes.fromhex(rest))
        assert len(found) == len(lists), key
        for extents, wanted in zip(found, lists):
            assert len(extents) == len(wanted), key
            for (length, chunk), want in zip(extents, wanted):
                if chunk is None:
                    assert want == {"zeros": length}, key
                else:
                    pack, offset, frame_len = chunk.place
                    shown = {"chunk": chunk.id, "key": chunk.key, "len": length}
                    same(shown | {"pack": pack, "offset": offset, "frame_len": frame_len}, want, key)
    elif folder == "packs":
        pack = bytes.fromhex(key.rpartition("/")[2])
        data = target.read(key, reader.PACK)
        directory = target.directory(pack, data)
        assert rows(directory["rows"]) == expected["id, plain_len, offset, frame_len"], key
        assert directory["writer"] == expected["writer"] and len(data) == expected["size_bytes"], key
        front = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        assert front == reader.padme(front - directory["padding_bytes"]), key
    elif folder == "index" or rest[33:].isdigit():
        kind = reader.INDEX if folder == "index" else reader.INBOX_RECORD
        body = target.open_object(kind, key)
        body = body if folder == "index" else body["packs"]
        found = target.index_packs(body, key)
        assert [pack["pack"].hex() for pack in body["packs"]] == [want["pack"] for want in expected], key
        for pack, want in zip(body["packs"], expected):
            assert rows(found[pack["pack"]]) == want["id, plain_len, offset, frame_len"], key
            assert (pack["size_bytes"], pack["writer"]) == (want["size_bytes"], want["writer"]), key
    else:
        kind = reader.INBOX_OPEN if rest.endswith("open") else reader.READER
        same(target.open_object(kind, key), expected, key)
        if kind == reader.INBOX_OPEN:
            return expected["volume"], bytes.fromhex(rest[:32])
    return None


def check_pack_names(target, tag_key):
    """Packs are named after the session that wrote them (section 8)."""
    sessions = {}
    for path in (target.folder / "packs").glob("*/*"):
        directory = target.directory(bytes.fromhex(path.name), path.read_bytes())
        sessions.setdefault(directory["session"], set()).add(path.name)
    for session, names in sessions.items():
        numbers = range(len(names))
        assert names == {reader.keyed(tag_key, session + n.to_bytes(4, "little"), 16).hex() for n in numbers}


def check_chain(target):
    root = target.root()
    while root["previous"] is not None:
        copy = f"roots/{root['epoch'] - 1:020}"
        assert reader.hash32(target.read(copy, reader.ROOT)) == root["previous"], copy
        root = target.root(root["epoch"] - 1)
    assert root["epoch"] == 1


def check_moved(target):
    """A chunk that does not lie where its list says is found through the index (section 16)."""
    for segment in sorted((target.folder / "segments").iterdir()):
        for extents in target.segment(bytes.fromhex(segment.name)):
            for _, chunk in extents:
                if chunk is not None:
                    gone = dataclasses.replace(chunk, place=(bytes(16), 12, 100))
                    assert target.read_chunk(gone) == target.read_chunk(chunk)


def check_volume(folder, target, backup, expected, gear):
    volume = bytearray(expected["size_bytes"])
    data = (folder / "volumes" / backup).read_bytes()
    for piece in expected["pieces"]:
        length = piece["length"]
        volume[piece["offset"] : piece["offset"] + length], data = data[:length], data[length:]
    out = io.BytesIO()
    target.restore(bytes.fromhex(backup), out)
    assert out.getvalue() == volume, f"{backup}: restores to something else"
    assert reader.hash32(bytes(volume)).hex() == expected["blake3"], backup
    # Cut anew, it has just the chunks that it has.
    manifest = target.manifest(bytes.fromhex(backup))
    region = 0
    for run in manifest["runs"]:
        for i in range(run["n"]):
            content = bytes(volume[region * reader.REGION_BYTES :][: reader.REGION_BYTES])
            cuts = chunker.extents(content, manifest["chunker"], gear)
            if run["at"] is None:
                assert cuts == [(len(content), None)], f"{backup}: region {region}"
            else:
                segment = manifest["segments"][run["at"]["s"]]["id"]
                listed = target.segment(segment)[run["at"]["i"] + i]
                assert [n for n, _ in cuts] == [n for n, _ in listed], f"{backup}: region {region}"
                for (_, plain_bytes), (_, chunk) in zip(cuts, listed):
                    assert (plain_bytes is None) == (chunk is None), f"{backup}: region {region}"
            region += 1


def check_cuts(expected):
    gear = chunker.gear_table(bytes([7]) * 32)
    for case, lengths in expected.items():
        name, _, text = case.partition(":")
        unit = int(text[:-3]) << (10 if text.endswith("KiB") else 20)
        data = reader.blake3(b"strongroom chunker fixture").digest(6 * unit + 1)
        how = {"fixed": {"size_bytes": unit}} if name == "fixed" else {"fast_cdc": {"average_bytes": unit}}
        found, at = [], 0
        while at < len(data):
            found.append(chunker.cut(memoryview(data)[at:], at, how, gear))
            at += found[-1]
        assert found == lengths, f"{case}: {found} {lengths}"


def check_frames(target, master):
    """A writer's side: works out key and nonce of each frame anew (section 7)."""
    nonce_key = reader.derive("strongroom v1 ingest frame nonce key", master)
    key_secret = reader.derive("strongroom v1 ingest chunk key derivation secret", master)
    assert reader.derive("strongroom v1 ingest chunk id key", master) == target.chunk_id_key
    count = 0
    for path in sorted((target.folder / "packs").glob("*/*")):
        pack = bytes.fromhex(path.name)
        data = path.read_bytes()
        for chunk_id, plain_len, offset, frame_len in target.directory(pack, data)["rows"]:
            frame = data[offset : offset + frame_len]
            for segment in sorted((target.folder / "segments").iterdir()):
                for extents in target.segment(bytes.fromhex(segment.name)):
                    for _, chunk in extents:
                        if chunk is None or chunk.id != chunk_id:
                            continue
                        plain_bytes = reader.open_frame(frame, chunk_id, chunk.key, plain_len, target.chunk_id_key)
                        assert reader.keyed(key_secret, reader.hash32(plain_bytes)) == chunk.key
                        aad = b"strongroom/v1/frame" + chunk_id + plain_len.to_bytes(4, "little")
                        payload = reader.xchacha_open(chunk.key, frame, aad, "frame")
                        assert reader.keyed(nonce_key, chunk_id + payload, 24) == frame[:24]
                        count += 1
    assert count > 0


def main():
    here = Path(__file__).resolve().parent
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else here.parent / "fixtures" / "format-v1"
    expected = json.loads((folder / "expected.json").read_text())
    secret = reader.key_file_secret((folder / "key-file").read_text())
    target = reader.Target(folder / "target")
    layers = target.unlock(secret)
    master = layers["ingest"][:32]
    gear = chunker.gear_table(reader.derive("strongroom v1 ingest gear table key", master))
    tag_key = reader.derive("strongroom v1 catalog volume tag key", layers["catalog"])
    stored = {str(p.relative_to(target.folder)) for p in target.folder.rglob("*") if p.is_file()}
    assert stored == set(expected["objects"]), "the target has other objects"
    check_keyring(target, secret, layers["catalog"], expected["objects"]["keyring"])
    for key, value in expected["objects"].items():
        if key != "keyring":
            opened = check_object(target, key, value)
            if opened:
                volume, session = opened
                assert session[:6] == reader.keyed(tag_key, volume.encode())[:6], key
    check_chain(target)
    check_pack_names(target, tag_key)
    check_moved(target)
    check_frames(target, master)
    for backup, value in expected["volumes"].items():
        check_volume(folder, target, backup, value, gear)
    check_cuts(expected["cuts"])
    print(f"{len(expected['objects'])} objects and {len(expected['volumes'])} backups are as expected")


if __name__ == "__main__":
    main()
