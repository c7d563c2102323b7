#!/usr/bin/env python3
"""Stands in for the tools of LVM, ZFS and open-iscsi where a test has no such storage.

It is installed under their names. What they were called with goes to the file `log` of the folder STRONGROOM_TEST_TOOLS; volumes are files
of its folder `volumes`, and devices are links to them. It takes only the options that the tools take (lvcreate(8), lvs(8), thin_delta(8),
zfs(8), zstream(8), iscsiadm(8)) and answers in their format.
"""
import fcntl
import json
import os
import shutil
import signal
import sys
from pathlib import Path

STATE = Path(os.environ["STRONGROOM_TEST_TOOLS"])
VOLUMES = STATE / "volumes"
BLOCK = 64 << 10


def options(args, with_value, flags=()):
    """Splits arguments into options and the rest; whatever is not known is refused."""
    found, rest, args = {}, [], list(args)
    while args:
        arg = args.pop(0)
        if arg == "--":
            rest += args
            break
        if arg in with_value:
            found.setdefault(arg, []).append(args.pop(0))
        elif arg in flags:
            found[arg] = True
        elif arg.startswith("-"):
            sys.exit(f"unknown option {arg}")
        else:
            rest.append(arg)
    return found, rest


def table():
    path = STATE / "table.json"
    return json.loads(path.read_text()) if path.exists() else {}


def keep(rows):
    (STATE / "table.json").write_text(json.dumps(rows))


def link(device, volume):
    device = Path(device)
    device.parent.mkdir(parents=True, exist_ok=True)
    device.unlink(missing_ok=True)
    device.symlink_to(VOLUMES / volume)


def fill(path, size, unit, zeros):
    """Makes a volume of whole units; what is in it that nobody wrote is somebody else's, if the storage does not see to it."""
    size = -(-size // unit) * unit
    with path.open("wb") as file:
        if zeros:
            file.truncate(size)
        else:
            file.write(b"stale bytes. " * (size // 13 + 1))
            file.truncate(size)


def blocks(name):
    data = (VOLUMES / name).read_bytes()
    return [data[at:at + BLOCK] for at in range(0, len(data), BLOCK)]


def lvs(args):
    found, rest = options(args, ["--reportformat", "-o"], ["--noheadings"])
    rows = table()
    if "--noheadings" in found:
        for name, row in rows.items():
            print(f"  {row['vg']} {name}")
        return
    assert found["--reportformat"] == ["json"]
    columns = found["-o"][0].split(",")
    if not any(row["vg"] == rest[0] for row in rows.values()):
        sys.exit(f'  Volume group "{rest[0]}" not found')
    known = [{"lv_name": name, **row} for name, row in rows.items() if row["vg"] == rest[0]]
    print(json.dumps({"report": [{"lv": [{column: row.get(column, "") for column in columns} for row in known]}]}))


def lvcreate(args):
    values = ["--setactivationskip", "--activate", "--permission", "--name", "--type", "--virtualsize", "--thinpool"]
    found, rest = options(args, values, ["--snapshot"])
    group, _, origin = rest[0].partition("/")
    name = found["--name"][0]
    rows = table()
    if name in rows:
        sys.exit(f'  Logical Volume "{name}" already exists in volume group "{group}"')
    ids = [int(row["thin_id"]) for row in rows.values() if row["thin_id"]]
    rows[name] = {"vg": group, "origin": origin, "thin_id": str(max(ids) + 1)}
    if "--snapshot" in found:
        rows[name]["pool_lv"] = rows[origin]["pool_lv"]
        shutil.copy(VOLUMES / origin, VOLUMES / name)
    else:
        assert found["--type"] == ["thin"] and "--permission" not in found, args
        rows[name]["pool_lv"] = found["--thinpool"][0]
        size = int(found["--virtualsize"][0].removesuffix("b"))
        if size % 512 or not size:
            sys.exit("  Size is not a multiple of 512.")
        fill(VOLUMES / name, size, 4 << 20, rows[rows[name]["pool_lv"]]["zero"])
    link(f"/dev/{group}/{name}", name)
    keep(rows)
    print(f'  Logical volume "{name}" created.')


def lvremove(args):
    _, rest = options(args, [], ["--yes"])
    group, name = rest[0].split("/")
    rows = table()
    if name not in rows or not (rows[name]["origin"] or name.startswith("strongroom-")):
        sys.exit(f"  Failed to find logical volume \"{rest[0]}\"")
    del rows[name]
    keep(rows)
    (VOLUMES / name).unlink()
    Path(f"/dev/{group}/{name}").unlink(missing_ok=True)


def lvchange(args):
    found, rest = options(args, ["--activate"])
    assert found["--activate"] == ["n"]
    Path("/dev", rest[0]).unlink(missing_ok=True)


def lvrename(args):
    _, (group, name, to) = options(args, [])
    rows = table()
    rows[to] = rows.pop(name)
    keep(rows)
    (VOLUMES / name).rename(VOLUMES / to)
    device = Path(f"/dev/{group}/{name}")
    if device.is_symlink():
        device.unlink()
        link(f"/dev/{group}/{to}", to)


def dmsetup(args):
    kind, device, sector, message = args
    assert (kind, sector) == ("message", "0") and device.endswith("-tpool"), args
    held = STATE / "reserved"
    if message == "reserve_metadata_snap":
        if held.exists():
            sys.exit("device-mapper: message ioctl failed: Device or resource busy")
        held.touch()
    else:
        assert message == "release_metadata_snap"
        held.unlink()


def thin_delta(args):
    found, rest = options(args, ["--snap1", "--snap2"], ["--metadata-snap"])
    assert "--metadata-snap" in found and (STATE / "reserved").exists() and rest[0].startswith("/dev/mapper/"), args
    if (STATE / "thin_delta-fails").exists():
        sys.exit("metadata contains errors")
    by_id = {row["thin_id"]: name for name, row in table().items()}
    first, second = (blocks(by_id[found[option][0]]) for option in ("--snap1", "--snap2"))
    print(f'<superblock uuid="" time="1" transaction="2" data_block_size="{BLOCK // 512}" nr_data_blocks="0">')
    print(f'  <diff left="{found["--snap1"][0]}" right="{found["--snap2"][0]}">')
    for at, (one, other) in enumerate(zip(first, second)):
        kind = "same" if one == other else "different"
        print(f'    <{kind} begin="{at}" length="1"/>')
    print("  </diff>\n</superblock>")


def zfs(args):
    command, args = args[0], args[1:]
    rows = table()
    if command == "list":
        found, rest = options(args, ["-d", "-t", "-o"], ["-H"])
        if "-t" not in found:
            if rest[0] not in rows:
                sys.exit(f"cannot open '{rest[0]}': dataset does not exist")
            print(rest[0])
            return
        kind = found["-t"][0]
        for name, row in rows.items():
            below = not rest or name.startswith(rest[0] + ("@" if kind == "snapshot" else "/"))
            if row["kind"] == kind and below:
                print(name)
    elif command == "snapshot":
        for name in args:
            rows[name] = {"kind": "snapshot", "file": name.replace("/", "_")}
            shutil.copy(VOLUMES / rows[name.split("@")[0]]["file"], VOLUMES / rows[name]["file"])
    elif command == "create":
        found, (name,) = options(args, ["-V"], ["-s"])
        assert "-s" in found, args
        size = int(found["-V"][0])
        if size % (16 << 10):
            sys.exit(f"cannot create '{name}': volume size must be a multiple of volume block size")
        rows[name] = {"kind": "volume", "file": name.replace("/", "_")}
        fill(VOLUMES / rows[name]["file"], size, 1, True)
        link(f"/dev/zvol/{name}", rows[name]["file"])
    elif command == "clone":
        found, (snapshot, clone) = options(args, ["-o"])
        assert found["-o"] == ["readonly=on", "volmode=dev"]
        rows[clone] = {"kind": "volume", "file": rows[snapshot]["file"], "origin": snapshot}
        link(f"/dev/zvol/{clone}", rows[clone]["file"])
    elif command == "destroy":
        name = args[0]
        if any(row.get("origin") == name for row in rows.values()):
            sys.exit(f"cannot destroy '{name}': snapshot has dependent clones")
        row = rows.pop(name)
        if "origin" not in row:
            (VOLUMES / row["file"]).unlink()
        if row["kind"] == "volume":
            Path("/dev/zvol", name).unlink(missing_ok=True)
    elif command == "rename":
        if args[1] in rows:
            sys.exit(f"cannot rename to '{args[1]}': dataset already exists")
        row = rows[args[1]] = rows.pop(args[0])
        if row["kind"] == "volume" and "origin" not in row:
            file = args[1].replace("/", "_")
            (VOLUMES / row["file"]).rename(VOLUMES / file)
            row["file"] = file
        device = Path("/dev/zvol", args[0])
        if device.is_symlink():
            device.unlink()
            link(f"/dev/zvol/{args[1]}", rows[args[1]]["file"])
    elif command == "get":
        assert args[:-1] == ["-H", "-p", "-o", "value", "volsize"], args
        print((VOLUMES / rows[args[-1]]["file"]).stat().st_size)
    elif command == "send":
        assert args[0] == "-i"
        print(json.dumps([rows[name]["file"] for name in args[1:]]))
    else:
        sys.exit(f"unrecognized command '{command}'")
    keep(rows)


def zstream(args):
    assert args == ["dump", "-v"]
    first, second = (blocks(name) for name in json.load(sys.stdin))
    print("BEGIN record\n\thdrtype = 1\n\nOBJECT object = 1 type = 23 bonustype = 0 blksz = 65536 bonuslen = 0")
    for at, (one, other) in enumerate(zip(first, second)):
        if one != other and not any(other):
            print(f"FREE object = 1 offset = {at * BLOCK} length = {len(other)}")
        elif one != other:
            print(
                f"WRITE object = 1 type = 23 checksum type = 7 compression type = 0 flags = 0 offset = {at * BLOCK} "
                f"logical_size = {len(other)} compressed_size = 0 payload_size = {len(other)} props = 1"
            )
    print("END checksum = 1/2/3/4\nSUMMARY:\n\tTotal DRR_BEGIN records = 1 (0 bytes)")


def iscsiadm(args):
    found, _ = options(args, ["-m", "-T", "-p", "-o", "-n", "-v"], ["--login", "--logout"])
    sessions = STATE / "sessions"
    sessions.mkdir(exist_ok=True)
    if found["-m"] == ["session"]:
        known = sorted(sessions.iterdir())
        if not known:
            print("iscsiadm: No active sessions.", file=sys.stderr)
            sys.exit(21)
        for number, session in enumerate(known, 1):
            portal, target = session.read_text().split()
            print(f"tcp: [{number}] {portal},1 {target} (non-flash)")
        return
    portal, target = found["-p"][0], found["-T"][0]
    session = sessions / target
    record = STATE / f"record-{target}"
    device = Path(f"/dev/disk/by-path/ip-{portal}-iscsi-{target}-lun-1")
    if "-o" not in found and not {"--login", "--logout"} & found.keys():
        if not record.exists():
            print("iscsiadm: No records found", file=sys.stderr)
            sys.exit(21)
    elif found.get("-o") == ["new"]:
        record.touch()
    elif found.get("-o") == ["update"]:
        assert record.exists()
    elif found.get("-o") == ["delete"]:
        record.unlink()
    elif "--login" in found:
        assert record.exists()
        session.write_text(f"{portal} {target}")
        link(device, "unit")
    elif "--logout" in found:
        if not session.exists():
            sys.exit(21)
        session.unlink()
        device.unlink()


def main():
    name = Path(sys.argv[0]).name
    with (STATE / "log").open("a") as log:
        log.write(" ".join([name, *sys.argv[1:]]) + "\n")
    with (STATE / "lock").open("w") as lock:
        if name != "zstream":  # waits for zfs, and changes nothing
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            globals()[name](sys.argv[1:])
        finally:
            # The backup that called is killed after so many calls, whatever came of this one.
            kill = STATE / "kill-after"
            if kill.exists() and len((STATE / "log").read_text().splitlines()) == int(kill.read_text()):
                os.kill(os.getppid(), signal.SIGKILL)


main()
