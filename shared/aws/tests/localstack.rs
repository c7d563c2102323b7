//! S3 and KMS as LocalStack knows them. Started by `localstack/up`, named by `STRONGROOM_TEST_S3_ENDPOINT`.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;

use rand::{SeedableRng, rngs::StdRng, rngs::SysRng};
use strongroom_aws::{
    AwsConnection, AwsSettings, KmsErrorKind, KmsKek, S3Options, S3Store, StaticCredentials,
};
use strongroom_format::ids::{PackId, RunId};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{
    Counting, FaultRates, Faulty, KeyKind, ObjectStore, Operation, Races, Retry, RetryPolicy, StoreErrorKind,
    conformance, probe_conditional_writes,
};

fn rng() -> StdRng {
    StdRng::try_from_rng(&mut SysRng).unwrap()
}

fn connection() -> AwsConnection {
    let endpoint_url =
        std::env::var("STRONGROOM_TEST_S3_ENDPOINT").expect("STRONGROOM_TEST_S3_ENDPOINT: run localstack/up");
    let credentials = StaticCredentials {
        access_key_id: "test".to_owned(),
        secret_access_key: "test".to_owned().into(),
        session_token: None,
    };
    let settings = AwsSettings { region: None, endpoint_url: Some(endpoint_url) };
    AwsConnection::with_credentials(credentials, settings)
}

fn bucket() -> String {
    std::env::var("STRONGROOM_TEST_S3_BUCKET").unwrap_or_else(|_| "strongroom-test".to_owned())
}

fn store_at(bucket: &str, prefix: &str) -> S3Store {
    let options = S3Options { bucket: bucket.to_owned(), prefix: prefix.to_owned(), path_style: None };
    S3Store::new(&connection(), options).unwrap()
}

/// A store of its own for each test.
fn store() -> S3Store {
    store_at(&bucket(), &format!("tests/{}", RunId::random(&mut rng())))
}

#[tokio::test]
#[ignore = "needs LocalStack: run localstack/up"]
async fn s3_is_a_store() {
    let store = store();
    conformance::run(&store).await;
    conformance::create_refuses_the_same_bytes(&store).await;
    let rest = store.list(KeyPrefix::All, None).await.unwrap();
    assert_eq!(rest.objects, [], "the suite cleans up");
}

#[tokio::test]
#[ignore = "needs LocalStack: run localstack/up"]
async fn s3_rides_out_faults() {
    let faulty = Faulty::seeded(store(), FaultRates { before: 0.05, after: 0.05 }, 11);
    conformance::run(&Retry::new(faulty, RetryPolicy::default(), 11)).await;
}

#[tokio::test]
#[ignore = "needs LocalStack: run localstack/up"]
async fn s3_passes_the_probe() {
    let store = Counting::new(store());
    let mut rng = rng();
    let unused = [RunId::random(&mut rng), RunId::random(&mut rng)];
    assert_eq!(probe_conditional_writes(&store, unused).await.unwrap(), Races::Decided);
    assert_eq!(store.snapshot().get(Operation::Delete, KeyKind::Run).calls, 1);
    assert_eq!(store.list(KeyPrefix::Runs, None).await.unwrap().objects, []);
}

#[tokio::test]
#[ignore = "needs LocalStack: run localstack/up"]
async fn a_pack_goes_there_and_back() {
    let store = store();
    let key = ObjectKey::Pack(PackId::random(&mut rng()));
    let pack: bytes::Bytes =
        (0..16 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let etag = store.put_if_absent(&key, pack.clone()).await.unwrap();
    let object = store.get(&key, pack.len() as u64).await.unwrap();
    assert!(object.bytes == pack && object.etag == etag);
    let middle = store.get_range(&key, 5_000_000..9_000_000).await.unwrap();
    assert!(middle == pack.slice(5_000_000..9_000_000));
    store.delete(&[key]).await.unwrap();
}

#[tokio::test]
#[ignore = "needs LocalStack: run localstack/up"]
async fn prefixes_do_not_see_each_other() {
    let mut rng = rng();
    let name = RunId::random(&mut rng);
    // The first is a beginning of the second, as text.
    let (store, other) =
        (store_at(&bucket(), &format!("/tests/{name}/")), store_at(&bucket(), &format!("tests/{name}x")));
    let key = ObjectKey::Run(RunId::random(&mut rng));
    store.put_if_absent(&key, "ours".into()).await.unwrap();
    assert_eq!(other.get(&key, 10).await.unwrap_err().kind, StoreErrorKind::NotFound);
    other.put_if_absent(&key, "theirs".into()).await.unwrap();
    let listed = store.list(KeyPrefix::All, None).await.unwrap().objects;
    assert_eq!(listed.iter().map(|row| row.key.clone()).collect::<Vec<_>>(), [key.to_string()]);
    other.delete(&[key]).await.unwrap();
    assert_eq!(store.get(&key, 10).await.unwrap().bytes, "ours");
    store.delete(&[key]).await.unwrap();
}

#[tokio::test]
#[ignore = "needs LocalStack: run localstack/up"]
async fn a_missing_bucket_is_no_missing_object() {
    let store = store_at("strongroom-no-such-bucket", "");
    let key = ObjectKey::Root;
    for error in [
        store.get(&key, 10).await.unwrap_err(),
        store.get_range(&key, 0..1).await.unwrap_err(),
        store.put_if_absent(&key, "x".into()).await.unwrap_err(),
        store.list(KeyPrefix::All, None).await.unwrap_err(),
        store.delete(&[key]).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
        assert!(error.message.contains("create it first"), "{error}");
    }
}

#[tokio::test]
#[ignore = "needs LocalStack: run localstack/up"]
async fn kms_wraps_and_unwraps_for_one_context_only() {
    let connection = connection();
    let kms = KmsKek::new(&connection, create_kms_key(&connection).await);
    let context = |target: &str| BTreeMap::from([("target".to_owned(), target.to_owned())]);

    let key = kms.generate_data_key(&context("a")).await.unwrap();
    let again = kms.generate_data_key(&context("a")).await.unwrap();
    assert_ne!(*key.plaintext, *again.plaintext, "each data key is new");
    assert_eq!(*kms.decrypt(&key.ciphertext, &context("a")).await.unwrap(), *key.plaintext);

    for wrong in [context("b"), BTreeMap::new()] {
        let error = kms.decrypt(&key.ciphertext, &wrong).await.unwrap_err();
        assert_eq!(error.kind, KmsErrorKind::Invalid, "{error}");
    }
    let mut damaged = key.ciphertext.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let error = kms.decrypt(&damaged, &context("a")).await.unwrap_err();
    assert_eq!(error.kind, KmsErrorKind::Invalid, "{error}");

    let other = KmsKek::new(&connection, create_kms_key(&connection).await);
    let error = other.decrypt(&key.ciphertext, &context("a")).await.unwrap_err();
    assert_eq!(error.kind, KmsErrorKind::OtherKey, "{error}");

    let missing = KmsKek::new(&connection, "alias/strongroom-no-such-key");
    let error = missing.generate_data_key(&context("a")).await.unwrap_err();
    assert_eq!(error.kind, KmsErrorKind::Invalid, "{error}");
}

/// The crate itself never creates keys.
async fn create_kms_key(connection: &AwsConnection) -> String {
    let endpoint = connection.endpoint_url().unwrap();
    let config = aws_config::defaults(aws_config::BehaviorVersion::v2026_01_12())
        .region(aws_config::Region::new(connection.region().to_owned()))
        .endpoint_url(endpoint)
        .credentials_provider(aws_sdk_s3::config::Credentials::new("test", "test", None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .load()
        .await;
    let answer = aws_sdk_kms::Client::new(&config).create_key().send().await.unwrap();
    answer.key_metadata.unwrap().key_id
}
