resource "aws_cloudwatch_log_group" "this" {
  for_each          = local.functions
  name              = "/aws/lambda/${var.name}-${each.key}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.logs_kms_key_arn
  tags              = local.tags
}

resource "aws_lambda_function" "this" {
  # checkov:skip=CKV_AWS_116: functions are woken by queues, which have dead letters, or asked by an API, which gets the error; their own would be for invocations that nobody waits for
  # checkov:skip=CKV_AWS_117: they speak to S3, SQS and KMS only, all by signed requests; a VPC would add endpoints to pay for, and nothing to reach
  # checkov:skip=CKV_AWS_272: packages are pinned by their hash in the state; signing is for accounts that have a signing profile, which this module can't make up
  # checkov:skip=CKV_AWS_173: the variables are addresses and a log level; what is secret is in the keyring, under KMS
  for_each                       = local.functions
  function_name                  = "${var.name}-${each.key}"
  description                    = "Strongroom: ${each.key}"
  role                           = aws_iam_role.function[each.key].arn
  filename                       = "${var.packages_dir}/strongroom-${each.key}.zip"
  source_code_hash               = filebase64sha256("${var.packages_dir}/strongroom-${each.key}.zip")
  runtime                        = "provided.al2023"
  handler                        = "bootstrap"
  architectures                  = [var.architecture]
  timeout                        = each.value.timeout_seconds
  memory_size                    = each.value.memory_mb
  reserved_concurrent_executions = each.value.reserved_concurrency
  tags                           = local.tags

  environment {
    variables = merge({
      STRONGROOM_TARGET  = "s3://${var.bucket_name}/${var.target_prefix}"
      STRONGROOM_KMS_KEY = aws_kms_key.catalog.arn
      STRONGROOM_QUEUES  = "sqs://${var.name}"
      STRONGROOM_LOG     = var.log_level
    }, lookup(local.more_variables, each.key, {}))
  }

  tracing_config {
    mode = var.tracing ? "Active" : "PassThrough"
  }

  # Without its policy a function fails, and without its log group it makes one that is kept for ever.
  depends_on = [aws_iam_role_policy.function, aws_cloudwatch_log_group.this]
}

resource "aws_lambda_event_source_mapping" "this" {
  for_each                = local.woken
  function_name           = aws_lambda_function.this[each.key].arn
  event_source_arn        = aws_sqs_queue.this[each.value.queue].arn
  batch_size              = each.value.batch
  function_response_types = ["ReportBatchItemFailures"]
  tags                    = local.tags

  # Never more than is reserved: what is throttled counts as received, and ends among the dead letters unread.
  scaling_config {
    maximum_concurrency = each.value.reserved_concurrency == -1 ? each.value.at_once : min(each.value.at_once, each.value.reserved_concurrency)
  }
}
