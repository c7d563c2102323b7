resource "aws_sns_topic" "alarms" {
  name              = "${var.name}-alarms"
  kms_master_key_id = var.logs_kms_key_arn
  tags              = local.tags
}

resource "aws_sns_topic_policy" "alarms" {
  arn = aws_sns_topic.alarms.arn
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([{
      Sid       = "Alarms"
      Effect    = "Allow"
      Principal = { Service = "cloudwatch.amazonaws.com" }
      Action    = "sns:Publish"
      Resource  = aws_sns_topic.alarms.arn
      Condition = {
        ArnLike      = { "aws:SourceArn" = "arn:${local.partition}:cloudwatch:${local.region}:${local.account}:alarm:${var.name}-*" }
        StringEquals = { "aws:SourceAccount" = local.account }
      }
    }])
  })
}

resource "aws_sns_topic_subscription" "email" {
  for_each  = toset(var.alarm_emails)
  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = each.value
}

locals {
  dead_queues = merge(
    { for name, queue in aws_sqs_queue.dead : name => queue.name },
    { undelivered = aws_sqs_queue.undelivered.name },
  )

  # From the functions' own metrics (namespace Strongroom). A day of 15-minute invocations of a collection that does not come
  # to its end are 96.
  fleet_alarms = {
    backups-failed = { metric = "BackupsFailed", statistic = "Sum", period = 300, threshold = 1, about = "A backup failed. `strongroom runs` says which and why." }
    backups-late   = { metric = "BackupsLate", statistic = "Maximum", period = 600, threshold = 1, about = "A volume has no backup as new as its recovery point objective asks for." }
    gc-unfinished  = { metric = "GcUnfinished", statistic = "Sum", period = 86400, threshold = 90, about = "Garbage collection has not come to its end for a day." }
    missing-packs  = { metric = "MissingPacks", statistic = "Maximum", period = 300, threshold = 1, about = "Backups need objects that the bucket does not have. Run `strongroom verify`, then `strongroom index rebuild`." }
    root-rollback  = { metric = "RootRollbacks", statistic = "Sum", period = 300, threshold = 1, about = "The catalog was put back to an earlier state. See operations: when the catalog was put back." }
  }
}

resource "aws_cloudwatch_metric_alarm" "dead_letters" {
  for_each            = local.dead_queues
  alarm_name          = "${var.name}-dead-letters-${each.key}"
  alarm_description   = "Messages that nobody could deal with lie in ${each.value}, with the reason as their attribute."
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateNumberOfMessagesVisible"
  dimensions          = { QueueName = each.value }
  statistic           = "Maximum"
  period              = 300
  evaluation_periods  = 1
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
  tags                = var.tag_alarms ? local.tags : {}
}

resource "aws_cloudwatch_metric_alarm" "fleet" {
  for_each            = local.fleet_alarms
  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.about
  namespace           = "Strongroom"
  metric_name         = each.value.metric
  statistic           = each.value.statistic
  period              = each.value.period
  evaluation_periods  = 1
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = each.value.threshold
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
  tags                = var.tag_alarms ? local.tags : {}
}

# Without the two that the clock wakes nothing happens, and nobody would be told.
resource "aws_cloudwatch_metric_alarm" "silent" {
  for_each            = { scheduler = 900, reconciler = 3600 }
  alarm_name          = "${var.name}-silent-${each.key}"
  alarm_description   = "The ${each.key} has not run for ${each.value / 60} minutes: is its rule enabled, its queue mapped, the account's concurrency used up?"
  namespace           = "AWS/Lambda"
  metric_name         = "Invocations"
  dimensions          = { FunctionName = aws_lambda_function.this[each.key].function_name }
  statistic           = "Sum"
  period              = each.value
  evaluation_periods  = 1
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  treat_missing_data  = "breaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
  tags                = var.tag_alarms ? local.tags : {}
}

# What its function does not answer in time, or is too busy for, is none of that function's errors.
resource "aws_cloudwatch_metric_alarm" "console" {
  for_each            = local.consoles
  alarm_name          = "${var.name}-console-unanswered"
  alarm_description   = "The console answers with errors of its own (5xx): see the log of its API, and its function's."
  namespace           = "AWS/ApiGateway"
  metric_name         = "5xx"
  dimensions          = { ApiId = aws_apigatewayv2_api.console[each.key].id }
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 3
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
  tags                = var.tag_alarms ? local.tags : {}
}

resource "aws_cloudwatch_metric_alarm" "errors" {
  for_each            = local.functions
  alarm_name          = "${var.name}-errors-${each.key}"
  alarm_description   = "The function ${each.key} fails again and again: it can't begin, is out of memory or of time. See its log."
  namespace           = "AWS/Lambda"
  metric_name         = "Errors"
  dimensions          = { FunctionName = aws_lambda_function.this[each.key].function_name }
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 3
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
  tags                = var.tag_alarms ? local.tags : {}
}
