# A deployment for a fleet of two hosts: one that only backs up, one that may restore as well.
#
#   terraform init && terraform apply -var bucket_name=… -var 'operators=["arn:aws:iam::…:role/…"]' -var packages_dir=…

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100, < 7.0"
    }
  }
}

provider "aws" {
  region = var.region
}

module "strongroom" {
  source = "../../modules/strongroom"

  bucket_name  = var.bucket_name
  operators    = var.operators
  packages_dir = var.packages_dir
  architecture = var.architecture
  hosts        = var.hosts
  console      = var.console

  alarm_emails       = var.alarm_emails
  monthly_budget_usd = var.monthly_budget_usd
  object_lock        = var.object_lock
}
