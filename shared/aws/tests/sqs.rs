//! SQS as LocalStack knows it. Started by `localstack/up`, named by `STRONGROOM_TEST_S3_ENDPOINT`.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_sdk_sqs::types::QueueAttributeName;
use strongroom_aws::{AwsConnection, AwsSettings, SqsQueue, StaticCredentials};

fn endpoint() -> String {
    std::env::var("STRONGROOM_TEST_S3_ENDPOINT").expect("STRONGROOM_TEST_S3_ENDPOINT: run localstack/up")
}

fn connection() -> AwsConnection {
    let credentials = StaticCredentials {
        access_key_id: "test".to_owned(),
        secret_access_key: "test".to_owned().into(),
        session_token: None,
    };
    AwsConnection::with_credentials(credentials, AwsSettings { region: None, endpoint_url: Some(endpoint()) })
}

/// A queue with its queue of dead letters, as Terraform makes them.
async fn create(name: &str, max_receives: u32) {
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(aws_sdk_sqs::config::BehaviorVersion::latest())
        .region(aws_sdk_sqs::config::Region::new("us-east-1"))
        .credentials_provider(aws_sdk_sqs::config::Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(endpoint())
        .http_client(aws_smithy_http_client::Builder::new().build_http());
    let client = aws_sdk_sqs::Client::from_conf(config.build());
    let dead =
        client.create_queue().queue_name(format!("{name}-dead")).send().await.unwrap().queue_url.unwrap();
    let arn = client
        .get_queue_attributes()
        .queue_url(dead)
        .attribute_names(QueueAttributeName::QueueArn)
        .send()
        .await
        .unwrap()
        .attributes
        .unwrap()
        .remove(&QueueAttributeName::QueueArn)
        .unwrap();
    let policy = format!("{{\"deadLetterTargetArn\":\"{arn}\",\"maxReceiveCount\":\"{max_receives}\"}}");
    let create = client.create_queue().queue_name(name).attributes(QueueAttributeName::RedrivePolicy, policy);
    create.send().await.unwrap();
}

#[tokio::test]
#[ignore = "needs LocalStack: localstack/up"]
async fn conforms() {
    let numbers = AtomicU32::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    strongroom_queue::conformance::check(|max_receives| {
        let name = format!("conformance-{since}-{}", numbers.fetch_add(1, Ordering::Relaxed));
        async move {
            create(&name, max_receives).await;
            SqsQueue::new(&connection(), name)
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs LocalStack: localstack/up"]
async fn a_queue_that_is_not_there_is_told() {
    use strongroom_queue::{Queue, StoreErrorKind};
    let queue = SqsQueue::new(&connection(), "no-such-queue");
    let error = queue.send(&["x".to_owned()]).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("no such queue"), "{error}");
}
