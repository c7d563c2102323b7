locals {
  widgets = concat([
    { title = "Backups", stat = "Sum", metrics = [for metric in ["BackupsStarted", "BackupsSucceeded", "BackupsFailed", "BackupsLate"] : ["Strongroom", metric]] },
    { title = "Bytes read and stored", stat = "Sum", metrics = [for metric in ["BytesRead", "BytesStored"] : ["Strongroom", metric]] },
    { title = "Deduplication: read to stored", stat = "Average", metrics = [["Strongroom", "DedupRatio"]] },
    { title = "Garbage collection", stat = "Sum", metrics = [for metric in ["GcFreedBytes", "GcUnfinished"] : ["Strongroom", metric]] },
    { title = "Damage: missing packs, root rollbacks", stat = "Maximum", metrics = [for metric in ["MissingPacks", "RootRollbacks"] : ["Strongroom", metric]] },
    { title = "Age of the newest backup, by volume", stat = "Maximum", metrics = [[{ expression = "SEARCH('{Strongroom,Volume} MetricName=\"NewestBackupAgeSeconds\"', 'Maximum', 300)", id = "age" }]] },
    { title = "Messages waiting", stat = "Maximum", metrics = [for queue in values(aws_sqs_queue.this) : ["AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", queue.name]] },
    { title = "Dead letters", stat = "Maximum", metrics = [for queue in values(local.dead_queues) : ["AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", queue]] },
    { title = "Functions: errors", stat = "Sum", metrics = [for function in values(aws_lambda_function.this) : ["AWS/Lambda", "Errors", "FunctionName", function.function_name]] },
    { title = "Functions: duration, longest", stat = "Maximum", metrics = [for function in values(aws_lambda_function.this) : ["AWS/Lambda", "Duration", "FunctionName", function.function_name]] },
    ], [
    for api in values(aws_apigatewayv2_api.console) :
    { title = "Console: requests, refused and failed", stat = "Sum", metrics = [for metric in ["Count", "4xx", "5xx"] : ["AWS/ApiGateway", metric, "ApiId", api.id]] }
  ])
}

resource "aws_cloudwatch_dashboard" "this" {
  count          = var.dashboard ? 1 : 0
  dashboard_name = var.name
  dashboard_body = jsonencode({
    widgets = [for number, widget in local.widgets : {
      type       = "metric"
      x          = 12 * (number % 2)
      y          = 6 * floor(number / 2)
      width      = 12
      height     = 6
      properties = { title = widget.title, region = local.region, stat = widget.stat, period = 300, view = "timeSeries", metrics = widget.metrics }
    }]
  })
}
