"""The closed world of requests that policies are tried on, and which of them the code makes."""

import functools
from dataclasses import dataclass, field

from decide import ACCOUNT

BUCKET = "arn:aws:s3:::backups"
TARGET = f"{BUCKET}/home"
ID = "0123456789abcdef0123456789abcdef"
OBJECTS = {
    "keyring": "keyring",
    "root": "root",
    "roots": "roots/00000000000000000007",
    "nodes": f"nodes/00000000000000000007-{ID}",
    "manifests": f"manifests/{ID}",
    "segments": f"segments/{ID}",
    "packs": f"packs/01/{ID}",
    "index": f"index/{ID}",
    "inbox": f"inbox/{ID}/open",
    "outcomes": f"outcomes/{ID}",
    "runs": f"runs/{ID}",
    "fleet": "fleet/shards/00a0",
}
OBJECT_KINDS = list(OBJECTS)
HOSTS = {"host-hv-01": "host", "host-hv-02": "host with `restore`"}
OWN_QUEUE = {
    "scheduler": "ticks",
    "dispatcher": "requests",
    "committer": "commits",
    "retention": "retention",
    "gc": "gc",
    "reconciler": "checks",
    "host-hv-01": "host-hv-01",
    "host-hv-02": "host-hv-02",
}
QUEUES = list(OWN_QUEUE.values())
# The console has no queue: its API asks it.
FUNCTIONS = [*(party for party in OWN_QUEUE if party not in HOSTS), "console"]
PARTIES = [*FUNCTIONS, *HOSTS]
CATALOG_KEY = f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/catalog"
RESTORE_KEY = f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/restore"
SESSION_KEY = f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/sessions"
OTHER_KEY = f"arn:aws:kms:eu-central-1:{ACCOUNT}:key/other"
KEYS = {CATALOG_KEY: "catalog key", RESTORE_KEY: "restore key", SESSION_KEY: "session key", OTHER_KEY: "other key"}

# Actions on objects, beside reading, writing and deleting; nobody has them.
OBJECT_ACTIONS = """GetObjectVersion DeleteObjectVersion GetObjectAcl PutObjectAcl PutObjectVersionAcl GetObjectTagging PutObjectTagging
DeleteObjectTagging GetObjectRetention PutObjectRetention PutObjectLegalHold BypassGovernanceRetention RestoreObject
AbortMultipartUpload ListMultipartUploadParts ReplicateObject ReplicateDelete ObjectOwnerOverrideToBucketOwner GetObjectAttributes""".split()
BUCKET_ACTIONS = """ListBucketVersions ListBucketMultipartUploads DeleteBucket PutBucketPolicy DeleteBucketPolicy GetBucketPolicy PutBucketAcl
PutBucketVersioning PutLifecycleConfiguration PutEncryptionConfiguration PutBucketPublicAccessBlock PutBucketObjectLockConfiguration
PutReplicationConfiguration PutBucketNotification PutBucketLogging GetBucketLocation PutBucketOwnershipControls""".split()
KEY_ACTIONS = """Encrypt GenerateDataKey GenerateDataKeyWithoutPlaintext ReEncryptFrom ReEncryptTo CreateGrant RevokeGrant RetireGrant PutKeyPolicy
ScheduleKeyDeletion DisableKey DescribeKey UpdateAlias GetKeyPolicy VerifyMac""".split()
QUEUE_ACTIONS = """SendMessage ReceiveMessage DeleteMessage ChangeMessageVisibility GetQueueUrl GetQueueAttributes PurgeQueue DeleteQueue
SetQueueAttributes AddPermission RemovePermission StartMessageMoveTask ListDeadLetterSourceQueues TagQueue""".split()
OTHERS = [
    *((f"iam:{action}", f"arn:aws:iam::{ACCOUNT}:role/strongroom-gc") for action in ("PassRole", "PutRolePolicy", "AttachRolePolicy", "UpdateAssumeRolePolicy")),
    ("iam:CreateAccessKey", f"arn:aws:iam::{ACCOUNT}:user/admin"),
    ("iam:CreateUser", f"arn:aws:iam::{ACCOUNT}:user/new"),
    *(("sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/strongroom-{party}") for party in ("gc", "host-hv-02")),
    *(
        (f"lambda:{action}", f"arn:aws:lambda:eu-central-1:{ACCOUNT}:function:strongroom-{function}")
        for function in ("gc", "console")
        for action in ("InvokeFunction", "UpdateFunctionCode", "UpdateFunctionConfiguration", "AddPermission", "CreateFunctionUrlConfig")
    ),
    *((f"apigateway:{action}", "arn:aws:apigateway:eu-central-1::/apis/console/authorizers/1") for action in ("PATCH", "DELETE")),
    ("events:PutRule", f"arn:aws:events:eu-central-1:{ACCOUNT}:rule/strongroom-ticks"),
    ("events:DisableRule", f"arn:aws:events:eu-central-1:{ACCOUNT}:rule/strongroom-ticks"),
    ("sns:Publish", f"arn:aws:sns:eu-central-1:{ACCOUNT}:strongroom-alarms"),
    ("cloudwatch:PutMetricData", "*"),
    ("cloudwatch:DeleteAlarms", f"arn:aws:cloudwatch:eu-central-1:{ACCOUNT}:alarm:strongroom-missing-packs"),
    ("s3:ListAllMyBuckets", "*"),
    ("kms:CreateKey", "*"),
    ("xray:PutTraceSegments", "*"),
    ("xray:PutTelemetryRecords", "*"),
    ("xray:GetTraceSummaries", "*"),
    ("ec2:RunInstances", "*"),
    ("secretsmanager:GetSecretValue", f"arn:aws:secretsmanager:eu-central-1:{ACCOUNT}:secret:x"),
]


@dataclass(frozen=True)
class Request:
    action: str
    resource: str
    # What kind of thing the resource is, and what tells requests of an action on it apart.
    kind: str = ""
    note: str = ""
    pairs: tuple = field(default=(), compare=True)

    @property
    def context(self):
        return dict(self.pairs)

    def __str__(self):
        return f"{self.action} {self.note} on {self.kind or self.resource}".replace("  ", " ")


def put(kind, resource, note):
    pairs = {"absent": (("s3:if-none-match", "*"),), "match": (("s3:if-match", '"7"'),), "blind": ()}[note]
    return Request("s3:PutObject", resource, kind, note, pairs)


def list_of(kind, prefix):
    return Request("s3:ListBucket", BUCKET, kind, f"below '{prefix}'", (("s3:prefix", prefix),))


# S3 asks for this when an object is missing, to choose between 404 and 403.
LIST_ANYTHING = Request("s3:ListBucket", BUCKET, "bucket", "without a prefix")


def decrypt(key, purpose):
    pairs = (("kms:EncryptionContext:strongroom-purpose", purpose),) if purpose else ()
    return Request("kms:Decrypt", key, KEYS[key], purpose or "anything", pairs)


def mac(key):
    return Request("kms:GenerateMac", key, KEYS[key])


def queue(action, name):
    return Request(f"sqs:{action}", f"arn:aws:sqs:eu-central-1:{ACCOUNT}:strongroom-{name}", name)


def log(action, party):
    name = f"arn:aws:logs:eu-central-1:{ACCOUNT}:log-group:/aws/lambda/strongroom-{party}"
    return Request(f"logs:{action}", f"{name}:log-stream:1" if action != "DeleteLogGroup" else f"{name}:*", f"log of {party}")


@functools.cache
def requests_of(_party):
    """Every request that is tried."""
    found = []
    places = {kind: f"{TARGET}/{key}" for kind, key in OBJECTS.items()}
    places |= {
        "a foreign object in the target": f"{TARGET}/notes.txt",
        "an object named like root": f"{TARGET}/rootx",
        "the pack of another target": f"{BUCKET}/other/packs/01/{ID}",
        "the root of another target": f"{BUCKET}/other/root",
        "a pack at the bucket's top": f"{BUCKET}/packs/01/{ID}",
        "another bucket's pack": f"arn:aws:s3:::backups-2/home/packs/01/{ID}",
    }
    for kind, resource in places.items():
        found += [Request("s3:GetObject", resource, kind), Request("s3:DeleteObject", resource, kind)]
        found += [put(kind, resource, note) for note in ("absent", "match", "blind")]
        found += [Request(f"s3:{action}", resource, kind) for action in OBJECT_ACTIONS]
    found += [list_of(kind, f"home/{kind}/") for kind in OBJECT_KINDS if kind not in ("root", "keyring")]
    found += [list_of(f"the bucket below '{prefix}'", prefix) for prefix in ("", "home/", "home", "other/", "other/packs/")]
    found += [LIST_ANYTHING, Request("s3:ListBucket", "arn:aws:s3:::backups-2", "another bucket")]
    found += [Request(f"s3:{action}", BUCKET, "bucket") for action in BUCKET_ACTIONS]
    for key in KEYS:
        found += [decrypt(key, purpose) for purpose in ("catalog", "ingest", "restore", "")]
        found.append(mac(key))
        found += [Request(f"kms:{action}", key, KEYS[key]) for action in KEY_ACTIONS]
    names = [*QUEUES, *(f"{name}-dead" for name in QUEUES), "undelivered", "host-hv-03"]
    found += [queue(action, name) for name in names for action in QUEUE_ACTIONS]
    found += [Request(f"sqs:{action}", f"arn:aws:sqs:eu-central-1:{ACCOUNT}:payroll", "a queue of others") for action in QUEUE_ACTIONS]
    found += [log(action, party) for party in FUNCTIONS for action in ("CreateLogStream", "PutLogEvents", "DeleteLogGroup", "GetLogEvents")]
    found += [Request(action, resource) for action, resource in OTHERS]
    return tuple(found)


# A host asks to clear its inbox away, takes no for an answer, and leaves it to the collector.
REFUSED = {("host", "delete", "inbox")}


def expected_requests(party, calls):
    """The requests that must be allowed: what was recorded of the code, and what is done around it."""
    is_host = party.startswith("host-")
    found = {LIST_ANYTHING, decrypt(CATALOG_KEY, "catalog")}
    for operation, what in calls:
        if ("host" if is_host else party, operation, what) in REFUSED:
            continue
        if operation == "send":
            # A function that sends to hosts sends to any.
            targets = [name for name in [*QUEUES, "host-hv-03"] if name.startswith("host-")] if what == "host" else [what]
            found |= {queue(action, name) for name in targets for action in ("SendMessage", "GetQueueUrl")}
            continue
        if operation == "list":
            found.add(list_of(what, f"home/{what}/"))
            continue
        resource = f"{TARGET}/{OBJECTS[what]}"
        found.add(
            {
                "get": Request("s3:GetObject", resource, what),
                "get_range": Request("s3:GetObject", resource, what),
                "put_if_absent": put(what, resource, "absent"),
                "put_if_match": put(what, resource, "match"),
                "delete": Request("s3:DeleteObject", resource, what),
            }[operation]
        )
    own = OWN_QUEUE.get(party)
    if party == "console":
        found.add(mac(SESSION_KEY))
    if own:
        found |= {queue(action, f"{own}-dead") for action in ("SendMessage", "GetQueueUrl")}
    if is_host:
        found.add(decrypt(CATALOG_KEY, "ingest"))
        found |= {queue(action, own) for action in ("ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility", "SendMessage", "GetQueueUrl")}
        if HOSTS[party] != "host":
            found.add(decrypt(RESTORE_KEY, "restore"))
    else:
        # What Lambda does in the function's name.
        if own:
            found |= {queue(action, own) for action in ("ReceiveMessage", "DeleteMessage", "GetQueueAttributes")}
        found |= {log(action, party) for action in ("CreateLogStream", "PutLogEvents")}
        found |= {Request(action, "*") for action in ("xray:PutTraceSegments", "xray:PutTelemetryRecords")}
    return found
