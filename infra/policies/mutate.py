"""Policies with one statement widened, narrowed or dropped: what a review could overlook."""

from decide import listed


def mutations(world):
    """Yields what was done, the party that it was done to (None for a policy of a resource), and the world after it."""
    for party, statements in world.identity.items():
        for at, statement in enumerate(statements):
            for what, changed in of_statement(statement):
                mutated = world.mutated()
                mutated.identity[party][at : at + 1] = changed
                yield f"{party}, {statement['Sid']}: {what}", party, mutated
    for party in world.trust:
        mutated = world.mutated()
        mutated.trust[party][0]["Principal"] = {"AWS": "*"}
        yield f"{party}: anybody takes its role on", party, mutated
    resources = [("the bucket", lambda world: world.bucket)]
    resources += [(f"key {arn}", lambda world, arn=arn: world.keys[arn]) for arn in world.keys]
    # One queue of each kind: their policies are made alike.
    resources += [(f"queue {name}", lambda world, name=name: world.queues[name]) for name in ("strongroom-ticks", "strongroom-commits", "strongroom-undelivered")]
    resources += [(f"function {name}", lambda world, name=name: world.functions[name]) for name in world.functions]
    for name, statements_of in resources:
        for at, statement in enumerate(statements_of(world)):
            changes = [("it is gone", [])]
            for operator, pairs in statement.get("Condition", {}).items():
                changes.append((f"no condition {operator}", [without(statement, operator)]))
            if statement["Effect"] == "Allow":
                changes.append(("anybody", [{**statement, "Principal": {"AWS": "*"}}]))
            for what, changed in changes:
                mutated = world.mutated()
                statements_of(mutated)[at : at + 1] = changed
                yield f"{name}, {statement['Sid']}: {what}", None, mutated


def of_statement(statement):
    yield "it is gone", []
    if statement["Effect"] == "Deny":
        return
    actions, resources = listed(statement["Action"]), listed(statement["Resource"])
    service = actions[0].split(":")[0]
    yield f"{service}:*", [{**statement, "Action": f"{service}:*"}]
    for more in {"s3": ["s3:DeleteObject", "s3:PutObject", "s3:GetObjectVersion"], "sqs": ["sqs:PurgeQueue", "sqs:ReceiveMessage"], "kms": ["kms:Encrypt"], "logs": ["logs:DeleteLogGroup"]}.get(service, []):
        if more not in actions:
            # A pack can be deleted, a bucket can't: only what fits the resource changes anything.
            if statement["Sid"] == "List":
                resources_then = [*resources, *(f"{resource}/*" for resource in resources)]
            else:
                resources_then = resources
            added = {**statement, "Action": [more], "Resource": resources_then}
            if more not in ("s3:PutObject",):
                added.pop("Condition", None)
            if not (more == "s3:DeleteObject" and statement["Sid"] == "Delete"):
                yield f"and {more}", [statement, added]
    if resources != ["*"]:
        yield "for every resource", [{**statement, "Resource": "*"}]
        for resource in resources:
            parent = resource.rsplit("/", 2)[0] if resource.endswith("/*") else resource.rsplit("/", 1)[0]
            if "/" in resource and service == "s3":
                yield f"{resource} becomes {parent}/*", [{**statement, "Resource": [*resources, f"{parent}/*"]}]
            if service == "sqs":
                yield "and to all queues", [{**statement, "Resource": [*resources, f"{resource.rsplit(':', 1)[0]}:strongroom-*"]}]
            if len(resources) > 1:
                yield f"without {resource}", [{**statement, "Resource": [other for other in resources if other != resource]}]
    for action in actions:
        if len(actions) > 1:
            yield f"without {action}", [{**statement, "Action": [other for other in actions if other != action]}]
    for operator, pairs in statement.get("Condition", {}).items():
        yield f"no condition {operator}", [without(statement, operator)]
        for key, value in pairs.items():
            if operator != "Null":
                wider = {operator: {**pairs, key: "*" if "Like" in operator else ["catalog", "ingest", "restore"]}}
                if wider[operator][key] != value:
                    yield f"{key} may be anything", [{**statement, "Condition": {**statement["Condition"], **wider}}]


def without(statement, operator):
    conditions = {name: pairs for name, pairs in statement["Condition"].items() if name != operator}
    return {**{name: value for name, value in statement.items() if name != "Condition"}, **({"Condition": conditions} if conditions else {})}
