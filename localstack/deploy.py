"""Deploys Strongroom to LocalStack: bucket, key, queues with dead letters, functions, event source mappings, rules.

usage: deploy.py ZIPS_FOLDER HOST...; prints what to export. Made again, it changes what is there.
"""

import json
import os
import sys
import time
from pathlib import Path

import boto3
from botocore.exceptions import ClientError

PREFIX = "strongroom"
BUCKET = "strongroom-fleet"
ENDPOINT = os.environ["AWS_ENDPOINT_URL"]
REGION = os.environ.get("AWS_REGION", "us-east-1")
ACCOUNT = "000000000000"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/strongroom"
# Function: (queue that wakes it, most messages at once, seconds it may take).
FUNCTIONS = {
    "scheduler": ("ticks", 1, 60),
    "dispatcher": ("requests", 10, 60),
    "committer": ("commits", 10, 60),
    "retention": ("retention", 1, 120),
    "gc": ("gc", 1, 300),
    "reconciler": ("checks", 1, 60),
}
MAX_RECEIVES = 10


def client(service):
    return boto3.client(
        service, endpoint_url=ENDPOINT, region_name=REGION, aws_access_key_id="test", aws_secret_access_key="test"
    )


def make_key():
    kms = client("kms")
    alias = f"alias/{PREFIX}"
    try:
        return kms.describe_key(KeyId=alias)["KeyMetadata"]["Arn"]
    except ClientError:
        arn = kms.create_key(Description="Strongroom's catalog, ingest and restore secrets")["KeyMetadata"]["Arn"]
        kms.create_alias(AliasName=alias, TargetKeyId=arn)
        return arn


def make_queue(name, seconds):
    """A queue and its dead letters. Its messages are kept from others for six times as long as their function may take,
    as AWS advises for event source mappings."""
    sqs = client("sqs")
    dead = sqs.create_queue(QueueName=f"{PREFIX}-{name}-dead")["QueueUrl"]
    dead_arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = json.dumps({"deadLetterTargetArn": dead_arn, "maxReceiveCount": MAX_RECEIVES})
    url = sqs.create_queue(QueueName=f"{PREFIX}-{name}")["QueueUrl"]
    attributes = {"RedrivePolicy": redrive, "VisibilityTimeout": str(6 * seconds)}
    sqs.set_queue_attributes(QueueUrl=url, Attributes=attributes)
    return sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]


def make_function(name, zip_path, seconds, environment):
    functions = client("lambda")
    full = f"{PREFIX}-{name}"
    try:
        functions.delete_function(FunctionName=full)
    except ClientError:
        pass
    functions.create_function(
        FunctionName=full,
        Runtime="provided.al2023",
        Handler="bootstrap",
        Role=ROLE,
        Code={"ZipFile": zip_path.read_bytes()},
        Timeout=seconds,
        MemorySize=256,
        Environment={"Variables": environment},
    )
    functions.get_waiter("function_active_v2").wait(FunctionName=full)


def map_queue(name, queue_arn, batch):
    functions = client("lambda")
    for mapping in functions.list_event_source_mappings(FunctionName=f"{PREFIX}-{name}")["EventSourceMappings"]:
        functions.delete_event_source_mapping(UUID=mapping["UUID"])
    functions.create_event_source_mapping(
        FunctionName=f"{PREFIX}-{name}",
        EventSourceArn=queue_arn,
        BatchSize=batch,
        FunctionResponseTypes=["ReportBatchItemFailures"],
        # Commits of a target race for its root: more of them at once win nothing. Two is the least that SQS mappings take.
        **({"ScalingConfig": {"MaximumConcurrency": 2}} if name == "committer" else {}),
    )


def make_rule(name, rate, queue_arn):
    events = client("events")
    events.put_rule(Name=f"{PREFIX}-{name}", ScheduleExpression=rate)
    events.put_targets(Rule=f"{PREFIX}-{name}", Targets=[{"Id": "queue", "Arn": queue_arn}])


def main():
    zips, hosts = Path(sys.argv[1]), sys.argv[2:]
    begun = time.monotonic()
    try:
        client("s3").create_bucket(Bucket=BUCKET)
    except ClientError as error:
        if "BucketAlready" not in str(error):
            raise
    key = make_key()
    environment = {
        "STRONGROOM_TARGET": f"s3://{BUCKET}/home",
        "STRONGROOM_KMS_KEY": key,
        "STRONGROOM_QUEUES": f"sqs://{PREFIX}",
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    for host in hosts:
        make_queue(f"host-{host}", 20)
    arns = {queue: make_queue(queue, seconds) for queue, _, seconds in FUNCTIONS.values()}
    for name, (queue, batch, seconds) in FUNCTIONS.items():
        make_function(name, zips / f"strongroom-{name}.zip", seconds, environment)
        map_queue(name, arns[queue], batch)
    make_rule("ticks", "rate(1 minute)", arns["ticks"])
    make_rule("checks", "rate(1 minute)", arns["checks"])
    print(f"localstack/deploy: {len(FUNCTIONS)} functions in {time.monotonic() - begun:.1f} s", file=sys.stderr)
    for name in ("STRONGROOM_TARGET", "STRONGROOM_KMS_KEY", "STRONGROOM_QUEUES"):
        print(f"export {name}={environment[name]}")


if __name__ == "__main__":
    main()
