"""Decides requests as AWS does, as far as policies of this module go: identity policies, and those of bucket, keys, queues.

Whatever of a policy is not understood ends the check: a condition that is skipped would be a hole in it.
"""

import copy
import functools
import json
import re

ACCOUNT = "123456789012"
ROOT = f"arn:aws:iam::{ACCOUNT}:root"
TRUSTED = {"lambda.amazonaws.com", "ec2.amazonaws.com"}


def listed(value):
    return value if isinstance(value, list) else [value]


@functools.cache
def like(pattern, value):
    """IAM's wildcards: * and ?."""
    expression = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)
    return re.fullmatch(expression, value, re.S) is not None


class World:
    def __init__(self, identity, trust, bucket, keys, queues, functions, operators):
        self.identity, self.trust, self.bucket = identity, trust, bucket
        self.keys, self.queues, self.functions, self.operators = keys, queues, functions, operators
        self.parties = list(identity)

    @classmethod
    def read(cls, path):
        state = None
        with open(path) as lines:
            for line in lines:
                message = json.loads(line)
                if message.get("type") == "test_state":
                    state = message["test_state"]
        if state is None:
            raise SystemExit(f"policies: {path} holds no state of a test: did `terraform test` run?")
        identity, trust, keys, queues, functions, bucket = {}, {}, {}, {}, {}, None
        for resource in state["root_module"]["resources"]:
            kind, values, index = resource["type"], resource["values"], resource.get("index")
            party = f"host-{index}" if resource["name"] == "host" else index
            if kind == "aws_iam_role_policy":
                identity[party] = json.loads(values["policy"])["Statement"]
            elif kind == "aws_iam_role":
                trust[party] = json.loads(values["assume_role_policy"])["Statement"]
            elif kind == "aws_s3_bucket_policy":
                bucket = json.loads(values["policy"])["Statement"]
            elif kind == "aws_kms_key":
                keys[values["arn"]] = json.loads(values["policy"])["Statement"]
            elif kind == "aws_sqs_queue":
                queues[values["name"]] = json.loads(values["policy"])["Statement"]
            elif kind == "aws_lambda_permission":
                functions.setdefault(values["function_name"], []).append(permission(values))
            elif kind in ("aws_iam_policy", "aws_iam_role_policy_attachment", "aws_iam_user_policy", "aws_kms_grant", "aws_lambda_function_url", "aws_sqs_queue_policy"):
                raise SystemExit(f"policies: {resource['address']} gives rights that are not checked here: teach decide.py to")
        if not (identity and bucket and len(keys) == 3 and queues and functions):
            raise SystemExit("policies: the state lacks roles, bucket, keys, queues or the console")
        return cls(identity, trust, bucket, keys, queues, functions, [f"arn:aws:iam::{ACCOUNT}:role/backup-operators"])

    def mutated(self):
        return copy.deepcopy(self)

    def allows(self, party, request):
        return self.decides(role_arn(party), self.identity[party], request)

    def allows_alone(self, party, request):
        """Whether its own policy allows it, were there no other."""
        context = {"aws:PrincipalArn": role_arn(party), **request.context}
        own = [statement for statement in self.identity[party] if matches(statement, request, context)]
        return bool(own) and all(statement["Effect"] == "Allow" for statement in own)

    def decides(self, principal, identity, request):
        """Whether a principal with these identity policies may do it."""
        context = {"aws:PrincipalArn": principal, "aws:SecureTransport": "true", "s3:TlsVersion": "1.3", **request.context}
        own = [statement for statement in identity if matches(statement, request, context)]
        on_resource = [
            statement for statement in self.resource_statements(request.resource) if names(statement, principal) and matches(statement, request, context)
        ]
        if any(statement["Effect"] == "Deny" for statement in own + on_resource):
            return False
        if request.action.startswith("kms:"):
            # A key's policy must admit it, be it by leaving it to the account's own policies.
            return bool(own) and bool(on_resource)
        return bool(own) or any(direct(statement, principal) for statement in on_resource)

    def resource_statements(self, resource):
        if resource.startswith("arn:aws:s3:::backups"):
            return self.bucket
        if ":kms:" in resource:
            return self.keys.get(resource, [])
        if ":sqs:" in resource:
            return self.queues.get(resource.split(":")[-1], [])
        if ":lambda:" in resource:
            return self.functions.get(resource.split(":")[-1], [])
        return []

    def shape_problems(self):
        """What is wrong with a policy whoever asks."""
        found = []
        for party, statements in self.identity.items():
            for statement in statements:
                for action in listed(statement["Action"]):
                    if "*" in action or "?" in action:
                        found.append(f"{party}: action {action} is not spelled out")
                for resource in listed(statement["Resource"]):
                    if resource == "*" and not all(action.startswith("xray:") for action in listed(statement["Action"])):
                        found.append(f"{party}: {statement['Sid']} is for any resource")
        for party, statements in self.trust.items():
            wanted = {"lambda.amazonaws.com"} if not party.startswith("host-") else TRUSTED - {"lambda.amazonaws.com"}
            for statement in statements:
                principal = statement["Principal"]
                services, accounts = set(listed(principal.get("Service", []))), listed(principal.get("AWS", []))
                if principal == "*" or services - wanted or any("*" in arn or arn.endswith(":root") for arn in accounts):
                    found.append(f"{party}: its role can be taken on by {principal}")
                if accounts and not party.startswith("host-"):
                    found.append(f"{party}: a function's role can be taken on by {accounts}")
        for where, statements in [("bucket", self.bucket), *self.keys.items(), *self.queues.items(), *self.functions.items()]:
            for statement in statements:
                if statement["Effect"] == "Allow" and statement["Principal"] in ("*", {"AWS": "*"}):
                    found.append(f"{where}: {statement['Sid']} lets anybody in")
        return found


def permission(values):
    """The statement that Lambda makes of a permission for a service."""
    unknown = [name for name in ("event_source_token", "function_url_auth_type", "principal_org_id", "qualifier") if values.get(name)]
    if unknown:
        raise SystemExit(f"policies: {unknown} of a permission is not understood")
    condition = {"ArnLike": {"aws:SourceArn": values["source_arn"]}} if values.get("source_arn") else None
    return {
        "Sid": values["statement_id"],
        "Effect": "Allow",
        "Principal": "*" if values["principal"] == "*" else {"Service": values["principal"]},
        "Action": values["action"],
        "Resource": f"arn:aws:lambda:eu-central-1:{ACCOUNT}:function:{values['function_name']}",
        **({"Condition": condition} if condition else {}),
    }


def role_arn(party):
    return f"arn:aws:iam::{ACCOUNT}:role/strongroom-{party}"


def names(statement, principal):
    """Whether a resource's statement is about a principal, be it through its account."""
    who = statement["Principal"]
    if who == "*":
        return True
    if set(who) == {"Service"}:
        return principal in listed(who["Service"])
    return any(arn in (ROOT, principal, "*") for arn in listed(who["AWS"])) and principal.startswith("arn:")


def direct(statement, principal):
    """Whether it gives the right by itself, without a policy of the principal's own."""
    who = statement["Principal"]
    if who == "*":
        return True
    return principal in listed(who.get("Service", [])) + listed(who.get("AWS", []))


def matches(statement, request, context):
    unknown = set(statement) - {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
    if unknown:
        raise SystemExit(f"policies: {unknown} of a statement is not understood")
    return (
        any(like(action.lower(), request.action.lower()) for action in listed(statement["Action"]))
        and any(resource == "*" or like(resource, request.resource) for resource in listed(statement["Resource"]))
        and all(holds(operator, pairs, context) for operator, pairs in statement.get("Condition", {}).items())
    )


def holds(operator, pairs, context):
    for key, wanted in pairs.items():
        value = context.get(key)
        wanted = listed(wanted)
        if operator == "Null":
            met = (value is None) == (wanted == ["true"])
        elif operator.endswith("IfExists") and value is None:
            met = True
        elif value is None:
            met = False
        elif operator in ("StringEquals", "Bool"):
            met = value in wanted
        elif operator in ("StringLike", "StringLikeIfExists", "ArnLike", "ArnEquals"):
            # ArnEquals takes wildcards as ArnLike does.
            met = any(like(pattern, value) for pattern in wanted)
        elif operator == "NumericLessThan":
            met = any(float(value) < float(bound) for bound in wanted)
        else:
            raise SystemExit(f"policies: condition {operator} is not understood")
        if not met:
            return False
    return True
