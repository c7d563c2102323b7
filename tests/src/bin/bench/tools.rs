//! How each tool is told to do each step.
//!
//! Invariant: all get the image on standard input, as from a block device, so that nobody may skip by a file's time; caches
//! and homes are in the place, so that nothing carries over from one repetition to the next.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::server::{Place, Repository};

/// The name of the image inside a repository.
const IMAGE: &str = "disk.img";

/// A tool to measure.
#[derive(Debug, Clone)]
pub struct Tool {
    /// Its column's heading.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Strongroom,
    Restic,
    Rustic,
    Borg,
}

impl Tool {
    /// Ours.
    pub fn strongroom(program: PathBuf) -> Self {
        Self { name: "strongroom".to_owned(), program, kind: Kind::Strongroom }
    }

    /// A peer from `NAME=PATH`.
    pub fn peer(text: &str) -> Result<Self> {
        let (name, program) = text.split_once('=').context("a peer is given as NAME=PATH")?;
        let kind = match name {
            "restic" => Kind::Restic,
            "rustic" => Kind::Rustic,
            "borg" => Kind::Borg,
            _ => bail!("no peer '{name}' is known; say restic=PATH, rustic=PATH or borg=PATH"),
        };
        Ok(Self { name: name.to_owned(), program: PathBuf::from(program), kind })
    }

    /// Tells ours from the peers.
    pub fn is_ours(&self) -> bool {
        self.kind == Kind::Strongroom
    }

    /// Tells whether it can store in S3.
    pub fn knows_s3(&self) -> bool {
        self.kind != Kind::Borg
    }

    fn command(&self, place: &Place) -> Result<Command> {
        let mut command = Command::new(&self.program);
        let cache = place.folder.join("cache");
        command.env("HOME", place.folder.join("home")).env("XDG_CACHE_HOME", &cache);
        command.env("XDG_CONFIG_HOME", place.folder.join("home"));
        if let Some((access, secret)) = place.credentials {
            command.env("AWS_ACCESS_KEY_ID", access).env("AWS_SECRET_ACCESS_KEY", secret);
            command.env("AWS_REGION", "us-east-1").env("AWS_DEFAULT_REGION", "us-east-1");
        }
        match (self.kind, &place.repository) {
            (Kind::Strongroom, repository) => {
                command.env("STRONGROOM_KEY_FILE", place.folder.join("key")).arg("--quiet");
                match repository {
                    Repository::Folder(path) => {
                        command.env("STRONGROOM_TARGET", format!("file://{}", path.display()));
                    }
                    Repository::S3 { endpoint, bucket, prefix } => {
                        command.env("STRONGROOM_TARGET", format!("s3://{bucket}/{prefix}"));
                        command.env("AWS_ENDPOINT_URL", endpoint);
                    }
                }
            }
            (Kind::Restic, repository) => {
                let repository = match repository {
                    Repository::Folder(path) => path.display().to_string(),
                    Repository::S3 { endpoint, bucket, prefix } => format!("s3:{endpoint}/{bucket}/{prefix}"),
                };
                command.env("RESTIC_REPOSITORY", repository).env("RESTIC_PASSWORD", "bench").arg("--quiet");
            }
            (Kind::Rustic, repository) => {
                let profile = place.folder.join("rustic");
                std::fs::write(profile.with_extension("toml"), rustic_profile(repository, place)?)?;
                command.arg("--use-profile").arg(profile).arg("--no-progress");
            }
            (Kind::Borg, Repository::Folder(path)) => {
                command.env("BORG_REPO", path).env("BORG_PASSPHRASE", "bench").env("BORG_BASE_DIR", &cache);
            }
            (Kind::Borg, Repository::S3 { .. }) => bail!("borg knows no S3"),
        }
        Ok(command)
    }

    /// Makes the repository.
    pub fn init(&self, place: &Place) -> Result<Command> {
        let mut command = self.command(place)?;
        match self.kind {
            Kind::Strongroom => command.args(["target", "init"]),
            Kind::Restic | Kind::Rustic => command.arg("init"),
            Kind::Borg => command.args(["init", "--encryption", "repokey-blake2"]),
        };
        Ok(command)
    }

    /// Backs up an image from standard input, as the next state of a volume. `tag` finds it again.
    pub fn backup(&self, place: &Place, volume: &str, tag: &str) -> Result<Command> {
        let mut command = self.command(place)?;
        match self.kind {
            Kind::Strongroom => command.args(["backup", "-", "--volume", volume]),
            Kind::Restic => command
                .args(["backup", "--stdin", "--stdin-filename", IMAGE, "--host", volume])
                .args(["--tag", tag]),
            // --force: with a parent, rustic 0.11.4 takes changed standard input for unchanged and stores old content.
            Kind::Rustic => command
                .args(["backup", "--force", "--stdin-filename", IMAGE, "--host", volume])
                .args(["--tag", tag, "-"]),
            Kind::Borg => command.args(["create", "--stdin-name", IMAGE, &format!("::{tag}"), "-"]),
        };
        Ok(command)
    }

    /// Restores what was backed up under a tag; `said` is what that backup said on standard output.
    pub fn restore(&self, place: &Place, tag: &str, said: &str, into: &Path) -> Result<Command> {
        let mut command = self.command(place)?;
        match self.kind {
            Kind::Strongroom => command.args(["restore", said.trim()]).arg(into.join(IMAGE)),
            Kind::Restic => {
                command.args(["restore", "latest", "--tag", tag, "--sparse", "--target"]).arg(into)
            }
            Kind::Rustic => {
                command.args(["restore", "latest", "--filter-tags", tag, "--sparse", "by-content"]).arg(into)
            }
            Kind::Borg => command.args(["extract", "--sparse", &format!("::{tag}")]).current_dir(into),
        };
        Ok(command)
    }

    /// Reads and checks all data.
    pub fn check(&self, place: &Place) -> Result<Command> {
        let mut command = self.command(place)?;
        match self.kind {
            Kind::Strongroom => command.args(["verify", "--full"]),
            Kind::Restic | Kind::Rustic => command.args(["check", "--read-data"]),
            Kind::Borg => command.args(["check", "--verify-data"]),
        };
        Ok(command)
    }
}

/// Rustic takes S3 settings from a file only.
fn rustic_profile(repository: &Repository, place: &Place) -> Result<String> {
    let cache = place.folder.join("cache");
    let general = format!("[repository]\npassword = \"bench\"\ncache-dir = {cache:?}\n");
    Ok(match repository {
        Repository::Folder(path) => format!("{general}repository = {path:?}\n"),
        Repository::S3 { endpoint, bucket, prefix } => {
            let mut text = format!(
                "{general}repository = \"opendal:s3\"\n[repository.options]\nbucket = {bucket:?}\nroot = \"/{prefix}\"\n\
                 endpoint = {endpoint:?}\nregion = \"us-east-1\"\n"
            );
            if let Some((access, secret)) = place.credentials {
                text.push_str(&format!("access_key_id = {access:?}\nsecret_access_key = {secret:?}\n"));
            }
            text
        }
    })
}
