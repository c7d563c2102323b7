//! Messages as every version once sent them: docs/versioning.md promises that a program of version N reads N−1.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use strongroom_fleet::message::{BadMessage, CommitMessage, MESSAGE_VERSION, Message, Request, RunMessage};

/// Reads a message of any kind, and what this program writes for it.
fn read(line: &str) -> Result<(), BadMessage> {
    fn again<M: Message + PartialEq + std::fmt::Debug>(line: &str) -> Result<(), BadMessage> {
        let message = M::from_json(line)?;
        assert_eq!(M::from_json(&message.to_json())?, message);
        Ok(())
    }
    let said: Value = serde_json::from_str(line).unwrap();
    if said.get("request").is_some() {
        again::<Request>(line)
    } else if said.get("run").is_some() {
        again::<RunMessage>(line)
    } else {
        again::<CommitMessage>(line)
    }
}

/// docs/versioning.md: "A program of version N reads messages of versions N and N−1."
#[test]
fn messages_of_this_version_and_the_one_before_are_read() {
    for version in MESSAGE_VERSION.saturating_sub(1).max(1)..=MESSAGE_VERSION {
        let path = format!("../../tests/fixtures/messages-v{version}/messages.jsonl");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let lines =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut kinds = BTreeSet::new();
        for line in lines.lines() {
            read(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let said: Value = serde_json::from_str(line).unwrap();
            assert_eq!(said["version"], version);
            let kind = said["request"]["type"].as_str().map(str::to_owned);
            kinds.insert(
                kind.unwrap_or_else(|| said["session"].as_str().map_or("run", |_| "commit").to_owned()),
            );
        }
        assert!(kinds.len() >= 16, "14 types of requests, runs and commits: {kinds:?}");
    }
}

/// docs/versioning.md: "A message of a newer version is refused with a word that says so."
#[test]
fn messages_of_a_newer_version_are_refused_by_name() {
    let newer = MESSAGE_VERSION + 1;
    let error =
        read(&format!(r#"{{"version":{newer},"run":"7d41d3a5a1a8a0e2f6b1c8d94e0f3a21"}}"#)).unwrap_err();
    assert!(error.to_string().contains(&format!("version {newer}")), "{error}");
}
