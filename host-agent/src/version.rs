//! What `--version` tells: the version, the commit it was built from, and the newest formats it reads and writes.

use std::sync::LazyLock;

use strongroom_catalog::root::Root;
use strongroom_format::FORMAT_VERSION;
use strongroom_format::manifest::Manifest;
use strongroom_format::seal::SealedBody;

static TEXT: LazyLock<String> = LazyLock::new(|| {
    // Set by build.rs; not set where neither git nor who built it knew.
    let commit = match option_env!("STRONGROOM_COMMIT") {
        Some(commit) => format!("commit {commit}"),
        None => "unknown commit".to_owned(),
    };
    let (version, root, manifest) =
        (env!("CARGO_PKG_VERSION"), Root::NEWEST_VERSION, Manifest::NEWEST_VERSION);
    format!("{version} ({commit}, format {FORMAT_VERSION}, root {root}, manifest {manifest})")
});

/// The version as told to users, such as `0.1.0 (commit 8e286af53c21, format 1, root 2, manifest 2)`.
pub fn text() -> &'static str {
    &TEXT
}
