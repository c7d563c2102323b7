data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}
data "aws_region" "this" {}

locals {
  account   = data.aws_caller_identity.this.account_id
  partition = data.aws_partition.this.partition
  region    = data.aws_region.this.name
  tags      = merge({ Application = "strongroom", Deployment = var.name }, var.tags)

  # ARNs are made of names, not taken from resources: so a plan shows every policy in full before anything exists.
  bucket_arn = "arn:${local.partition}:s3:::${var.bucket_name}"
  object_arn = "${local.bucket_arn}/${var.target_prefix}"
  queue_arn  = "arn:${local.partition}:sqs:${local.region}:${local.account}:${var.name}"
  rule_arn   = "arn:${local.partition}:events:${local.region}:${local.account}:rule/${var.name}"
  root_arn   = "arn:${local.partition}:iam::${local.account}:root"

  # The queue that wakes each function, the most messages it takes at once, and the most of it that run at once. All are
  # correct at any concurrency; more committers or collectors of one target only race for its root.
  usual_woken = {
    scheduler  = { queue = "ticks", batch = 10, timeout_seconds = 60, memory_mb = 256, at_once = 2 }
    dispatcher = { queue = "requests", batch = 10, timeout_seconds = 60, memory_mb = 256, at_once = 5 }
    committer  = { queue = "commits", batch = 10, timeout_seconds = 60, memory_mb = 512, at_once = 2 }
    retention  = { queue = "retention", batch = 1, timeout_seconds = 120, memory_mb = 256, at_once = 5 }
    gc         = { queue = "gc", batch = 1, timeout_seconds = 900, memory_mb = 2048, at_once = 2 }
    reconciler = { queue = "checks", batch = 10, timeout_seconds = 60, memory_mb = 256, at_once = 2 }
  }
  # The console has no queue: its API asks it, and waits for 30 seconds.
  usual_asked = { for name, usual in { console = { timeout_seconds = 29, memory_mb = 512, at_once = 10 } } : name => usual if var.console != null }
  usual       = merge(local.usual_woken, local.usual_asked)
  functions = {
    for name, usual in local.usual : name => {
      at_once              = usual.at_once
      timeout_seconds      = coalesce(try(var.functions[name].timeout_seconds, null), usual.timeout_seconds)
      memory_mb            = coalesce(try(var.functions[name].memory_mb, null), usual.memory_mb)
      reserved_concurrency = coalesce(try(var.functions[name].reserved_concurrency, null), usual.at_once)
    }
  }
  woken           = { for name, usual in local.usual_woken : name => merge(local.functions[name], { queue = usual.queue, batch = usual.batch }) }
  restoring_hosts = [for host, settings in var.hosts : host if settings.restore]

  role_names = merge(
    { for name in keys(local.functions) : name => "${var.name}-${name}" },
    { for host in keys(var.hosts) : "host-${host}" => "${var.name}-host-${host}" },
  )
  role_arns = { for key, name in local.role_names : key => "arn:${local.partition}:iam::${local.account}:role/${name}" }

  # Policies of bucket and keys are bounded in size, the number of hosts is not: there, hosts are named by how their roles are
  # called.
  function_role_arns = [for name in keys(local.functions) : local.role_arns[name]]
  any_host_role_arn  = "arn:${local.partition}:iam::${local.account}:role/${var.name}-host-*"
}
