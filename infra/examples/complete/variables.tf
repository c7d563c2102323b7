variable "region" {
  description = "Where everything is."
  type        = string
  default     = "eu-central-1"
}

variable "bucket_name" {
  description = "Name of the bucket to make."
  type        = string
}

variable "operators" {
  description = "ARNs of the roles or users who initialise the target and restore by hand."
  type        = list(string)
}

variable "packages_dir" {
  description = "Folder with the functions' packages."
  type        = string
  default     = "../../../target/functions"
}

variable "architecture" {
  description = "What the packages are built for: arm64 or x86_64."
  type        = string
  default     = "x86_64"
}

variable "hosts" {
  description = "The hosts, as the module takes them."
  type = map(object({
    restore    = optional(bool, false)
    principals = optional(list(string), [])
    ec2        = optional(bool, false)
    roles_anywhere = optional(object({
      trust_anchor_arn = string
      common_name      = string
    }))
  }))
  default = {
    "hv-01" = { ec2 = true }
    "hv-02" = { ec2 = true, restore = true }
  }
}

variable "console" {
  description = "The console on the web and who signs in to it, as the module takes it; none if null. An example is in docs/infra.md."
  type = object({
    issuer          = string
    client_id       = string
    audiences       = optional(list(string))
    authorize_url   = string
    token_url       = string
    scope           = optional(string)
    claim           = optional(string)
    viewers         = optional(list(string))
    operators       = optional(list(string))
    rate            = optional(number)
    burst           = optional(number)
    domain_name     = optional(string)
    certificate_arn = optional(string)
  })
  default = null
}

variable "alarm_emails" {
  description = "Addresses that alarms go to."
  type        = list(string)
  default     = []
}

variable "monthly_budget_usd" {
  description = "Tell when costs come near so much a month."
  type        = number
  default     = null
}

variable "object_lock" {
  description = "Keep object versions from being deleted: mode and days."
  type = object({
    mode = string
    days = number
  })
  default = null
}
