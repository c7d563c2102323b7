output "hosts" {
  description = "Role and configuration file of each host's agent."
  value       = module.strongroom.hosts
}

output "operator_environment" {
  description = "What operators export before `strongroom target init`."
  value       = <<-EOT
    export STRONGROOM_TARGET=${module.strongroom.target}
    export STRONGROOM_QUEUES=${module.strongroom.queues}
    export STRONGROOM_KMS_KEY=${module.strongroom.kms_key}
    export STRONGROOM_RESTORE_KMS_KEY=${module.strongroom.restore_kms_key}
    export AWS_REGION=${module.strongroom.region}
  EOT
}

output "console_url" {
  description = "Where the console is, if there is one."
  value       = module.strongroom.console_url
}

output "console_redirect_url" {
  description = "What to register at the identity provider as the console's redirect URI."
  value       = module.strongroom.console_redirect_url
}

output "console_dns" {
  description = "What the console's own domain name must point to, if it has one."
  value       = module.strongroom.console_dns
}
