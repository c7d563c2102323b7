//! The program on S3 and KMS as LocalStack knows them. Started by `localstack/up`, named by `STRONGROOM_TEST_S3_ENDPOINT`.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "tests fail by panicking, in helpers too")]

mod common;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Place, code, noise};
use serde_json::Value;

fn endpoint() -> String {
    std::env::var("STRONGROOM_TEST_S3_ENDPOINT").expect("STRONGROOM_TEST_S3_ENDPOINT: run localstack/up")
}

/// A prefix of its own for each test and run.
fn address() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let bucket = std::env::var("STRONGROOM_TEST_S3_BUCKET").unwrap_or_else(|_| "strongroom-test".to_owned());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("s3://{bucket}/program/{now}-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn place() -> Place {
    place_at(address())
}

fn place_at(address: String) -> Place {
    let environment = [
        ("AWS_ENDPOINT_URL", endpoint()),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
    ];
    Place::at(address, environment.map(|(name, value)| (name.to_owned(), value)).to_vec())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[test]
#[ignore = "needs LocalStack: run localstack/up"]
fn everything_works_on_s3() {
    let place = place();
    place.ran(&["target", "init", "--pack-mib", "1"]);
    assert_eq!(code(&place.run(&["target", "init"])), 4, "a target is not made twice");
    let image = place.path("image");
    let mut bytes = noise(5 << 20, 1);
    bytes[1 << 20..2 << 20].fill(0);
    std::fs::write(&image, &bytes).unwrap();
    let first = place.back_up(&image, "vm1");
    let old = bytes.clone();
    bytes[3 << 20..(3 << 20) + 100_000].copy_from_slice(&noise(100_000, 2));
    std::fs::write(&image, &bytes).unwrap();
    let second = place.back_up(&image, "vm1");

    let listed = json(&place.ran(&["ls", "--json"]));
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!((place.restored(&first) == old, place.restored("vm1@latest") == bytes), (true, true));
    let to = place.path("restored");
    place.ran(&["restore", &second, to.to_str().unwrap()]);
    assert!(std::fs::read(&to).unwrap() == bytes);
    let range = place.run(&["restore", &second, "-", "--range", "3145728+1000"]);
    assert!(range.stdout == bytes[3_145_728..3_146_728]);
    place.verified();

    let stats = json(&place.ran(&["stats", "--json"]));
    assert_eq!(stats["volumes"]["vm1"]["backups"], 2);
    let before = stats["stored_bytes"].as_u64().unwrap();

    place.ran(&["delete", &first]);
    place.ran(&["undelete", &first]);
    assert!(place.restored(&first) == old);
    place.ran(&["delete", &first]);
    place.collected();
    assert_eq!(code(&place.run(&["restore", &first, "-"])), 2, "gone for good");
    assert!(json(&place.ran(&["stats", "--json"]))["stored_bytes"].as_u64().unwrap() < before);

    place.ran(&["index", "rebuild"]);
    let again = json(&place.ran(&["backup", image.to_str().unwrap(), "--volume", "vm2", "--json"]));
    assert_eq!(again["new_chunks"], 0, "the rebuilt index knows every chunk");
    assert!(place.restored("vm1@latest") == bytes && place.restored("vm2@latest") == bytes);
    place.verified();
}

/// A request that an administrator would make, and the program itself never does.
fn administer(service: &str, arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "60"])
        .args(["--aws-sigv4", &format!("aws:amz:us-east-1:{service}"), "--user", "test:test"])
        .args(arguments)
        .output()
        .expect("curl");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Creates a key.
fn create_kms_key() -> String {
    let content = ["--data", "{}", "--header", "Content-Type: application/x-amz-json-1.1"];
    let action = ["--header", "X-Amz-Target: TrentService.CreateKey"];
    let answer = administer("kms", &[&content[..], &action, &[&endpoint()]].concat());
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs LocalStack: run localstack/up"]
fn a_kms_key_opens_the_target() {
    let place = place();
    let (key, other) = (create_kms_key(), create_kms_key());
    let run = |args: &[&str]| place.command(args).env_remove("STRONGROOM_KEY_FILE").output().unwrap();
    let well = |args: &[&str]| {
        let output = run(args);
        assert_eq!(code(&output), 0, "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    well(&["target", "init", "--kms-key", &key]);
    let bytes = noise(100_000, 3);
    let image = place.file("image", &bytes);
    well(&["backup", &image, "--volume", "v", "--kms-key", &key]);
    assert!(well(&["restore", "v@latest", "-", "--kms-key", &key]) == bytes);
    let shown = String::from_utf8(well(&["target", "show", "--kms-key", &key])).unwrap();
    assert!(shown.contains("AWS KMS"), "{shown}");
    // Rotated to another KMS key, and from there to a key file: the same data each time.
    well(&["target", "rotate", "--kms-key", &key, "--new-kms-key", &other]);
    assert!(well(&["restore", "v@latest", "-", "--kms-key", &other]) == bytes);
    let file = place.path("new-key").display().to_string();
    well(&["target", "rotate", "--kms-key", &other, "--new-key-file", &file]);
    assert!(well(&["restore", "v@latest", "-", "--key-file", &file]) == bytes);
    assert_eq!(code(&run(&["ls", "--kms-key", &other])), 5, "no wrap is left that it opens");
}

#[test]
#[ignore = "needs LocalStack: run localstack/up"]
fn restore_secrets_can_be_under_a_key_of_their_own() {
    let place = place();
    let (key, restore) = (create_kms_key(), create_kms_key());
    let run = |args: &[&str]| place.command(args).env_remove("STRONGROOM_KEY_FILE").output().unwrap();
    let (mut bytes, image) = (noise(100_000, 3), place.path("image").display().to_string());
    let keys = ["--kms-key", &key, "--restore-kms-key", &restore];
    let with = |args: &[&str], keys: &[&str]| run(&[args, keys].concat());
    assert_eq!(code(&with(&["target", "init"], &keys)), 0);
    // Who names one key only, or may use one only, backs up and keeps house, and can't read.
    for _ in 0..2 {
        bytes[7] ^= 1;
        place.file("image", &bytes);
        assert_eq!(code(&with(&["backup", &image, "--volume", "v"], &keys[..2])), 0);
        assert_eq!(code(&with(&["gc", "run"], &keys[..2])), 0);
    }
    let refused = with(&["restore", "v@latest", "-"], &keys[..2]);
    assert_eq!(code(&refused), 5, "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not the restore key"));
    assert!(with(&["restore", "v@latest", "-"], &keys).stdout == bytes);
    // Two targets' worth of keys in one keyring: each opens what it wraps.
    let other = create_kms_key();
    let rotated = with(&["target", "rotate", "--keep-old", "--new-kms-key", &other], &keys);
    assert_eq!(code(&rotated), 0, "{}", String::from_utf8_lossy(&rotated.stderr));
    for keys in [&keys[..], &["--kms-key", &other]] {
        assert!(with(&["restore", "v@latest", "-"], keys).stdout == bytes);
    }
}

#[test]
#[ignore = "needs LocalStack: run localstack/up"]
fn a_bucket_that_is_not_there_ends_with_5() {
    let place = place();
    let output = place.run(&["target", "init", "s3://no-such-bucket-of-ours/prefix"]);
    assert_eq!(code(&output), 5, "{}", String::from_utf8_lossy(&output.stderr));
    place.ran(&["target", "init"]);
    let elsewhere = address();
    let output = place.run(&["ls", "--target", &elsewhere]);
    assert_ne!(code(&output), 0, "no target there");
}

/// The keys of the delete markers, and of the other versions, that a bucket has under `packs/`.
fn pack_versions(bucket: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let listed = administer("s3", &[&format!("{bucket}?versions&prefix=packs/")]);
    let keys = |element: &str| {
        let (open, close) = (format!("<{element}>"), format!("</{element}>"));
        let entries = listed.split(&open).skip(1).filter_map(|rest| rest.split(&close).next());
        let key = |entry: &str| entry.split("<Key>").nth(1)?.split("</Key>").next().map(str::to_owned);
        entries.filter_map(key).collect()
    };
    (keys("DeleteMarker"), keys("Version"))
}

#[test]
#[ignore = "needs LocalStack: run localstack/up"]
fn what_is_under_object_lock_outlives_its_deletion() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let name = format!("strongroom-locked-{now}");
    let bucket = format!("{}/{name}", endpoint());
    administer("s3", &["--request", "PUT", "--header", "x-amz-bucket-object-lock-enabled: true", &bucket]);
    let rule = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
                <Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
    let put = ["--request", "PUT", "--data", rule, "--header", "Content-Type: application/xml"];
    administer("s3", &[&put[..], &[&format!("{bucket}?object-lock")]].concat());

    let place = place_at(format!("s3://{name}"));
    place.ran(&["target", "init", "--pack-mib", "1"]);
    let (old, new) = (noise(3 << 20, 1), noise(3 << 20, 2));
    let image = place.path("image");
    std::fs::write(&image, &old).unwrap();
    let first = place.back_up(&image, "v");
    let (_, of_first) = pack_versions(&bucket);
    std::fs::write(&image, &new).unwrap();
    place.back_up(&image, "v");

    // Collection is not kept from its work: what it deletes is hidden from then on.
    place.ran(&["delete", &first]);
    place.collected();
    assert_eq!(code(&place.run(&["restore", &first, "-"])), 2, "gone from the catalog");
    assert!(place.restored("v@latest") == new);
    place.verified();

    // And every byte of it is still there, for whoever takes the markers away.
    let (markers, versions) = pack_versions(&bucket);
    assert!(!of_first.is_empty() && markers == of_first, "{of_first:?} {markers:?}");
    assert!(versions.is_superset(&of_first), "{versions:?}");
    let locked = of_first.first().unwrap();
    let listed = administer("s3", &[&format!("{bucket}?versions&prefix={locked}")]);
    let version = listed.split("<Version>").nth(1).unwrap().split("<VersionId>").nth(1).unwrap();
    let version = version.split("</VersionId>").next().unwrap();
    let url = format!("{bucket}/{locked}?versionId={version}");
    let status = ["--no-fail", "--output", "/dev/null", "--write-out", "%{http_code}"];
    let refused = administer("s3", &[&status[..], &["--request", "DELETE", &url]].concat());
    assert_eq!(refused, "403", "nobody deletes a version under lock");
}
