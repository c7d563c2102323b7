"""Attacks that must fail: by name, and also after somebody attached a policy that allows everything."""

from asked import BUCKET, CATALOG_KEY, FUNCTIONS, HOSTS, OBJECTS, OWN_QUEUE, PARTIES, QUEUES, RESTORE_KEY, SESSION_KEY, TARGET, Request, decrypt, mac, put, queue
from decide import ACCOUNT, role_arn

# The worst policy that can be attached to a role by mistake.
EVERYTHING = [{"Sid": "Mistake", "Effect": "Allow", "Action": "*", "Resource": "*"}]
STRANGER = f"arn:aws:iam::{ACCOUNT}:role/developers"
OPERATOR = f"arn:aws:iam::{ACCOUNT}:role/backup-operators"
CONSOLE_API = f"arn:aws:execute-api:eu-central-1:{ACCOUNT}:console"


def at(kind):
    return f"{TARGET}/{OBJECTS[kind]}"


def invoke(function):
    return Request("lambda:InvokeFunction", f"arn:aws:lambda:eu-central-1:{ACCOUNT}:function:strongroom-{function}")


def insecure(request, **pairs):
    return Request(request.action, request.resource, request.kind, request.note, request.pairs + tuple(pairs.items()))


def attacks(world):
    """The names of those that would succeed."""
    return [name for name, succeeds in tried(world) if succeeds]


def tried(world):
    has = world.allows
    mistaken = lambda party, request: world.decides(role_arn(party), EVERYTHING, request)
    for host in HOSTS:
        yield f"{host} overwrites another host's pack", any(has(host, put("packs", at("packs"), how)) for how in ("match", "blind"))
        yield f"{host} deletes a pack", has(host, Request("s3:DeleteObject", at("packs")))
        yield f"{host} replaces the root, or makes one", any(has(host, put("root", at("root"), how)) for how in ("match", "absent", "blind"))
        yield f"{host} makes a copy of a root that never was", any(has(host, put("roots", at("roots"), how)) for how in ("match", "absent", "blind"))
        yield f"{host} answers its own commit", any(has(host, put("outcomes", at("outcomes"), how)) for how in ("match", "absent", "blind"))
        yield f"{host} replaces the keyring", any(has(host, put("keyring", at("keyring"), how)) for how in ("match", "absent", "blind"))
        yield f"{host} gives itself another host's volume", any(has(host, put("fleet", at("fleet"), how)) for how in ("match", "absent", "blind"))
        yield f"{host} writes a run without having read it", any(has(host, put("runs", at("runs"), how)) for how in ("absent", "blind"))
        others = [name for name in [*OWN_QUEUE.values(), "host-hv-03"] if name != OWN_QUEUE[host]]
        yield f"{host} takes messages of others", any(has(host, queue("ReceiveMessage", name)) for name in others)
        yield f"{host} asks for the work of other hosts", any(has(host, queue("SendMessage", name)) for name in others if name != "commits")
        yield f"{host} deletes, with a policy that allows everything", any(mistaken(host, Request("s3:DeleteObject", at(kind))) for kind in OBJECTS)
        yield f"{host} opens secrets that a key is not for, with a policy that allows everything", any(
            mistaken(host, decrypt(key, purpose)) for key, purpose in ((CATALOG_KEY, "restore"), (CATALOG_KEY, ""), (RESTORE_KEY, "ingest"), (RESTORE_KEY, ""))
        )
    yield "a host that only backs up uses the restore key", any(has("host-hv-01", decrypt(RESTORE_KEY, purpose)) for purpose in ("restore", "catalog", "ingest", ""))
    yield "a host that only backs up uses the restore key, with a policy that allows everything", mistaken("host-hv-01", decrypt(RESTORE_KEY, "restore"))
    for function in FUNCTIONS:
        yield f"{function} uses the restore key", any(has(function, decrypt(RESTORE_KEY, purpose)) for purpose in ("restore", "catalog", "ingest", ""))
        yield f"{function} uses the restore key, with a policy that allows everything", any(mistaken(function, decrypt(RESTORE_KEY, purpose)) for purpose in ("restore", "catalog", "ingest", ""))
        yield f"{function} opens the ingest secrets, with a policy that allows everything", mistaken(function, decrypt(CATALOG_KEY, "ingest"))
        if function != "gc":
            yield f"{function} deletes", any(has(function, Request("s3:DeleteObject", at(kind))) for kind in OBJECTS)
            yield f"{function} deletes, with a policy that allows everything", any(mistaken(function, Request("s3:DeleteObject", at(kind))) for kind in OBJECTS)
            yield f"{function} reads packs", has(function, Request("s3:GetObject", at("packs")))
    yield "gc deletes what the catalog stands on", any(has("gc", Request("s3:DeleteObject", at(kind))) for kind in ("root", "roots", "keyring", "runs", "fleet", "outcomes"))
    # The console is open to the internet: whoever takes it over sees the catalog, and asks for what an operator may ask for.
    yield "the console writes", any(has("console", put(kind, at(kind), how)) for kind in OBJECTS for how in ("absent", "match", "blind"))
    yield "the console writes, with a policy that allows everything", any(mistaken("console", put(kind, at(kind), how)) for kind in OBJECTS for how in ("absent", "match", "blind"))
    dead = [*(f"{name}-dead" for name in QUEUES), "undelivered"]
    yield "the console sends to others than the dispatcher", any(has("console", queue("SendMessage", name)) for name in [*QUEUES, *dead, "host-hv-03"] if name != "requests")
    yield "the console takes messages", any(has("console", queue("ReceiveMessage", name)) for name in [*QUEUES, *dead])
    for party in [party for party in PARTIES if party != "console"]:
        yield f"{party} makes sessions of the console up, with a policy that allows everything", mistaken(party, mac(SESSION_KEY))
    for who in (STRANGER, OPERATOR, "arn:aws:iam::999999999999:role/x"):
        yield f"{who} makes sessions of the console up", world.decides(who, EVERYTHING, mac(SESSION_KEY))
    for party in PARTIES:
        yield f"{party} asks the console itself, with claims that it made up", has(party, invoke("console"))
    for source in (CONSOLE_API.replace("console", "other"), CONSOLE_API.replace(ACCOUNT, "999999999999"), f"{CONSOLE_API}-2", ""):
        for path in ("$default/$default", "$default/POST/sign-in"):
            asked = insecure(invoke("console"), **({"aws:SourceArn": f"{source}/{path}"} if source else {}))
            yield f"another API ({source or 'without a name'}) asks the console, with claims that it made up", world.decides("apigateway.amazonaws.com", [], asked)
    for service in ("events.amazonaws.com", "s3.amazonaws.com", "sns.amazonaws.com"):
        yield f"{service} asks the console", world.decides(service, [], insecure(invoke("console"), **{"aws:SourceArn": f"{CONSOLE_API}/x"}))
    for function in FUNCTIONS:
        if function != "console":
            yield f"the console's API asks {function}", world.decides("apigateway.amazonaws.com", [], insecure(invoke(function), **{"aws:SourceArn": f"{CONSOLE_API}/$default/$default"}))
    for path in ("$default/$default", "$default/ANY/v1/{proxy+}", "$default/POST/sign-in"):
        asked = insecure(invoke("console"), **{"aws:SourceArn": f"{CONSOLE_API}/{path}"})
        yield f"(the other way round) its API can't ask the console for {path}", not world.decides("apigateway.amazonaws.com", [], asked)
    for party in PARTIES:
        yield f"{party} writes without a condition, with a policy that allows everything", any(mistaken(party, put(kind, at(kind), "blind")) for kind in OBJECTS)
        for action in ("DeleteObjectVersion", "BypassGovernanceRetention", "PutObjectRetention"):
            yield f"{party}: {action}, with a policy that allows everything", mistaken(party, Request(f"s3:{action}", at("packs")))
        for action in ("PutLifecycleConfiguration", "PutBucketVersioning"):
            yield f"{party}: {action}, with a policy that allows everything", mistaken(party, Request(f"s3:{action}", BUCKET))
        yield f"{party} speaks without TLS", mistaken(party, insecure(Request("s3:GetObject", at("keyring")), **{"aws:SecureTransport": "false"}))
        yield f"{party} speaks with an old TLS", mistaken(party, insecure(Request("s3:GetObject", at("keyring")), **{"s3:TlsVersion": "1.1"}))
        queues = [*OWN_QUEUE.values(), *(f"{name}-dead" for name in OWN_QUEUE.values()), "undelivered"]
        yield f"{party} sends without TLS", any(mistaken(party, insecure(queue("SendMessage", name), **{"aws:SecureTransport": "false"})) for name in queues)
    for key in (CATALOG_KEY, RESTORE_KEY):
        for purpose in ("catalog", "ingest", "restore", ""):
            yield f"an administrator of the account who is no operator decrypts with {key}", world.decides(STRANGER, EVERYTHING, decrypt(key, purpose))
    yield "an administrator overwrites a pack", world.decides(STRANGER, EVERYTHING, put("packs", at("packs"), "blind"))
    for name in [*OWN_QUEUE.values(), "undelivered"]:
        send = queue("SendMessage", name)
        for service, source in (("events.amazonaws.com", "arn:aws:events:eu-central-1:999999999999:rule/strongroom-ticks"), ("sns.amazonaws.com", ""), ("s3.amazonaws.com", "")):
            asked = insecure(send, **({"aws:SourceArn": source} if source else {}))
            yield f"{service} of somebody else sends to {name}", world.decides(service, [], asked)
        yield f"a role of another account uses {name}", any(world.decides("arn:aws:iam::999999999999:role/x", [], queue(action, name)) for action in ("SendMessage", "ReceiveMessage"))
    # And what must work, or nothing would.
    for name in ("ticks", "checks"):
        asked = insecure(queue("SendMessage", name), **{"aws:SourceArn": f"arn:aws:events:eu-central-1:{ACCOUNT}:rule/strongroom-{name}"})
        yield f"(the other way round) the rule can't wake {name}", not world.decides("events.amazonaws.com", [], asked)
        undelivered = insecure(queue("SendMessage", "undelivered"), **{"aws:SourceArn": f"arn:aws:events:eu-central-1:{ACCOUNT}:rule/strongroom-{name}"})
        yield f"(the other way round) what {name} did not get is lost", not world.decides("events.amazonaws.com", [], undelivered)
    yield "(the other way round) nobody administers the bucket", not world.decides(STRANGER, EVERYTHING, Request("s3:PutLifecycleConfiguration", BUCKET))
    for key, purposes in ((CATALOG_KEY, ("catalog", "ingest")), (RESTORE_KEY, ("restore",)), (SESSION_KEY, ())):
        for purpose in purposes:
            generate = Request("kms:GenerateDataKey", key, "", "", decrypt(key, purpose).pairs)
            yield "(the other way round) an operator can't use the keys", not all(world.decides(OPERATOR, EVERYTHING, request) for request in (generate, decrypt(key, purpose)))
        yield "(the other way round) nobody administers the keys", not world.decides(STRANGER, EVERYTHING, Request("kms:PutKeyPolicy", key))
