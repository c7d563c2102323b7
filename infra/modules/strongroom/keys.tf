# A target's secrets are wrapped under two of these keys, one data key for each layer of secrets; data never goes through KMS.
# Who has neither, reads nothing. The account's administrators can change the policies, and CloudTrail says so; they can't
# use the keys.

locals {
  key_administration = {
    Sid       = "Administration"
    Effect    = "Allow"
    Principal = { AWS = local.root_arn }
    Action = [
      "kms:CancelKeyDeletion", "kms:DescribeKey", "kms:DisableKey", "kms:DisableKeyRotation", "kms:EnableKey", "kms:EnableKeyRotation",
      "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListAliases", "kms:ListGrants", "kms:ListKeyPolicies", "kms:ListKeyRotations",
      "kms:ListResourceTags", "kms:PutKeyPolicy", "kms:RevokeGrant", "kms:RotateKeyOnDemand", "kms:ScheduleKeyDeletion", "kms:TagResource",
      "kms:UntagResource", "kms:UpdateAlias", "kms:CreateAlias", "kms:DeleteAlias", "kms:UpdateKeyDescription",
    ]
    Resource = "*"
  }
  # The account is the principal, so that roles need not be there before the key; each needs a policy of its own besides.
  key_use_by_operators = {
    Sid       = "Operators"
    Effect    = "Allow"
    Principal = { AWS = local.root_arn }
    Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
    Resource  = "*"
    Condition = { ArnEquals = { "aws:PrincipalArn" = var.operators } }
  }
  restoring_host_role_arns = [for host in local.restoring_hosts : local.role_arns["host-${host}"]]
}

# Wraps the catalog secret (functions, hosts) and the ingest secrets (hosts): with it, no data can be read.
resource "aws_kms_key" "catalog" {
  description             = "${var.name}: catalog and ingest secrets"
  enable_key_rotation     = true
  deletion_window_in_days = var.kms_deletion_days
  tags                    = local.tags

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      local.key_administration,
      local.key_use_by_operators,
      {
        Sid       = "Catalog"
        Effect    = "Allow"
        Principal = { AWS = local.root_arn }
        Action    = "kms:Decrypt"
        Resource  = "*"
        Condition = {
          ArnLike      = { "aws:PrincipalArn" = concat(local.function_role_arns, [local.any_host_role_arn]) }
          StringEquals = { "kms:EncryptionContext:strongroom-purpose" = "catalog" }
        }
      },
      {
        Sid       = "Ingest"
        Effect    = "Allow"
        Principal = { AWS = local.root_arn }
        Action    = "kms:Decrypt"
        Resource  = "*"
        Condition = {
          ArnLike      = { "aws:PrincipalArn" = local.any_host_role_arn }
          StringEquals = { "kms:EncryptionContext:strongroom-purpose" = "ingest" }
        }
      },
    ]
  })
}

# Wraps the restore secrets: with it, and the bucket, backups can be read.
resource "aws_kms_key" "restore" {
  description             = "${var.name}: restore secrets"
  enable_key_rotation     = true
  deletion_window_in_days = var.kms_deletion_days
  tags                    = local.tags

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([
      local.key_administration,
      local.key_use_by_operators,
      ], length(local.restoring_hosts) == 0 ? [] : [{
        Sid       = "Restore"
        Effect    = "Allow"
        Principal = { AWS = local.root_arn }
        Action    = "kms:Decrypt"
        Resource  = "*"
        Condition = {
          ArnEquals    = { "aws:PrincipalArn" = local.restoring_host_role_arns }
          StringEquals = { "kms:EncryptionContext:strongroom-purpose" = "restore" }
        }
    }])
  })
}

# Makes the key that the console's sessions are sealed under: who may use it could be anybody on the console. It never leaves KMS,
# and the function asks for a code under it once when it begins.
resource "aws_kms_key" "sessions" {
  # checkov:skip=CKV_AWS_7: AWS rotates no HMAC keys; a new one ends all sessions, and nothing else
  for_each                 = local.consoles
  description              = "${var.name}: sessions of the console"
  key_usage                = "GENERATE_VERIFY_MAC"
  customer_master_key_spec = "HMAC_256"
  deletion_window_in_days  = 7
  tags                     = local.tags

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      local.key_administration,
      {
        Sid       = "Sessions"
        Effect    = "Allow"
        Principal = { AWS = local.root_arn }
        Action    = "kms:GenerateMac"
        Resource  = "*"
        Condition = { ArnEquals = { "aws:PrincipalArn" = local.role_arns[each.key] } }
      },
    ]
  })
}

resource "aws_kms_alias" "catalog" {
  name          = "alias/${var.name}-catalog"
  target_key_id = aws_kms_key.catalog.key_id
}

resource "aws_kms_alias" "restore" {
  name          = "alias/${var.name}-restore"
  target_key_id = aws_kms_key.restore.key_id
}

resource "aws_kms_alias" "sessions" {
  for_each      = local.consoles
  name          = "alias/${var.name}-sessions"
  target_key_id = aws_kms_key.sessions[each.key].key_id
}
