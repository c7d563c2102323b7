resource "aws_iam_role" "host" {
  for_each             = var.hosts
  name                 = local.role_names["host-${each.key}"]
  description          = "Strongroom: the agent of ${each.key}"
  max_session_duration = 43200
  permissions_boundary = var.permissions_boundary_arn
  tags                 = local.tags

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      length(each.value.principals) == 0 ? [] : [{
        Sid       = "Principals"
        Effect    = "Allow"
        Principal = { AWS = each.value.principals }
        Action    = "sts:AssumeRole"
      }],
      each.value.ec2 ? [{
        Sid       = "Instance"
        Effect    = "Allow"
        Principal = { Service = "ec2.amazonaws.com" }
        Action    = "sts:AssumeRole"
      }] : [],
      each.value.roles_anywhere == null ? [] : [{
        Sid       = "Certificate"
        Effect    = "Allow"
        Principal = { Service = "rolesanywhere.amazonaws.com" }
        Action    = ["sts:AssumeRole", "sts:SetSourceIdentity", "sts:TagSession"]
        Condition = {
          StringEquals = { "aws:PrincipalTag/x509Subject/CN" = each.value.roles_anywhere.common_name }
          ArnEquals    = { "aws:SourceArn" = each.value.roles_anywhere.trust_anchor_arn }
        }
      }],
    )
  })
}

resource "aws_iam_role_policy" "host" {
  for_each = var.hosts
  name     = "strongroom"
  role     = aws_iam_role.host[each.key].name

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      local.object_statements["host-${each.key}"],
      [
        {
          # It sends to its own queue as well: a message that wears out while its run is alive is sent anew.
          Sid      = "Work"
          Effect   = "Allow"
          Action   = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:SendMessage", "sqs:GetQueueUrl"]
          Resource = "${local.queue_arn}-host-${each.key}"
        },
        {
          Sid      = "Send"
          Effect   = "Allow"
          Action   = ["sqs:SendMessage", "sqs:GetQueueUrl"]
          Resource = ["${local.queue_arn}-commits", "${local.queue_arn}-host-${each.key}-dead"]
        },
      ],
      !each.value.restore ? [] : [{
        Sid       = "RestoreKey"
        Effect    = "Allow"
        Action    = "kms:Decrypt"
        Resource  = aws_kms_key.restore.arn
        Condition = { StringEquals = { "kms:EncryptionContext:strongroom-purpose" = "restore" } }
      }],
    )
  })
}

resource "aws_iam_instance_profile" "host" {
  for_each = { for host, settings in var.hosts : host => settings if settings.ec2 }
  name     = local.role_names["host-${each.key}"]
  role     = aws_iam_role.host[each.key].name
  tags     = local.tags
}
