# The console's way in from the internet: an HTTP API, which costs nothing while nobody asks. What goes to /v1, and the exchange of
# a token for a session, is let through with a token of the identity provider only, which the API verifies; pages ask for a
# session that the function itself gave out.

locals {
  # A map, so that all of it is made for each console there is: one, or none.
  consoles = { for name, console in { console = var.console } : name => console if console != null }

  more_variables = {
    for name, console in local.consoles : name => {
      STRONGROOM_CONSOLE = jsonencode({
        session_key = aws_kms_key.sessions[name].arn
        claim       = console.claim
        viewers     = console.viewers
        operators   = console.operators
        sign_in = {
          client_id     = console.client_id
          authorize_url = console.authorize_url
          token_url     = console.token_url
          scope         = console.scope
        }
      })
    }
  }
  console_domains = { for name, console in local.consoles : name => console if console.domain_name != null }
  console_url = one([
    for name, console in local.consoles :
    console.domain_name == null ? aws_apigatewayv2_api.console[name].api_endpoint : "https://${console.domain_name}"
  ])

  # Route: whether it wants a token of the provider. What no other route is for are pages.
  console_routes = { "ANY /v1/{proxy+}" = true, "POST /sign-in" = true, "$default" = false }
}

resource "aws_apigatewayv2_api" "console" {
  for_each                     = local.consoles
  name                         = "${var.name}-console"
  description                  = "Strongroom: console"
  protocol_type                = "HTTP"
  disable_execute_api_endpoint = each.value.domain_name != null
  tags                         = local.tags
}

resource "aws_apigatewayv2_authorizer" "console" {
  for_each         = local.consoles
  api_id           = aws_apigatewayv2_api.console[each.key].id
  name             = "identity-provider"
  authorizer_type  = "JWT"
  identity_sources = ["$request.header.Authorization"]

  jwt_configuration {
    issuer   = each.value.issuer
    audience = concat([each.value.client_id], each.value.audiences)
  }
}

resource "aws_apigatewayv2_integration" "console" {
  for_each               = local.consoles
  api_id                 = aws_apigatewayv2_api.console[each.key].id
  integration_type       = "AWS_PROXY"
  integration_uri        = aws_lambda_function.this[each.key].invoke_arn
  payload_format_version = "2.0"
  timeout_milliseconds   = 30000
}

resource "aws_apigatewayv2_route" "console" {
  # checkov:skip=CKV_AWS_309: pages have no header to show a token in; the function asks for the session that it gave out for one
  for_each           = length(local.consoles) == 0 ? {} : local.console_routes
  api_id             = aws_apigatewayv2_api.console["console"].id
  route_key          = each.key
  target             = "integrations/${aws_apigatewayv2_integration.console["console"].id}"
  authorization_type = each.value ? "JWT" : "NONE"
  authorizer_id      = each.value ? aws_apigatewayv2_authorizer.console["console"].id : null
}

resource "aws_apigatewayv2_stage" "console" {
  for_each    = local.consoles
  api_id      = aws_apigatewayv2_api.console[each.key].id
  name        = "$default"
  auto_deploy = true
  tags        = local.tags

  default_route_settings {
    throttling_rate_limit  = each.value.rate
    throttling_burst_limit = each.value.burst
  }

  # Who asked for what, and what came of it. No queries, which may hold codes of the provider, and no headers, which hold tokens.
  access_log_settings {
    destination_arn = aws_cloudwatch_log_group.console_access[each.key].arn
    format = jsonencode({
      time        = "$context.requestTime"
      request     = "$context.requestId"
      from        = "$context.identity.sourceIp"
      who         = "$context.authorizer.claims.sub"
      method      = "$context.httpMethod"
      path        = "$context.path"
      route       = "$context.routeKey"
      status      = "$context.status"
      bytes       = "$context.responseLength"
      latency_ms  = "$context.responseLatency"
      refused_for = "$context.authorizer.error"
      failed_for  = "$context.integrationErrorMessage"
    })
  }
}

# Below /aws/vendedlogs, API Gateway needs no policy of the account for it.
resource "aws_cloudwatch_log_group" "console_access" {
  for_each          = local.consoles
  name              = "/aws/vendedlogs/${var.name}-console"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.logs_kms_key_arn
  tags              = local.tags
}

# The function believes what the API says of a token: so nobody else may ask it.
resource "aws_lambda_permission" "console" {
  for_each      = local.consoles
  statement_id  = "Api"
  function_name = aws_lambda_function.this[each.key].function_name
  action        = "lambda:InvokeFunction"
  principal     = "apigateway.amazonaws.com"
  source_arn    = "${aws_apigatewayv2_api.console[each.key].execution_arn}/*"
}

resource "aws_apigatewayv2_domain_name" "console" {
  for_each    = local.console_domains
  domain_name = each.value.domain_name
  tags        = local.tags

  domain_name_configuration {
    certificate_arn = each.value.certificate_arn
    endpoint_type   = "REGIONAL"
    security_policy = "TLS_1_2"
  }
}

resource "aws_apigatewayv2_api_mapping" "console" {
  for_each    = local.console_domains
  api_id      = aws_apigatewayv2_api.console[each.key].id
  domain_name = aws_apigatewayv2_domain_name.console[each.key].id
  stage       = aws_apigatewayv2_stage.console[each.key].id
}
