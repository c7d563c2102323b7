# Makes every policy, for infra/policies/check.py to read: `terraform test -json -verbose` prints them.

mock_provider "aws" {
  mock_data "aws_caller_identity" { defaults = { account_id = "123456789012" } }
  mock_data "aws_partition" { defaults = { partition = "aws" } }
  mock_data "aws_region" { defaults = { name = "eu-central-1" } }
  mock_resource "aws_sqs_queue" { defaults = { arn = "arn:aws:sqs:eu-central-1:123456789012:mocked" } }
  mock_resource "aws_iam_role" { defaults = { arn = "arn:aws:iam::123456789012:role/mocked" } }
  mock_resource "aws_lambda_function" { defaults = { arn = "arn:aws:lambda:eu-central-1:123456789012:function:mocked" } }
  mock_resource "aws_cloudwatch_log_group" { defaults = { arn = "arn:aws:logs:eu-central-1:123456789012:log-group:mocked" } }
  mock_resource "aws_apigatewayv2_api" { defaults = { execution_arn = "arn:aws:execute-api:eu-central-1:123456789012:console" } }
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
  console = {
    issuer        = "https://login.example.com"
    client_id     = "strongroom"
    authorize_url = "https://login.example.com/authorize"
    token_url     = "https://login.example.com/token"
    viewers       = ["staff"]
  }
}

run "policies" {
  command = apply

  assert {
    condition     = length(distinct(concat(values(aws_iam_role.function)[*].name, values(aws_iam_role.host)[*].name))) == 9
    error_message = "a role for each function and each host"
  }
}
