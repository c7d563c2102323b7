"""Cuts volumes as section 15 of docs/format.md says: what an independent writer would need."""

import struct

from read_backup import keyed

BLOCK_BYTES = 4096
MIN_HOLE_BYTES = 32768
# Strict and relaxed masks by average.
MASKS = {
    4096: (0x0000D90303530000, 0x0000D90003530000),
    8192: (0x0000D90313530000, 0x0000D90103530000),
    16384: (0x0000D90F03530000, 0x0000D90303530000),
    32768: (0x0000D90303537000, 0x0000D90313530000),
    65536: (0x0000D90703537000, 0x0000D90F03530000),
    131072: (0x0000D90707537000, 0x0000D90303537000),
    262144: (0x0000D91707537000, 0x0000D90703537000),
    524288: (0x0000D91747537000, 0x0000D90707537000),
    1048576: (0x0000D91767537000, 0x0000D91707537000),
}


def gear_table(gear_key):
    return struct.unpack("<256Q", keyed(gear_key, b"", 2048))


def fast_cdc(data, average, gear):
    """The length of the chunk at the start of `data`."""
    if len(data) <= average // 4:
        return len(data)
    end = min(len(data), 4 * average)
    center = min(average, end)
    strict, relaxed = MASKS[average]
    h = 0
    for i in range(average // 4, end & ~1):
        h = (2 * h + gear[data[i]]) & 0xFFFFFFFFFFFFFFFF
        if h & (strict if i < center & ~1 else relaxed) == 0:
            return i
    return end


def cut(data, offset, chunker, gear):
    """The length of the chunk at the start of a stretch of which `data` is left, at `offset` of its region."""
    if "fixed" in chunker:
        size = chunker["fixed"]["size_bytes"]
        return min(len(data), size - offset % size)
    return fast_cdc(data, chunker["fast_cdc"]["average_bytes"], gear)


def holes(region):
    """The holes of a region as (start, end)."""
    blocks = range(0, len(region), BLOCK_BYTES)
    runs = []
    for start in blocks:
        end = min(start + BLOCK_BYTES, len(region))
        if any(region[start:end]):
            continue
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return [run for run in runs if run[1] - run[0] >= MIN_HOLE_BYTES or run == (0, len(region))]


def extents(region, chunker, gear):
    """Cuts a region into (length, content), content being None for zeros."""
    found = []

    def add(start, end):
        if not any(region[start:end]):
            before = found.pop()[0] if found and found[-1][1] is None else 0
            found.append((before + end - start, None))
        else:
            found.append((end - start, region[start:end]))

    at = 0
    for start, end in holes(region) + [(len(region), len(region))]:
        while at < start:
            length = cut(region[at:start], at, chunker, gear)
            add(at, at + length)
            at += length
        if end > start:
            add(start, end)
        at = end
    return found
