//! Tells the program which commit it is built from: what `STRONGROOM_COMMIT` says, else git, else nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Digits of a commit's id, as many as are told.
const COMMIT_DIGITS: &str = "12";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=STRONGROOM_COMMIT");
    let told = std::env::var("STRONGROOM_COMMIT").ok().filter(|commit| !commit.is_empty());
    if let Some(commit) = told.or_else(commit_by_git) {
        println!("cargo::rustc-env=STRONGROOM_COMMIT={commit}");
    }
}

/// The commit that is checked out, if this is a checkout of our own. A source archive unpacked within somebody else's
/// repository has no commit.
fn commit_by_git() -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    if !root.join(".git").exists() {
        return None;
    }
    watch(root);
    git(root, &["rev-parse", &format!("--short={COMMIT_DIGITS}"), "HEAD"])
}

/// Has this run again when another commit is checked out, and only then. Files that are not there would have it run at
/// every build.
fn watch(root: &Path) {
    let path = |name: &str| git(root, &["rev-parse", "--git-path", name]).map(|path| root.join(path));
    let branch = git(root, &["symbolic-ref", "--quiet", "HEAD"]);
    let loose = branch.as_deref().and_then(path);
    // A branch has a file of its own, or a line among the packed ones and gets its file with the next commit.
    let branch_file = loose.map(|file| if file.exists() { file } else { parent(file) });
    for file in [path("HEAD"), branch_file, path("packed-refs")].into_iter().flatten() {
        if file.exists() {
            println!("cargo::rerun-if-changed={}", file.display());
        }
    }
}

fn parent(file: PathBuf) -> PathBuf {
    file.parent().map(Path::to_path_buf).unwrap_or(file)
}

fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
