# The module as the local AWS runs it: what localstack/up --deploy and infra/check --apply apply.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100, < 7.0"
    }
  }
}

# Where requests go is AWS_ENDPOINT_URL's to say.
provider "aws" {
  region                      = "us-east-1"
  access_key                  = "test"
  secret_key                  = "test"
  s3_use_path_style           = true
  skip_credentials_validation = true
  skip_metadata_api_check     = true
}

variable "packages_dir" {
  description = "Folder with the functions' packages."
  type        = string
}

variable "hosts" {
  description = "Names of hosts."
  type        = list(string)
}

variable "bucket_name" {
  description = "Name of the bucket."
  type        = string
  default     = "strongroom-fleet"
}

variable "console" {
  description = "The console, as the module takes it. LocalStack without a licence has no HTTP APIs; MiniStack has."
  type        = any
  default     = null
}

module "strongroom" {
  source = "../modules/strongroom"

  bucket_name   = var.bucket_name
  operators     = ["arn:aws:iam::000000000000:role/operators"]
  packages_dir  = var.packages_dir
  architecture  = "x86_64"
  hosts         = { for host in var.hosts : host => { restore = true, principals = ["arn:aws:iam::000000000000:user/${host}"] } }
  console       = var.console
  force_destroy = true
  tag_alarms    = false

  # What fails is to be seen soon, and so is what is late. The message of a function that was killed comes again after six times
  # the time it has, here two minutes.
  reconciler_rate = "rate(1 minute)"
  functions       = { for name in ["scheduler", "dispatcher", "committer", "retention", "gc", "reconciler"] : name => { timeout_seconds = 20 } }
}

output "environment" {
  description = "What an operator's shell exports."
  value = join("", [for line in concat([
    "STRONGROOM_TARGET=${module.strongroom.target}",
    "STRONGROOM_KMS_KEY=${module.strongroom.kms_key}",
    "STRONGROOM_RESTORE_KMS_KEY=${module.strongroom.restore_kms_key}",
    "STRONGROOM_QUEUES=${module.strongroom.queues}",
  ], module.strongroom.console_url == null ? [] : ["STRONGROOM_TEST_CONSOLE=${module.strongroom.console_url}"]) : "export ${line}\n"])
}
