# Who may do what, below the target's prefix and to the queues: as one table, from which every policy is made. What the code
# really asks for is recorded by tests/tests/access.rs in infra/policies/calls.txt; infra/policies/check.py compares.
#
# read: s3:GetObject. create: s3:PutObject with If-None-Match, which never overwrites. replace: s3:PutObject with If-Match,
# which overwrites only what was read. list: s3:ListBucket. delete: s3:DeleteObject. send: sqs:SendMessage.

locals {
  functions_access = merge({ for name, access in { console = local.console_access } : name => access if var.console != null }, {
    scheduler = {
      read    = ["keyring", "fleet", "runs"]
      create  = ["fleet", "runs"]
      replace = ["fleet"]
      list    = []
      delete  = []
      send    = ["host-*", "retention", "gc"]
    }
    dispatcher = {
      read    = ["keyring", "fleet", "runs", "root", "roots"]
      create  = ["fleet", "runs", "roots"]
      replace = ["fleet", "runs", "root"]
      list    = []
      delete  = []
      send    = ["host-*", "retention", "gc"]
    }
    committer = {
      read    = ["keyring", "fleet", "runs", "root", "roots", "nodes", "manifests", "outcomes"]
      create  = ["runs", "roots", "outcomes"]
      replace = ["root"]
      list    = []
      delete  = []
      send    = ["retention"]
    }
    retention = {
      read    = ["keyring", "fleet", "runs", "root", "roots"]
      create  = ["roots"]
      replace = ["runs", "root"]
      list    = []
      delete  = []
      send    = ["retention"]
    }
    # What no backup needs any more are not packs and index objects alone: manifests and segments of removed backups, catalog
    # nodes that were replaced, sessions that nobody took up. Each name was doomed by a root, or can't be referenced any more.
    gc = {
      read    = ["keyring", "fleet", "runs", "root", "roots", "nodes", "manifests", "segments", "index", "packs", "inbox"]
      create  = ["roots", "nodes", "index", "packs"]
      replace = ["runs", "root"]
      list    = ["nodes", "manifests", "segments", "index", "packs", "inbox"]
      delete  = ["nodes", "manifests", "segments", "index", "packs", "inbox"]
      send    = ["gc"]
    }
    reconciler = {
      read    = ["keyring", "fleet", "runs", "root"]
      create  = ["fleet"]
      replace = ["fleet", "runs"]
      list    = ["roots"]
      delete  = []
      send    = []
    }
  })

  # It shows what there is, and what upkeep would do now, for which that counts and lists as the collector does. What it is asked
  # to change it asks of the dispatcher.
  console_access = {
    read    = ["keyring", "fleet", "runs", "root", "roots", "nodes", "manifests", "segments", "index", "inbox"]
    create  = []
    replace = []
    list    = ["runs", "roots", "manifests", "segments", "index", "packs", "inbox"]
    delete  = []
    send    = ["requests"]
  }

  # A host would clear away its own session's inbox, and takes no for an answer. It replaces runs, to say how far it is: they
  # are no part of the catalog.
  host_access = {
    read    = ["keyring", "fleet", "runs", "root", "roots", "nodes", "manifests", "segments", "index", "packs", "inbox", "outcomes"]
    create  = ["packs", "segments", "index", "manifests", "inbox"]
    replace = ["runs"]
    list    = ["packs", "inbox", "roots"]
    delete  = []
  }

  # The two objects that are no folders.
  single = { keyring = "keyring", root = "root" }

  object_access = merge(local.functions_access, { for host in keys(var.hosts) : "host-${host}" => local.host_access })
  object_statements = {
    for party, access in local.object_access : party => concat(
      [{
        Sid      = "Read"
        Effect   = "Allow"
        Action   = "s3:GetObject"
        Resource = [for kind in access.read : "${local.object_arn}/${lookup(local.single, kind, "${kind}/*")}"]
      }],
      length(access.create) == 0 ? [] : [{
        Sid       = "Create"
        Effect    = "Allow"
        Action    = "s3:PutObject"
        Resource  = [for kind in access.create : "${local.object_arn}/${lookup(local.single, kind, "${kind}/*")}"]
        Condition = { Null = { "s3:if-none-match" = "false" } }
      }],
      length(access.replace) == 0 ? [] : [{
        Sid       = "Replace"
        Effect    = "Allow"
        Action    = "s3:PutObject"
        Resource  = [for kind in access.replace : "${local.object_arn}/${lookup(local.single, kind, "${kind}/*")}"]
        Condition = { Null = { "s3:if-match" = "false" } }
      }],
      # S3 tells that an object is missing, which everything here rests on, only to who may list; and it asks for that right
      # without a prefix. So the condition must let requests pass that name none: names are random, and the bucket holds
      # nothing else.
      [{
        Sid       = "List"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = local.bucket_arn
        Condition = { StringLikeIfExists = { "s3:prefix" = length(access.list) == 0 ? ["${var.target_prefix}/nothing"] : [for kind in access.list : "${var.target_prefix}/${kind}/*"] } }
      }],
      length(access.delete) == 0 ? [] : [{
        Sid      = "Delete"
        Effect   = "Allow"
        Action   = "s3:DeleteObject"
        Resource = [for kind in access.delete : "${local.object_arn}/${kind}/*"]
      }],
      [{
        Sid       = "CatalogKey"
        Effect    = "Allow"
        Action    = "kms:Decrypt"
        Resource  = aws_kms_key.catalog.arn
        Condition = { StringEquals = { "kms:EncryptionContext:strongroom-purpose" = startswith(party, "host-") ? ["catalog", "ingest"] : ["catalog"] } }
      }],
    )
  }
}

resource "aws_iam_role" "function" {
  for_each             = local.functions
  name                 = local.role_names[each.key]
  description          = "Strongroom: the function ${each.key}"
  permissions_boundary = var.permissions_boundary_arn
  tags                 = local.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "lambda.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy" "function" {
  for_each = local.functions
  name     = "strongroom"
  role     = aws_iam_role.function[each.key].name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      local.object_statements[each.key],
      [for function in [for name, function in local.woken : function if name == each.key] : {
        Sid      = "Wake"
        Effect   = "Allow"
        Action   = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"]
        Resource = "${local.queue_arn}-${function.queue}"
      }],
      [
        {
          Sid    = "Send"
          Effect = "Allow"
          Action = ["sqs:SendMessage", "sqs:GetQueueUrl"]
          Resource = [
            for queue in concat(local.functions_access[each.key].send, [for name, function in local.woken : "${function.queue}-dead" if name == each.key]) :
            "${local.queue_arn}-${queue}"
          ]
        },
        {
          Sid      = "Log"
          Effect   = "Allow"
          Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
          Resource = "arn:${local.partition}:logs:${local.region}:${local.account}:log-group:/aws/lambda/${var.name}-${each.key}:*"
        },
      ],
      each.key != "console" ? [] : [{
        Sid      = "Sessions"
        Effect   = "Allow"
        Action   = "kms:GenerateMac"
        Resource = aws_kms_key.sessions[each.key].arn
      }],
      # host-* takes them in; they are for their hosts to fill.
      contains(local.functions_access[each.key].send, "host-*") ? [{
        Sid      = "NoDeadLettersOfHosts"
        Effect   = "Deny"
        Action   = ["sqs:SendMessage", "sqs:GetQueueUrl"]
        Resource = "${local.queue_arn}-host-*-dead"
      }] : [],
      # X-Ray knows no resources.
      var.tracing ? [{
        Sid      = "Trace"
        Effect   = "Allow"
        Action   = ["xray:PutTraceSegments", "xray:PutTelemetryRecords"]
        Resource = "*"
      }] : [],
    )
  })
}
