variable "name" {
  description = "What names of queues, functions, roles and alarms begin with. Agents and functions find queues as sqs://NAME."
  type        = string
  default     = "strongroom"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.name))
    error_message = "name: 2 to 20 lower case letters, digits and hyphens; SQS takes 80 characters, and host and suffix need 60 of them."
  }
}

variable "bucket_name" {
  description = "The bucket, for Strongroom alone: whoever may read it can list all of its names."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket_name))
    error_message = "bucket_name: 3 to 63 lower case letters, digits, dots and hyphens."
  }
}

variable "target_prefix" {
  description = "Where in the bucket the fleet's home target is: s3://BUCKET/PREFIX."
  type        = string
  default     = "home"

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", var.target_prefix))
    error_message = "target_prefix: folders of letters, digits, '-' and '_', without a slash at either end."
  }
}

variable "hosts" {
  description = <<-EOT
    Hosts that are backed up, by the name that the agent is configured with. Each has a queue and a role of its own.
    `restore`: whether the host may use the restore key, so that it can restore. Who may take the role on: `principals` (ARNs
    of roles or users), `ec2` (the instance it runs on), `roles_anywhere` (a certificate with this common name, of this trust
    anchor).
  EOT
  type = map(object({
    restore    = optional(bool, false)
    principals = optional(list(string), [])
    ec2        = optional(bool, false)
    roles_anywhere = optional(object({
      trust_anchor_arn = string
      common_name      = string
    }))
  }))
  default = {}

  validation {
    condition = alltrue([
      for host in keys(var.hosts) : can(regex("^[A-Za-z0-9_-]+$", host)) && !endswith(host, "-dead") && length("${var.name}-host-${host}-dead") <= 80 && length("${var.name}-host-${host}") <= 64
    ])
    error_message = "hosts: names of letters, digits, '-' and '_', not ending in -dead; with NAME-host- before them at most 64 characters, which is what IAM takes for a role."
  }

  validation {
    condition = alltrue([
      for host in values(var.hosts) : length(host.principals) > 0 || host.ec2 || host.roles_anywhere != null
    ])
    error_message = "hosts: say who may take on each host's role: principals, ec2 or roles_anywhere."
  }

  validation {
    condition = alltrue(flatten([
      for host in values(var.hosts) : [for principal in host.principals : can(regex("^arn:[a-z-]+:(iam|sts)::[0-9]{12}:[a-z-]+/.+$", principal))]
    ]))
    error_message = "hosts: principals are ARNs of single roles, sessions or users; not accounts, not '*'."
  }
}

variable "operators" {
  description = "ARNs of the roles or users of this account who initialise targets, rotate keys, restore by hand: they may use both keys, if their own policies allow it. Nobody else may."
  type        = list(string)

  validation {
    condition     = length(var.operators) > 0 && alltrue([for operator in var.operators : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(role|user)/.+$", operator))])
    error_message = "operators: at least one ARN of a role or user: without any, no target can be initialised."
  }
}

variable "packages_dir" {
  description = "Folder with the functions' packages, strongroom-FUNCTION.zip, as the build makes them."
  type        = string
}

variable "architecture" {
  description = "What the packages are built for."
  type        = string
  default     = "arm64"

  validation {
    condition     = contains(["arm64", "x86_64"], var.architecture)
    error_message = "architecture: arm64 or x86_64."
  }
}

variable "functions" {
  description = "Other than the usual sizes, by function: `memory_mb`, `timeout_seconds`, `reserved_concurrency` (-1: not reserved; accounts with a low limit can't reserve)."
  type = map(object({
    memory_mb            = optional(number)
    timeout_seconds      = optional(number)
    reserved_concurrency = optional(number)
  }))
  default = {}

  validation {
    condition     = alltrue([for name in keys(var.functions) : contains(["scheduler", "dispatcher", "committer", "retention", "gc", "reconciler", "console"], name)])
    error_message = "functions: scheduler, dispatcher, committer, retention, gc, reconciler, console."
  }

  validation {
    condition     = coalesce(try(var.functions["console"].timeout_seconds, null), 29) < 30
    error_message = "functions: the console has at most 29 s: its API waits for no answer longer than 30."
  }

  validation {
    condition = alltrue([
      for function in values(var.functions) :
      coalesce(function.timeout_seconds, 60) >= 10 && coalesce(function.timeout_seconds, 60) <= 900 &&
      coalesce(function.memory_mb, 256) >= 128 && coalesce(function.memory_mb, 256) <= 10240 &&
      (coalesce(function.reserved_concurrency, 2) == -1 || coalesce(function.reserved_concurrency, 2) >= 2)
    ])
    error_message = "functions: timeout 10 to 900 s, memory 128 to 10240 MB, reserved concurrency -1 or at least 2, which is the least that SQS needs."
  }
}

variable "console" {
  description = <<-EOT
    The console on the web; none if null. Who somebody is, an OpenID Connect provider tells: `issuer` (with its discovery document
    below it) and `client_id`, a public client with PKCE; tokens for one of `audiences` are taken as well. Browsers sign in at
    `authorize_url` and `token_url` and ask for `scope`. Whoever has one of `viewers` among the values of the token's claim
    `claim` sees everything, one of `operators` also changes. `rate` and `burst`: requests a second that are let through on
    average and at once. `domain_name`, with `certificate_arn` (of ACM, in this region): the console's own name, and then only that.
  EOT
  type = object({
    issuer          = string
    client_id       = string
    audiences       = optional(list(string), [])
    authorize_url   = string
    token_url       = string
    scope           = optional(string, "openid")
    claim           = optional(string, "groups")
    viewers         = optional(list(string), [])
    operators       = optional(list(string), [])
    rate            = optional(number, 20)
    burst           = optional(number, 50)
    domain_name     = optional(string)
    certificate_arn = optional(string)
  })
  default = null

  # Tokens travel there. On this machine they don't leave it: so that a local AWS can be tried.
  validation {
    condition = var.console == null || alltrue([
      for url in try([var.console.issuer, var.console.authorize_url, var.console.token_url], []) :
      can(regex("^(https://[A-Za-z0-9.-]+|http://(127\\.0\\.0\\.1|localhost))(:[0-9]+)?(/[^[:space:]?#]*)?$", url))
    ])
    error_message = "console: issuer, authorize_url and token_url are https:// addresses without a query, as the provider's document ISSUER/.well-known/openid-configuration tells them (http:// is for 127.0.0.1 and localhost only)."
  }

  validation {
    condition     = var.console == null || length(concat(try(var.console.viewers, []), try(var.console.operators, []))) > 0
    error_message = "console: say whom it lets in: values of the claim for viewers, operators or both. Without any, nobody could use it."
  }

  # API Gateway hands a claim with several values on as one text, [one two three].
  validation {
    condition = var.console == null || alltrue([
      for value in concat(try(var.console.viewers, []), try(var.console.operators, [])) : can(regex("^[^][:space:],\"[]+$", value))
    ])
    error_message = "console: viewers and operators are values of the claim without white space, commas, quotes or brackets, since API Gateway hands lists on as '[one two]'. Use the groups' ids, or roles of the application."
  }

  validation {
    condition     = var.console == null || can(regex("^[A-Za-z0-9_:./-]+$", try(var.console.claim, ""))) && length(try(var.console.client_id, "")) > 0
    error_message = "console: client_id is what the provider calls this application, claim the name of a claim of its tokens, such as groups, roles or cognito:groups."
  }

  validation {
    condition     = var.console == null || contains(split(" ", try(var.console.scope, "")), "openid")
    error_message = "console: scope has openid among its words, or the provider gives no ID token."
  }

  validation {
    condition     = var.console == null || try(var.console.rate, 0) >= 1 && try(var.console.burst, 0) >= 10
    error_message = "console: rate at least 1 a second, burst at least 10: a page with all that belongs to it is some requests at once."
  }

  validation {
    condition     = var.console == null || (try(var.console.domain_name, null) == null) == (try(var.console.certificate_arn, null) == null)
    error_message = "console: domain_name and certificate_arn go together: no browser takes the one without the other."
  }
}

variable "log_level" {
  description = "What the functions log: a filter of tracing, such as info or strongroom_vault=debug,info."
  type        = string
  default     = "info"
}

variable "log_retention_days" {
  description = "How long the functions' logs are kept."
  type        = number
  default     = 365

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "log_retention_days: one of the periods that CloudWatch Logs has."
  }
}

variable "logs_kms_key_arn" {
  description = "Key that the functions' logs and the alarms' topic are encrypted with, if not AWS's own. Its policy must admit CloudWatch."
  type        = string
  default     = null
}

variable "tracing" {
  description = "Whether the functions are traced by X-Ray."
  type        = bool
  default     = true
}

variable "scheduler_rate" {
  description = "How often the scheduler looks for what is due."
  type        = string
  default     = "rate(1 minute)"

  validation {
    condition     = can(regex("^rate\\([0-9]+ (minute|minutes|hour|hours)\\)$", var.scheduler_rate))
    error_message = "scheduler_rate: as in rate(1 minute)."
  }
}

variable "reconciler_rate" {
  description = "How often the reconciler looks for what got stuck or is late."
  type        = string
  default     = "rate(5 minutes)"

  validation {
    condition     = can(regex("^rate\\([0-9]+ (minute|minutes|hour|hours)\\)$", var.reconciler_rate))
    error_message = "reconciler_rate: as in rate(5 minutes)."
  }
}

variable "noncurrent_days" {
  description = "How long deleted and overwritten objects can be brought back from the bucket's versions. They are paid for as long."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1 && floor(var.noncurrent_days) == var.noncurrent_days
    error_message = "noncurrent_days: a whole number of days, at least 1."
  }
}

variable "history_days" {
  description = "How long runs are kept after they were written last. An idempotency key that comes again later asks for something new."
  type        = number
  default     = 90

  validation {
    condition     = var.history_days >= 30 && floor(var.history_days) == var.history_days
    error_message = "history_days: a whole number of days, at least 30: messages live for 14."
  }
}

variable "object_lock" {
  description = "Keeps each object version from being deleted for so many days after it was written, whoever asks. `mode`: GOVERNANCE, or COMPLIANCE, which nobody can lift, the account's root included. Can only be chosen before the bucket is made."
  type = object({
    mode = string
    days = number
  })
  default = null

  validation {
    condition     = var.object_lock == null || (contains(["GOVERNANCE", "COMPLIANCE"], try(var.object_lock.mode, "")) && try(var.object_lock.days, 0) >= 1)
    error_message = "object_lock: mode GOVERNANCE or COMPLIANCE, at least one day."
  }
}

variable "access_log_bucket" {
  description = "Bucket that takes this one's server access logs, if any."
  type        = string
  default     = null
}

variable "force_destroy" {
  description = "Whether destroying deletes the bucket with all backups in it. For trials."
  type        = bool
  default     = false
}

variable "kms_deletion_days" {
  description = "How long a key that is being deleted can still be brought back. Without its keys a target is lost."
  type        = number
  default     = 30

  validation {
    condition     = var.kms_deletion_days >= 7 && var.kms_deletion_days <= 30
    error_message = "kms_deletion_days: 7 to 30."
  }
}

variable "permissions_boundary_arn" {
  description = "Permissions boundary of all roles made here."
  type        = string
  default     = null
}

variable "alarm_emails" {
  description = "Addresses that alarms go to; each must confirm. More subscribers can be added to the topic in the outputs."
  type        = list(string)
  default     = []
}

variable "dashboard" {
  description = "Whether a CloudWatch dashboard is made."
  type        = bool
  default     = true
}

variable "monthly_budget_usd" {
  description = "Tell the alarms' addresses when the account's costs tagged with this deployment come near so much a month."
  type        = number
  default     = null

  validation {
    condition     = var.monthly_budget_usd == null || length(var.alarm_emails) > 0
    error_message = "monthly_budget_usd: needs alarm_emails, which it is told to."
  }
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
}

variable "tag_alarms" {
  description = "Whether alarms are tagged as well. LocalStack forgets their tags, and each plan would bring them back."
  type        = bool
  default     = true
}
