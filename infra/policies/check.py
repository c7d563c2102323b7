#!/usr/bin/env python3
"""Holds the policies that Terraform makes against the calls that the code makes, and against a list of attacks.

usage: check.py STATE [--table]
STATE is what `terraform test -json -verbose -filter=tests/policies.tftest.hcl` printed. With --table, prints who may do what,
as docs/infra.md has it.

For each function and host, every request of a closed world (asked.py) is decided as AWS would decide it (decide.py). What
is allowed must be what calls.txt and EXTRA say, no more and no less. Then each statement is widened or dropped in turn, and
each of these mutations must be found: a test that would not notice is a failure of its own.
"""

import collections
import sys
from pathlib import Path

from attacks import attacks
from decide import World
from mutate import mutations
from asked import FUNCTIONS, HOSTS, OWN_QUEUE, OBJECT_KINDS, expected_requests, requests_of

HERE = Path(__file__).parent


def read_calls():
    """What tests/tests/access.rs recorded: party -> set of (operation, what)."""
    calls = collections.defaultdict(set)
    for line in (HERE / "calls.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            party, operation, what = line.split()
            calls[party].add((operation, what))
    return calls


def problems_of(world, calls, parties=None):
    """What is wrong, as sentences, one after the other."""
    for party in world.parties if parties is None else parties:
        wanted = expected_requests(party, calls["host" if party.startswith("host-") else party])
        for request in requests_of(party):
            allowed = world.allows(party, request)
            if allowed and request not in wanted:
                yield f"{party} may {request}, and no call of the code needs it"
            # Bucket and keys are a second lock, for mistakes: what a role itself says must be right without it.
            elif request not in wanted and world.allows_alone(party, request):
                yield f"{party} may {request} by its own policy, and no call of the code needs it"
            if not allowed and request in wanted:
                yield f"{party} may not {request}, which the code does"
        for request in wanted - set(requests_of(party)):
            yield f"{party}: the list of requests lacks {request}"
    yield from world.shape_problems()
    yield from (f"attack not stopped: {attack}" for attack in attacks(world))


def table(world):
    """Who may do what where, from the policies."""
    lines = ["| principal | reads | creates, never overwrites | replaces what it read | lists | deletes | key opens | sends to |", "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for party, title in [(name, f"function {name}") for name in FUNCTIONS] + list(HOSTS.items()):
        allowed = [request for request in requests_of(party) if world.allows(party, request)]
        objects = {action: [] for action in ("s3:GetObject", "s3:PutObject absent", "s3:PutObject match", "s3:ListBucket", "s3:DeleteObject")}
        opens, sends = [], []
        for request in allowed:
            name = f"{request.action} {request.note}".strip() if request.action == "s3:PutObject" else request.action
            if name in objects and request.kind in OBJECT_KINDS:
                objects[name].append(f"`{request.kind}`" if request.kind in ("root", "keyring") else f"`{request.kind}/`")
            if request.action == "kms:Decrypt":
                opens.append(request.note)
            if request.action == "sqs:SendMessage":
                own = {f"{OWN_QUEUE.get(party)}-dead": "its dead letters"}
                if party in HOSTS:
                    own[OWN_QUEUE[party]] = "its own queue"
                any_host = {name: "`host-NAME`" for name in ("host-hv-01", "host-hv-02", "host-hv-03") if not party.startswith("host-")}
                sends.append({**any_host, **own}.get(request.kind, f"`{request.kind}`"))
        cells = [", ".join(dict.fromkeys(cell)) or "–" for cell in [*objects.values(), opens, sends]]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    world, calls = World.read(sys.argv[1]), read_calls()
    if "--table" in sys.argv[2:]:
        print(table(world))
        return
    found = list(problems_of(world, calls))
    for problem in found[:40]:
        print(f"policies: {problem}", file=sys.stderr)
    if found:
        sys.exit(f"policies: {len(found)} problems")
    requests = sum(len(requests_of(party)) for party in world.parties)
    allowed = sum(world.allows(party, request) for party in world.parties for request in requests_of(party))
    print(f"policies: {len(world.parties)} roles, {requests} requests, {allowed} of them allowed: exactly those that the code makes")
    tried = missed = 0
    for what, party, mutated in mutations(world):
        tried += 1
        if next(problems_of(mutated, calls, [party] if party else None), None) is None:
            missed += 1
            print(f"policies: nothing notices that {what}", file=sys.stderr)
    if missed or tried < 5:
        sys.exit(f"policies: {missed} of {tried} mutations were not noticed")
    print(f"policies: {tried} mutations (a statement widened, dropped, or without its condition), each of them noticed")


if __name__ == "__main__":
    main()
