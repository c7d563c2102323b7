# What a security team would look for, on the whole module with a mocked provider: nothing is asked of AWS.

mock_provider "aws" {
  mock_data "aws_caller_identity" { defaults = { account_id = "123456789012" } }
  mock_data "aws_partition" { defaults = { partition = "aws" } }
  mock_data "aws_region" { defaults = { name = "eu-central-1" } }
  mock_resource "aws_sqs_queue" { defaults = { arn = "arn:aws:sqs:eu-central-1:123456789012:mocked" } }
  mock_resource "aws_iam_role" { defaults = { arn = "arn:aws:iam::123456789012:role/mocked" } }
  mock_resource "aws_lambda_function" { defaults = { arn = "arn:aws:lambda:eu-central-1:123456789012:function:mocked" } }
  mock_resource "aws_cloudwatch_log_group" { defaults = { arn = "arn:aws:logs:eu-central-1:123456789012:log-group:mocked" } }
  mock_resource "aws_apigatewayv2_api" {
    defaults = {
      api_endpoint  = "https://mocked.execute-api.eu-central-1.amazonaws.com"
      execution_arn = "arn:aws:execute-api:eu-central-1:123456789012:mocked"
    }
  }
  mock_resource "aws_sns_topic" { defaults = { arn = "arn:aws:sns:eu-central-1:123456789012:mocked" } }

  override_resource {
    target = aws_kms_key.catalog
    values = { arn = "arn:aws:kms:eu-central-1:123456789012:key/catalog", key_id = "catalog" }
  }
  override_resource {
    target = aws_kms_key.restore
    values = { arn = "arn:aws:kms:eu-central-1:123456789012:key/restore", key_id = "restore" }
  }
  override_resource {
    target = aws_kms_key.sessions
    values = { arn = "arn:aws:kms:eu-central-1:123456789012:key/sessions", key_id = "sessions" }
  }
}

variables {
  bucket_name = "backups"
  operators   = ["arn:aws:iam::123456789012:role/backup-operators"]
  hosts = {
    hv-01 = { principals = ["arn:aws:iam::123456789012:user/hv-01"] }
    hv-02 = { ec2 = true, restore = true }
  }
}

run "bucket" {
  command = apply

  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Enabled"
    error_message = "the bucket keeps no versions"
  }
  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.this.rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    error_message = "the bucket does not encrypt by default"
  }
  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.this.block_public_acls, aws_s3_bucket_public_access_block.this.block_public_policy,
      aws_s3_bucket_public_access_block.this.ignore_public_acls, aws_s3_bucket_public_access_block.this.restrict_public_buckets,
    ])
    error_message = "the bucket can be made public"
  }
  assert {
    condition = anytrue([
      for statement in jsondecode(aws_s3_bucket_policy.this.policy).Statement :
      statement.Effect == "Deny" && statement.Principal == "*" && try(statement.Condition.Bool["aws:SecureTransport"], "") == "false" && length(statement.Resource) == 2
    ])
    error_message = "the bucket can be spoken to without TLS"
  }
  assert {
    condition = (
      anytrue([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : length(rule.noncurrent_version_expiration) == 1 && rule.status == "Enabled"]) &&
      anytrue([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : length(rule.abort_incomplete_multipart_upload) == 1 && rule.status == "Enabled"])
    )
    error_message = "old versions or aborted uploads stay for ever"
  }
  assert {
    condition = alltrue([
      for rule in aws_s3_bucket_lifecycle_configuration.this.rule :
      contains(["home/runs/", "home/outcomes/"], try(rule.filter[0].prefix, "")) || alltrue([for expiration in rule.expiration : expiration.days == null || expiration.days == 0])
    ])
    error_message = "a lifecycle rule removes current objects that are no history: that would be backups"
  }
  assert {
    condition     = toset([for rule in aws_s3_bucket_lifecycle_configuration.this.rule : rule.filter[0].prefix if try(rule.expiration[0].days, 0) == 90 && rule.status == "Enabled"]) == toset(["home/outcomes/", "home/runs/"])
    error_message = "runs or committers' answers stay for ever"
  }
  assert {
    condition     = !aws_s3_bucket.this.force_destroy && length(aws_s3_bucket_object_lock_configuration.this) == 0
    error_message = "by default, a bucket with backups can't be destroyed, and has no lock"
  }
}

run "object_lock" {
  command = apply

  variables {
    object_lock = { mode = "COMPLIANCE", days = 14 }
  }

  assert {
    condition     = aws_s3_bucket.this.object_lock_enabled && one(one(aws_s3_bucket_object_lock_configuration.this[0].rule).default_retention).days == 14
    error_message = "Object Lock was asked for"
  }
}

run "keys" {
  command = apply

  assert {
    condition     = aws_kms_key.catalog.enable_key_rotation && aws_kms_key.restore.enable_key_rotation
    error_message = "a key is not rotated"
  }
  assert {
    condition     = alltrue([for function in values(aws_lambda_function.this) : function.environment[0].variables.STRONGROOM_KMS_KEY == aws_kms_key.catalog.arn])
    error_message = "a function was given another key than the catalog's"
  }
}

run "queues" {
  command = apply

  assert {
    condition     = toset(keys(aws_sqs_queue.this)) == toset(["ticks", "requests", "commits", "retention", "gc", "checks", "host-hv-01", "host-hv-02"])
    error_message = "the queues that the code names, and one for each host"
  }
  assert {
    condition     = alltrue([for name, queue in aws_sqs_queue.this : queue.name == "strongroom-${name}" && aws_sqs_queue.dead[name].name == "strongroom-${name}-dead"])
    error_message = "queues are called otherwise than the code looks for them"
  }
  assert {
    condition     = alltrue([for queue in values(aws_sqs_queue.this) : jsondecode(queue.redrive_policy).maxReceiveCount >= 5])
    error_message = "a queue without dead letters, or one that gives up at once"
  }
  assert {
    condition     = alltrue([for queue in concat(values(aws_sqs_queue.this), values(aws_sqs_queue.dead), [aws_sqs_queue.undelivered]) : queue.sqs_managed_sse_enabled])
    error_message = "a queue is not encrypted"
  }
  assert {
    condition = alltrue([
      for queue in concat(values(aws_sqs_queue.this), values(aws_sqs_queue.dead), [aws_sqs_queue.undelivered]) :
      anytrue([for statement in jsondecode(queue.policy).Statement : statement.Effect == "Deny" && try(statement.Condition.Bool["aws:SecureTransport"], "") == "false"])
    ])
    error_message = "a queue can be spoken to without TLS"
  }
  assert {
    condition     = alltrue([for name, woken in local.woken : aws_sqs_queue.this[woken.queue].visibility_timeout_seconds >= 6 * aws_lambda_function.this[name].timeout])
    error_message = "a message comes again while its function may still be at work on it"
  }
  assert {
    condition     = alltrue([for target in values(aws_cloudwatch_event_target.this) : length(target.dead_letter_config) == 1]) && toset(keys(aws_cloudwatch_event_rule.this)) == toset(["ticks", "checks"])
    error_message = "a rule without dead letters"
  }
}

run "functions" {
  command = apply

  assert {
    condition     = length(aws_lambda_function.this) == 6 && alltrue([for function in values(aws_lambda_function.this) : function.runtime == "provided.al2023" && function.tracing_config[0].mode == "Active" && function.reserved_concurrent_executions >= 2])
    error_message = "six functions without the console, traced, with a concurrency of their own"
  }
  assert {
    condition     = alltrue([for mapping in values(aws_lambda_event_source_mapping.this) : contains(mapping.function_response_types, "ReportBatchItemFailures") && mapping.scaling_config[0].maximum_concurrency >= 2])
    error_message = "a mapping without partial batch responses or bound"
  }
  assert {
    condition     = alltrue([for name, mapping in aws_lambda_event_source_mapping.this : mapping.scaling_config[0].maximum_concurrency <= aws_lambda_function.this[name].reserved_concurrent_executions])
    error_message = "a mapping asks for more than the function may run at once"
  }
  assert {
    condition     = alltrue([for name, group in aws_cloudwatch_log_group.this : group.retention_in_days == 365 && group.name == "/aws/lambda/${aws_lambda_function.this[name].function_name}"])
    error_message = "a log that is kept for ever"
  }
  assert {
    condition     = length(aws_apigatewayv2_api.console) == 0 && length(aws_lambda_permission.console) == 0 && length(aws_kms_key.sessions) == 0 && output.console_url == null && output.console_redirect_url == null && output.console_dns == null
    error_message = "something is open to the internet, which nobody asked for"
  }
}

run "console" {
  command = apply

  variables {
    console = {
      issuer        = "https://login.example.com/tenant"
      client_id     = "strongroom"
      audiences     = ["api://strongroom"]
      authorize_url = "https://login.example.com/tenant/authorize"
      token_url     = "https://login.example.com/tenant/token"
      viewers       = ["staff"]
      operators     = ["backup-operators"]
    }
  }

  assert {
    condition     = length(aws_lambda_function.this) == 7 && aws_lambda_function.this["console"].timeout == 29 && aws_lambda_function.this["console"].memory_size == 512
    error_message = "a seventh function, which answers while its API waits"
  }
  assert {
    condition     = length(aws_lambda_event_source_mapping.this) == 6 && length(aws_sqs_queue.this) == 8
    error_message = "the console is asked by its API, not woken by a queue"
  }
  assert {
    condition = jsondecode(aws_lambda_function.this["console"].environment[0].variables.STRONGROOM_CONSOLE) == {
      session_key = "arn:aws:kms:eu-central-1:123456789012:key/sessions"
      claim       = "groups"
      viewers     = ["staff"]
      operators   = ["backup-operators"]
      sign_in = {
        client_id     = "strongroom"
        authorize_url = "https://login.example.com/tenant/authorize"
        token_url     = "https://login.example.com/tenant/token"
        scope         = "openid"
      }
    }
    error_message = "the console was told something else than was asked for"
  }
  assert {
    condition     = alltrue([for name, function in aws_lambda_function.this : contains(keys(function.environment[0].variables), "STRONGROOM_CONSOLE") == (name == "console")])
    error_message = "who signs in is for the console alone"
  }
  assert {
    condition     = { for key, route in aws_apigatewayv2_route.console : key => route.authorization_type } == { "ANY /v1/{proxy+}" = "JWT", "POST /sign-in" = "JWT", "$default" = "NONE" }
    error_message = "only pages are asked for without a token of the identity provider"
  }
  assert {
    condition     = alltrue([for route in values(aws_apigatewayv2_route.console) : route.authorization_type == "NONE" || route.authorizer_id == aws_apigatewayv2_authorizer.console["console"].id])
    error_message = "a route with another authorizer, or none"
  }
  assert {
    condition = (
      aws_apigatewayv2_authorizer.console["console"].jwt_configuration[0].issuer == "https://login.example.com/tenant" &&
      toset(aws_apigatewayv2_authorizer.console["console"].jwt_configuration[0].audience) == toset(["strongroom", "api://strongroom"]) &&
      one(aws_apigatewayv2_authorizer.console["console"].identity_sources) == "$request.header.Authorization"
    )
    error_message = "tokens of others are taken"
  }
  assert {
    condition = (
      aws_kms_key.sessions["console"].key_usage == "GENERATE_VERIFY_MAC" && aws_kms_key.sessions["console"].customer_master_key_spec == "HMAC_256" &&
      alltrue([for statement in jsondecode(aws_kms_key.sessions["console"].policy).Statement : statement.Sid == "Administration" || statement.Action == "kms:GenerateMac"])
    )
    error_message = "sessions are sealed under a key that is good for something else"
  }
  assert {
    condition     = aws_lambda_permission.console["console"].source_arn == "arn:aws:execute-api:eu-central-1:123456789012:mocked/*" && aws_lambda_permission.console["console"].principal == "apigateway.amazonaws.com"
    error_message = "somebody else than its API may ask the console, which believes what that says"
  }
  assert {
    condition     = aws_apigatewayv2_stage.console["console"].default_route_settings[0].throttling_rate_limit > 0 && aws_apigatewayv2_stage.console["console"].default_route_settings[0].throttling_burst_limit > 0
    error_message = "anybody may ask as often as they like"
  }
  assert {
    condition = (
      aws_cloudwatch_log_group.console_access["console"].retention_in_days == 365 &&
      !anytrue([for secret in ["query", "header", "Authorization", "cookie"] : strcontains(lower(aws_apigatewayv2_stage.console["console"].access_log_settings[0].format), lower(secret))])
    )
    error_message = "an access log that is kept for ever, or holds what lets somebody in"
  }
  assert {
    condition     = !aws_apigatewayv2_api.console["console"].disable_execute_api_endpoint && length(aws_apigatewayv2_domain_name.console) == 0
    error_message = "without a name of its own it has that of its API"
  }
  assert {
    condition     = output.console_url == "https://mocked.execute-api.eu-central-1.amazonaws.com" && output.console_redirect_url == "https://mocked.execute-api.eu-central-1.amazonaws.com/sign-in"
    error_message = "where the console is, and what is registered at the provider"
  }
  assert {
    condition     = contains(aws_cloudwatch_metric_alarm.console["console"].alarm_actions, aws_sns_topic.alarms.arn) && contains(keys(aws_cloudwatch_metric_alarm.errors), "console") && length(jsondecode(aws_cloudwatch_dashboard.this[0].dashboard_body).widgets) == 11
    error_message = "a console that fails, and nobody is told"
  }
}

run "console_domain" {
  command = apply

  variables {
    console = {
      issuer          = "https://login.example.com"
      client_id       = "strongroom"
      authorize_url   = "https://login.example.com/authorize"
      token_url       = "https://login.example.com/token"
      claim           = "cognito:groups"
      viewers         = ["staff"]
      domain_name     = "backups.example.com"
      certificate_arn = "arn:aws:acm:eu-central-1:123456789012:certificate/1"
    }
    functions = { console = { memory_mb = 1024, reserved_concurrency = -1 } }
  }

  assert {
    condition     = aws_apigatewayv2_api.console["console"].disable_execute_api_endpoint && aws_apigatewayv2_domain_name.console["console"].domain_name_configuration[0].security_policy == "TLS_1_2"
    error_message = "a console with a name of its own answers to that alone, and with a recent TLS"
  }
  assert {
    condition     = output.console_url == "https://backups.example.com" && output.console_redirect_url == "https://backups.example.com/sign-in" && aws_apigatewayv2_api_mapping.console["console"].domain_name == aws_apigatewayv2_domain_name.console["console"].id
    error_message = "its name leads elsewhere"
  }
  assert {
    condition     = aws_lambda_function.this["console"].memory_size == 1024 && aws_lambda_function.this["console"].reserved_concurrent_executions == -1
    error_message = "sizes of the console"
  }
}

run "alarms" {
  command = apply

  assert {
    condition     = toset(keys(aws_cloudwatch_metric_alarm.dead_letters)) == toset(concat(keys(aws_sqs_queue.dead), ["undelivered"]))
    error_message = "dead letters that nobody is told of"
  }
  assert {
    condition     = toset([for alarm in values(aws_cloudwatch_metric_alarm.fleet) : alarm.metric_name]) == toset(["BackupsFailed", "BackupsLate", "GcUnfinished", "MissingPacks", "RootRollbacks"])
    error_message = "an alarm is missing"
  }
  assert {
    condition = alltrue([
      for alarm in concat(values(aws_cloudwatch_metric_alarm.dead_letters), values(aws_cloudwatch_metric_alarm.fleet), values(aws_cloudwatch_metric_alarm.silent), values(aws_cloudwatch_metric_alarm.errors)) :
      contains(alarm.alarm_actions, aws_sns_topic.alarms.arn)
    ])
    error_message = "an alarm that tells nobody"
  }
  assert {
    condition     = length(aws_budgets_budget.this) == 0 && length(jsondecode(aws_cloudwatch_dashboard.this[0].dashboard_body).widgets) == 10
    error_message = "a dashboard, and no budget unless asked for"
  }
}

run "options" {
  command = apply

  variables {
    alarm_emails       = ["ops@example.com"]
    monthly_budget_usd = 100
    dashboard          = false
    tracing            = false
    functions          = { gc = { memory_mb = 4096, reserved_concurrency = -1 } }
  }

  assert {
    condition     = length(aws_budgets_budget.this) == 1 && length(aws_cloudwatch_dashboard.this) == 0 && length(aws_sns_topic_subscription.email) == 1
    error_message = "the options were not followed"
  }
  assert {
    condition     = aws_lambda_function.this["gc"].memory_size == 4096 && aws_lambda_function.this["gc"].timeout == 900 && aws_lambda_event_source_mapping.this["gc"].scaling_config[0].maximum_concurrency == 2
    error_message = "sizes of one function"
  }
  assert {
    condition     = !strcontains(aws_iam_role_policy.function["gc"].policy, "xray")
    error_message = "a right that is not needed"
  }
}

run "hosts_without_trust" {
  command = plan
  variables { hosts = { hv-03 = {} } }
  expect_failures = [var.hosts]
}

run "hosts_trust_everybody" {
  command = plan
  variables { hosts = { hv-03 = { principals = ["*"] } } }
  expect_failures = [var.hosts]
}

run "host_names" {
  command = plan
  variables { hosts = { "hv 03" = { ec2 = true } } }
  expect_failures = [var.hosts]
}

run "nobody_initialises" {
  command = plan
  variables { operators = [] }
  expect_failures = [var.operators]
}

run "prefix" {
  command = plan
  variables { target_prefix = "/home/" }
  expect_failures = [var.target_prefix]
}

run "history_shorter_than_messages_live" {
  command = plan
  variables { history_days = 7 }
  expect_failures = [var.history_days]
}

run "budget_for_nobody" {
  command = plan
  variables { monthly_budget_usd = 5 }
  expect_failures = [var.monthly_budget_usd]
}

run "function_names" {
  command = plan
  variables { functions = { collector = {} } }
  expect_failures = [var.functions]
}

run "console_without_tls" {
  command = plan
  variables { console = { issuer = "http://login.example.com", client_id = "x", authorize_url = "https://login.example.com/a", token_url = "https://login.example.com/t", viewers = ["a"] } }
  expect_failures = [var.console]
}

run "console_for_nobody" {
  command = plan
  variables { console = { issuer = "https://login.example.com", client_id = "x", authorize_url = "https://login.example.com/a", token_url = "https://login.example.com/t" } }
  expect_failures = [var.console]
}

run "console_ambiguous_groups" {
  command = plan
  variables { console = { issuer = "https://login.example.com", client_id = "x", authorize_url = "https://login.example.com/a", token_url = "https://login.example.com/t", operators = ["backup operators"] } }
  expect_failures = [var.console]
}

run "console_without_id_token" {
  command = plan
  variables { console = { issuer = "https://login.example.com", client_id = "x", authorize_url = "https://login.example.com/a", token_url = "https://login.example.com/t", operators = ["a"], scope = "profile" } }
  expect_failures = [var.console]
}

run "console_domain_without_certificate" {
  command = plan
  variables { console = { issuer = "https://login.example.com", client_id = "x", authorize_url = "https://login.example.com/a", token_url = "https://login.example.com/t", operators = ["a"], domain_name = "backups.example.com" } }
  expect_failures = [var.console]
}

run "console_that_thinks_too_long" {
  command = plan
  variables { functions = { console = { timeout_seconds = 60 } } }
  expect_failures = [var.functions]
}

# A provider on this machine, for the local AWS.
run "console_on_this_machine" {
  command = plan
  variables { console = { issuer = "http://127.0.0.1:4900", client_id = "x", authorize_url = "http://localhost:4900/a", token_url = "http://127.0.0.1:4900/t", operators = ["a", "b-c_d/e:f"] } }
}
