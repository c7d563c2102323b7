# Agents set how long a message is kept from others themselves; this is for what they don't say. They may receive a
# message more often: a run that somebody died over comes again until it counts as abandoned.
locals {
  queues = merge(
    { for name, function in local.woken : function.queue => { visibility = 6 * function.timeout_seconds, max_receives = 10 } },
    { for host in keys(var.hosts) : "host-${host}" => { visibility = 120, max_receives = 20 } },
  )
  rules = {
    ticks  = { rate = var.scheduler_rate, about = "Wakes the scheduler." }
    checks = { rate = var.reconciler_rate, about = "Wakes the reconciler." }
  }
  tls_only = {
    Sid       = "TlsOnly"
    Effect    = "Deny"
    Principal = "*"
    Action    = "sqs:*"
    Condition = { Bool = { "aws:SecureTransport" = "false" } }
  }
}

resource "aws_sqs_queue" "this" {
  for_each                   = local.queues
  name                       = "${var.name}-${each.key}"
  visibility_timeout_seconds = each.value.visibility
  message_retention_seconds  = 14 * 86400
  max_message_size           = 262144
  receive_wait_time_seconds  = 20
  sqs_managed_sse_enabled    = true
  tags                       = local.tags

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead[each.key].arn
    maxReceiveCount     = each.value.max_receives
  })

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([merge(local.tls_only, { Resource = "${local.queue_arn}-${each.key}" })], contains(keys(local.rules), each.key) ? [{
      Sid       = "Rule"
      Effect    = "Allow"
      Principal = { Service = "events.amazonaws.com" }
      Action    = "sqs:SendMessage"
      Resource  = "${local.queue_arn}-${each.key}"
      Condition = { ArnEquals = { "aws:SourceArn" = "${local.rule_arn}-${each.key}" } }
    }] : [])
  })
}

resource "aws_sqs_queue" "dead" {
  for_each                  = local.queues
  name                      = "${var.name}-${each.key}-dead"
  message_retention_seconds = 14 * 86400
  max_message_size          = 262144
  sqs_managed_sse_enabled   = true
  tags                      = local.tags

  redrive_allow_policy = jsonencode({
    redrivePermission = "byQueue"
    sourceQueueArns   = ["${local.queue_arn}-${each.key}"]
  })

  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [merge(local.tls_only, { Resource = "${local.queue_arn}-${each.key}-dead" })]
  })
}

# What EventBridge could not put into a queue.
resource "aws_sqs_queue" "undelivered" {
  name                      = "${var.name}-undelivered"
  message_retention_seconds = 14 * 86400
  sqs_managed_sse_enabled   = true
  tags                      = local.tags

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      merge(local.tls_only, { Resource = "${local.queue_arn}-undelivered" }),
      {
        Sid       = "Rules"
        Effect    = "Allow"
        Principal = { Service = "events.amazonaws.com" }
        Action    = "sqs:SendMessage"
        Resource  = "${local.queue_arn}-undelivered"
        Condition = { ArnEquals = { "aws:SourceArn" = [for rule in keys(local.rules) : "${local.rule_arn}-${rule}"] } }
      },
    ]
  })
}

# Daily retention and collection need no rule: the scheduler asks for them when their time has come.
resource "aws_cloudwatch_event_rule" "this" {
  for_each            = local.rules
  name                = "${var.name}-${each.key}"
  description         = each.value.about
  schedule_expression = each.value.rate
  tags                = local.tags
}

resource "aws_cloudwatch_event_target" "this" {
  for_each  = local.rules
  rule      = aws_cloudwatch_event_rule.this[each.key].name
  target_id = "queue"
  arn       = aws_sqs_queue.this[each.key].arn

  dead_letter_config {
    arn = aws_sqs_queue.undelivered.arn
  }

  # A tick that is late by more than this is worth nothing: the next one sees the same.
  retry_policy {
    maximum_event_age_in_seconds = 300
    maximum_retry_attempts       = 10
  }
}
