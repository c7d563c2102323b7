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
