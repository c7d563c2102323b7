//! Where settings come from, which of them wins, and how the program ends that can't go on.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "tests fail by panicking, in helpers too")]

mod common;

use common::{Place, code, noise};
use serde_json::Value;

/// Three targets in one folder, each with a key of its own and a volume named after it.
fn three_targets() -> Place {
    let place = Place::bare();
    let image = place.file("image", &noise(10_000, 1));
    for name in ["flag", "env", "file"] {
        let target = format!("file://{}", place.path(name).display());
        let key = place.path(&format!("key-{name}"));
        let with = ["--target", &target, "--key-file", key.to_str().unwrap()];
        place.ran(&[&["target", "init"], with.as_slice()].concat());
        place.ran(&[&["backup", &image, "--volume", name], with.as_slice()].concat());
    }
    place
}

/// docs/operations.md: "Flags win over the environment, the environment over the configuration file".
#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let place = three_targets();
    let address = |name: &str| format!("file://{}", place.path(name).display());
    let key = |name: &str| place.path(&format!("key-{name}")).display().to_string();
    let text =
        format!("target = {:?}\nkey-file = {:?}\nhost = \"of-the-file\"\n", address("file"), key("file"));
    let config = place.file("config.toml", text.as_bytes());
    let volume_seen = |environment: &[(&str, &str)], args: &[&str]| {
        let mut command = place.command(&[args, &["ls", "--json"]].concat());
        command.env_remove("STRONGROOM_TARGET").env_remove("STRONGROOM_KEY_FILE");
        command.env("STRONGROOM_CONFIG", &config).envs(environment.iter().copied());
        let output = command.output().unwrap();
        assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
        listed[0]["volume"].as_str().unwrap().to_owned()
    };
    let (env_target, env_key) = (address("env"), key("env"));
    let environment = [("STRONGROOM_TARGET", env_target.as_str()), ("STRONGROOM_KEY_FILE", env_key.as_str())];
    let (flag_target, flag_key) = (address("flag"), key("flag"));
    let flags = ["--target", flag_target.as_str(), "--key-file", flag_key.as_str()];
    assert_eq!(volume_seen(&[], &[]), "file");
    assert_eq!(volume_seen(&environment, &[]), "env");
    assert_eq!(volume_seen(&environment, &flags), "flag");
    assert_eq!(volume_seen(&[], &flags), "flag");
}

/// docs/operations.md: "a second's worth goes at once".
#[test]
fn bandwidth_is_limited_by_flag_and_by_the_configuration_file() {
    let place = Place::new();
    let image = place.file("image", &noise(3 << 20, 1));
    let seconds = |args: &[&str]| {
        let begun = std::time::Instant::now();
        place.ran(args);
        begun.elapsed().as_secs_f64()
    };
    // 3 MiB that do not compress at 1 MiB a second: two seconds more than the first one.
    let took = seconds(&["backup", &image, "--volume", "a", "--upload-limit", "1MiB"]);
    assert!(took >= 1.9, "{took}");
    let config = place.file("config.toml", b"download-limit = \"1MiB\"\n");
    let to = place.path("restored").display().to_string();
    let took = seconds(&["restore", "a@latest", &to, "--config", &config]);
    assert!(took >= 1.9, "{took}");
    assert!(std::fs::read(&to).unwrap() == std::fs::read(&image).unwrap());
    let wrong = place.file("wrong.toml", b"upload-limit = \"fast\"\n");
    let output = place.run(&["ls", "--config", &wrong]);
    assert_eq!(code(&output), 2);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("upload-limit") && said.contains("20MiB"), "{said}");
}

#[test]
fn named_targets_bring_their_own_settings() {
    let place = three_targets();
    let mut text = "target = \"file\"\n".to_owned();
    for name in ["flag", "env", "file"] {
        text.push_str(&format!(
            "[targets.{name}]\ntarget = \"file://{}\"\nkey-file = {:?}\n",
            place.path(name).display(),
            place.path(&format!("key-{name}"))
        ));
    }
    let config = place.file("config.toml", text.as_bytes());
    let run = |args: &[&str]| {
        let mut command = place.command(args);
        command.env_remove("STRONGROOM_TARGET").env_remove("STRONGROOM_KEY_FILE");
        command.args(["--config", &config]).output().unwrap()
    };
    let volume = |output: std::process::Output| {
        assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
        listed[0]["volume"].as_str().unwrap().to_owned()
    };
    assert_eq!(volume(run(&["ls", "--json"])), "file");
    assert_eq!(volume(run(&["ls", "--json", "--target", "env"])), "env");
    let listed = run(&["target", "list"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(["flag", "env", "file"].iter().all(|name| listed.contains(name)), "{listed}");
    assert_eq!(code(&run(&["ls", "--target", "nowhere"])), 2);
    // A word that is none is refused, not dropped.
    let config = place.file("config.toml", b"taregt = \"file\"\n");
    let output = place.command(&["ls", "--config", &config]).output().unwrap();
    assert_eq!(code(&output), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("taregt"));
}

#[test]
fn a_wrong_or_missing_key_opens_nothing() {
    let place = Place::new();
    let wrong = place.file("wrong", format!("strongroom-key-v1 {}\n", "cd".repeat(32)).as_bytes());
    let output = place.run(&["ls", "--key-file", &wrong]);
    assert_eq!(code(&output), 5);
    assert!(String::from_utf8_lossy(&output.stderr).contains("key"), "the message says what is wrong");
    let words = place.file("words", b"a passphrase that never opened it\n");
    let mut command = place.command(&["ls", "--passphrase-file", &words]);
    assert_eq!(code(&command.env_remove("STRONGROOM_KEY_FILE").output().unwrap()), 5);
    let garbage = place.file("garbage", b"no key\n");
    assert_eq!(code(&place.run(&["ls", "--key-file", &garbage])), 2);
    assert_eq!(code(&place.command(&["ls"]).env_remove("STRONGROOM_KEY_FILE").output().unwrap()), 2);
}

#[test]
fn a_passphrase_opens_what_it_made() {
    let place = Place::bare();
    let words = place.file("words", b"correct horse battery staple\n");
    let run = |args: &[&str], environment: &[(&str, &str)]| {
        let mut command = place.command(args);
        command.env_remove("STRONGROOM_KEY_FILE").envs(environment.iter().copied()).output().unwrap()
    };
    assert_eq!(code(&run(&["target", "init", "--passphrase-file", &words], &[])), 0);
    let bytes = noise(50_000, 4);
    let image = place.file("image", &bytes);
    let in_env = [("STRONGROOM_PASSPHRASE", "correct horse battery staple")];
    assert_eq!(code(&run(&["backup", &image, "--volume", "v"], &in_env)), 0);
    assert_eq!(run(&["restore", "v@latest", "-", "--passphrase-file", &words], &[]).stdout, bytes);
    assert_eq!(code(&run(&["ls"], &[("STRONGROOM_PASSPHRASE", "wrong")])), 5);
}

/// docs/operations.md: "A retention run refuses to remove more than 100 backups or a fifth of them, whichever is more,
/// without `--max-removals`."
#[test]
fn retention_refuses_to_remove_too_much() {
    let place = Place::new();
    let image = place.file("image", &noise(5000, 2));
    for _ in 0..4 {
        place.ran(&["backup", &image, "--volume", "v"]);
    }
    let live = || place.ran(&["ls"]).lines().count();
    let refused = place.run(&["retention", "run", "--keep-last", "1", "--max-removals", "2"]);
    assert_eq!((code(&refused), live()), (4, 4));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("max-removals"),
        "the message says how to insist"
    );
    place.ran(&["retention", "run", "--keep-last", "1", "--max-removals", "2", "--dry-run"]);
    assert_eq!(live(), 4);
    place.ran(&["retention", "run", "--keep-last", "1", "--max-removals", "3"]);
    assert_eq!(live(), 1);
}

#[test]
fn an_endpoint_that_nobody_answers_at_ends_with_5() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let environment = [
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let place = Place::at("s3://bucket/prefix".to_owned(), environment);
    place.file("key", format!("strongroom-key-v1 {}\n", "ab".repeat(32)).as_bytes());
    let output = place.run(&["ls"]);
    assert_eq!(code(&output), 5, "{}", String::from_utf8_lossy(&output.stderr));
}

/// docs/operations.md: exit code 5 when the target can't be reached; soon, where nothing ever answered.
#[test]
fn an_endpoint_that_refuses_connections_ends_with_5_and_advice() {
    // A port that was just free: nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let environment =
        [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let place = Place::at("s3://nowhere/prefix".to_owned(), environment);
    place.file("key", format!("{}\n", "0".repeat(64)).as_bytes());
    let output = place.run(&["ls", "--endpoint-url", &endpoint]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(code(&output), 5, "{said}");
    assert!(said.contains("check the target's address, its endpoint URL"), "{said}");
    assert!(said.contains("Connection refused") && !said.contains("DispatchFailure("), "{said}");
}

/// An old root is put back over a newer one: it opens, and nothing in the target tells.
#[test]
fn a_catalog_that_was_put_back_is_refused_until_it_is_accepted() {
    let place = Place::bare();
    let image = place.file("image", &noise(10_000, 1));
    place.ran(&["target", "init"]);
    place.ran(&["backup", &image, "--volume", "db"]);
    let root = place.path("target").join("root");
    let old = std::fs::read(&root).unwrap();
    place.ran(&["backup", &image, "--volume", "db"]);
    let new = std::fs::read(&root).unwrap();
    std::fs::write(&root, old).unwrap();
    for args in [
        vec!["ls"],
        vec!["backup", &image, "--volume", "db"],
        vec!["gc", "run"],
        vec!["retention", "run", "--keep-last", "1"],
        vec!["index", "rebuild"],
        vec!["target", "show"],
    ] {
        let output = place.run(&args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(code(&output), 4, "{args:?}: {text}");
        assert!(text.contains("accept-rollback"), "{args:?}: {text}");
    }
    // A host that has seen nothing newer can't tell.
    let mut elsewhere = place.command(&["ls"]);
    elsewhere.env("STRONGROOM_STATE_DIR", place.path("other-state"));
    assert_eq!(code(&elsewhere.output().unwrap()), 0);
    // Back again by itself: nothing to accept.
    std::fs::write(&root, &new).unwrap();
    assert_eq!(place.ran(&["ls"]).lines().count(), 2);
    std::fs::write(
        &root,
        std::fs::read(place.path("target").join("roots").join(first_copy(&place))).unwrap(),
    )
    .unwrap();
    assert_eq!(code(&place.run(&["ls"])), 4);
    place.ran(&["target", "accept-rollback"]);
    place.ran(&["ls"]);
    // A rebuild after the root was lost is no step back.
    std::fs::remove_file(&root).unwrap();
    place.ran(&["index", "rebuild"]);
    place.ran(&["ls"]);
    place.ran(&["backup", &image, "--volume", "db"]);
}

/// The name of the copy of an earlier root.
fn first_copy(place: &Place) -> String {
    let names = std::fs::read_dir(place.path("target").join("roots")).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).min().unwrap()
}
