resource "aws_s3_bucket" "this" {
  # checkov:skip=CKV2_AWS_62: nothing waits for objects: agents and functions tell each other by queues
  # checkov:skip=CKV_AWS_144: a second copy is a second target, with keys of its own, that a fleet backs up to; a replica would follow deletions, and a root whose copies arrive in another order is no catalog
  # checkov:skip=CKV_AWS_145: every object is sealed before it is sent; a KMS key here would be one more that can lose all backups, and one more right for each role
  bucket              = var.bucket_name
  force_destroy       = var.force_destroy
  object_lock_enabled = var.object_lock != null
  tags                = local.tags
}

resource "aws_s3_bucket_versioning" "this" {
  bucket = aws_s3_bucket.this.id

  versioning_configuration {
    status = "Enabled"
  }
}

# Everything is sealed before it comes here: this is a second lock, and needs no key that could be lost.
resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  bucket                  = aws_s3_bucket.this.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  bucket = aws_s3_bucket.this.id

  rule {
    id     = "old-versions"
    status = "Enabled"
    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days
    }
    expiration {
      expired_object_delete_marker = true
    }
  }

  rule {
    id     = "aborted-uploads"
    status = "Enabled"
    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }

  # Runs and committers' answers are history: nothing that is backed up needs them. An open run of a volume is written anew every few
  # minutes, or is failed by the reconciler after a day. Nothing else that is current may ever expire.
  dynamic "rule" {
    for_each = toset(["outcomes", "runs"])

    content {
      id     = "old-${rule.key}"
      status = "Enabled"

      filter {
        prefix = "${var.target_prefix}/${rule.key}/"
      }
      expiration {
        days = var.history_days
      }
    }
  }

  # Rules about versions want versioning to be on.
  depends_on = [aws_s3_bucket_versioning.this]
}

resource "aws_s3_bucket_object_lock_configuration" "this" {
  count  = var.object_lock == null ? 0 : 1
  bucket = aws_s3_bucket_versioning.this.id

  rule {
    default_retention {
      mode = var.object_lock.mode
      days = var.object_lock.days
    }
  }
}

resource "aws_s3_bucket_logging" "this" {
  count         = var.access_log_bucket == null ? 0 : 1
  bucket        = aws_s3_bucket.this.id
  target_bucket = var.access_log_bucket
  target_prefix = "${var.bucket_name}/"
}

resource "aws_s3_bucket_policy" "this" {
  bucket = aws_s3_bucket.this.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([
      {
        Sid       = "TlsOnly"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [local.bucket_arn, "${local.bucket_arn}/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
      {
        Sid       = "RecentTlsOnly"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [local.bucket_arn, "${local.bucket_arn}/*"]
        Condition = { NumericLessThan = { "s3:TlsVersion" = "1.2" } }
      },
      {
        # Nobody overwrites anything unseen, not even an administrator: Strongroom never does.
        Sid       = "ConditionalWritesOnly"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:PutObject"
        Resource  = "${local.bucket_arn}/*"
        Condition = { Null = { "s3:if-none-match" = "true", "s3:if-match" = "true" } }
      },
      {
        # What is deleted or overwritten by a role of ours stays among the versions until the lifecycle rule removes it,
        # whatever else is attached to the role.
        Sid       = "NoRoleTouchesVersions"
        Effect    = "Deny"
        Principal = "*"
        Action    = ["s3:DeleteObjectVersion", "s3:PutObjectRetention", "s3:PutObjectLegalHold", "s3:BypassGovernanceRetention", "s3:PutLifecycleConfiguration", "s3:PutBucketVersioning"]
        Resource  = [local.bucket_arn, "${local.bucket_arn}/*"]
        Condition = { ArnLike = { "aws:PrincipalArn" = concat(local.function_role_arns, [local.any_host_role_arn]) } }
      },
      {
        Sid       = "OnlyTheCollectorDeletes"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:DeleteObject"
        Resource  = "${local.bucket_arn}/*"
        Condition = { ArnLike = { "aws:PrincipalArn" = concat([for arn in local.function_role_arns : arn if arn != local.role_arns["gc"]], [local.any_host_role_arn]) } }
      },
      ], var.console == null ? [] : [{
        # What is open to the internet writes nothing, whatever else is attached to its role.
        Sid       = "TheConsoleOnlyReads"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:PutObject"
        Resource  = "${local.bucket_arn}/*"
        Condition = { ArnEquals = { "aws:PrincipalArn" = local.role_arns["console"] } }
    }])
  })

  # A policy is refused while the block is being put in place.
  depends_on = [aws_s3_bucket_public_access_block.this]
}
