//! What packages take from the program itself: its version, manual pages, completions.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Place, code, walk};
use strongroom_catalog::root::Root;
use strongroom_format::FORMAT_VERSION;
use strongroom_format::manifest::Manifest;
use strongroom_format::seal::SealedBody;

/// docs/versioning.md: "`strongroom --version` tells the version, the commit, and the newest version of each format."
#[test]
fn the_version_tells_commit_and_formats() {
    let place = Place::bare();
    let told = place.ran(&["--version"]);
    let rest = told.trim_end().strip_prefix(concat!("strongroom ", env!("CARGO_PKG_VERSION"), " (")).unwrap();
    let (root, manifest) = (Root::NEWEST_VERSION, Manifest::NEWEST_VERSION);
    let formats = format!(", format {FORMAT_VERSION}, root {root}, manifest {manifest})");
    let commit = rest.strip_suffix(formats.as_str()).unwrap();

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let git = Command::new("git").arg("-C").arg(root).args(["rev-parse", "HEAD"]).output();
    let head = git.ok().filter(|git| git.status.success() && root.join(".git").exists());
    match (option_env!("STRONGROOM_COMMIT"), head) {
        (Some(built_from), None) => assert_eq!(commit, format!("commit {built_from}")),
        (None, None) => assert_eq!(commit, "unknown commit"),
        // Whoever builds may say something else than git, with a word behind it for what is not committed.
        (_, Some(head)) => {
            let digits = commit.strip_prefix("commit ").unwrap();
            let digits = digits.strip_suffix("-changed").unwrap_or(digits);
            assert_eq!(digits.len(), 12, "{told}");
            if std::env::var_os("STRONGROOM_COMMIT").is_none() {
                let head = String::from_utf8(head.stdout).unwrap();
                assert!(head.starts_with(digits), "built from {digits}, checked out is {head}");
            }
        }
    }
    assert_eq!(place.ran(&["backup", "-V"]).split_once(' ').unwrap().1, told.split_once(' ').unwrap().1);
}

#[test]
fn every_command_has_a_manual_page() {
    let place = Place::bare();
    let folder = place.path("made/man1");
    place.ran(&["man", folder.to_str().unwrap()]);
    let pages: Vec<String> =
        walk(&folder).iter().map(|page| page.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    for command in ["", "-demo", "-backup", "-target-init", "-gc-run", "-request-volume-delete", "-agent"] {
        assert!(pages.contains(&format!("strongroom{command}.1")), "{command}: {pages:?}");
    }
    assert!(!pages.contains(&"strongroom-man.1".to_owned()), "hidden");
    let page = std::fs::read_to_string(folder.join("strongroom-backup.1")).unwrap();
    for wanted in [".TH strongroom-backup 1", "STRONGROOM_TARGET", "\\-\\-volume", "format 1"] {
        assert!(page.contains(wanted), "{wanted}: {page}");
    }
    // A file is in the way.
    let blocked = place.file("blocked", b"");
    assert_eq!(code(&place.run(&["man", &blocked])), 1);
}

#[test]
fn completions_know_the_commands() {
    let place = Place::bare();
    for shell in ["bash", "zsh", "fish"] {
        let script = place.ran(&["completions", shell]);
        assert!(script.contains("retention") && script.contains("upload-limit"), "{shell}");
    }
}
