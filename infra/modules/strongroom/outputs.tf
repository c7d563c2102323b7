output "target" {
  description = "Address of the fleet's home: STRONGROOM_TARGET, `target` in the agents' configuration."
  value       = "s3://${var.bucket_name}/${var.target_prefix}"
}

output "queues" {
  description = "Address of the queues: STRONGROOM_QUEUES, `queues` in the agents' configuration."
  value       = "sqs://${var.name}"
}

output "kms_key" {
  description = "Key of the catalog and ingest secrets: STRONGROOM_KMS_KEY, `kms-key`."
  value       = aws_kms_key.catalog.arn
}

output "restore_kms_key" {
  description = "Key of the restore secrets: STRONGROOM_RESTORE_KMS_KEY, `restore-kms-key`; for operators and restoring hosts."
  value       = aws_kms_key.restore.arn
}

output "region" {
  description = "Region of all of it: AWS_REGION."
  value       = local.region
}

output "bucket" {
  description = "The bucket."
  value       = aws_s3_bucket.this.id
}

output "hosts" {
  description = "By host: the role its agent takes on, its instance profile if it is an EC2 instance, and its configuration file."
  value = {
    for host, settings in var.hosts : host => {
      role_arn         = aws_iam_role.host[host].arn
      instance_profile = settings.ec2 ? aws_iam_instance_profile.host[host].name : null
      config = join("\n", concat([
        "target = \"s3://${var.bucket_name}/${var.target_prefix}\"",
        "region = \"${local.region}\"",
        "queues = \"sqs://${var.name}\"",
        "kms-key = \"${aws_kms_key.catalog.arn}\"",
        ], settings.restore ? ["restore-kms-key = \"${aws_kms_key.restore.arn}\""] : [], [
        "host = \"${host}\"",
        "",
      ]))
    }
  }
}

output "alarm_topic_arn" {
  description = "Topic of the alarms, for more subscribers."
  value       = aws_sns_topic.alarms.arn
}

output "function_names" {
  description = "The functions, by what they do."
  value       = { for name, function in aws_lambda_function.this : name => function.function_name }
}

output "queue_urls" {
  description = "The queues, by what they carry."
  value       = { for name, queue in aws_sqs_queue.this : name => queue.url }
}

output "console_url" {
  description = "Where the console is, if there is one."
  value       = local.console_url
}

output "console_redirect_url" {
  description = "What is registered at the identity provider as the console's redirect URI."
  value       = local.console_url == null ? null : "${local.console_url}/sign-in"
}

output "console_dns" {
  description = "What the console's own domain name must point to (an alias or CNAME), if it has one."
  value       = one([for domain in values(aws_apigatewayv2_domain_name.console) : domain.domain_name_configuration[0].target_domain_name])
}
