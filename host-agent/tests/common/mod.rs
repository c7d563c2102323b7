//! What the tests of the program share: a folder with a target, a key and a cache, and ways to run the program there.

#![allow(dead_code, unreachable_pub, reason = "each test program uses another part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder for one test, with a target in it or elsewhere.
pub struct Place {
    folder: tempfile::TempDir,
    target: Option<String>,
    environment: Vec<(String, String)>,
}

impl Place {
    /// A place with a target in its folder.
    pub fn new() -> Self {
        let place = Self::bare();
        place.ran(&["target", "init", "--pack-mib", "1"]);
        place
    }

    /// A place whose target is still to be made.
    pub fn bare() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), target: None, environment: Vec::new() }
    }

    /// The same with a target elsewhere, and what the environment says about it.
    pub fn at(target: String, environment: Vec<(String, String)>) -> Self {
        Self { target: Some(target), environment, ..Self::bare() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the folder.
    pub fn file(&self, name: &str, content: &[u8]) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name).display().to_string()
    }

    /// A command in an environment that has nothing of this machine's but what finds other programs.
    pub fn command(&self, args: &[&str]) -> Command {
        let in_folder = || format!("file://{}", self.path("target").display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        command
            .args(args)
            .env_clear()
            .env("STRONGROOM_TARGET", self.target.clone().unwrap_or_else(in_folder))
            .env("STRONGROOM_KEY_FILE", self.path("key"))
            .env("STRONGROOM_CACHE_DIR", self.path("cache"))
            .env("STRONGROOM_STATE_DIR", self.path("state"))
            .env("STRONGROOM_HOST", "test-host")
            .envs(self.environment.clone())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that has to end well, and gives what it printed.
    pub fn ran(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(code(&output), 0, "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn back_up(&self, image: &Path, volume: &str) -> String {
        self.ran(&["backup", image.to_str().unwrap(), "--volume", volume]).trim().to_owned()
    }

    pub fn restored(&self, backup: &str) -> Vec<u8> {
        let output = self.run(&["restore", backup, "-"]);
        assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    pub fn verified(&self) {
        let output = self.run(&["verify", "--full"]);
        assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stdout));
    }

    /// Collects without any grace, until what nothing needs is gone.
    pub fn collected(&self) {
        for _ in 0..3 {
            self.ran(&["gc", "run", "--grace", "0s", "--orphan-age", "0s", "--session-age", "0s"]);
        }
    }
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// All files below a folder.
pub fn walk(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

/// A filesystem in a file, mounted until this is dropped. Needs root and loop devices.
pub struct Mount(PathBuf);

impl Mount {
    /// Makes one of a kind, such as xfs, in a file of its own.
    pub fn make(file: &Path, folder: &Path, kind: &str) -> Self {
        std::fs::File::create(file).unwrap().set_len(512 << 20).unwrap();
        std::fs::create_dir_all(folder).unwrap();
        let (file, point) = (file.to_str().unwrap(), folder.to_str().unwrap());
        ran(&format!("mkfs.{kind}"), &["-q", file]);
        ran("mount", &["-o", "loop", file, point]);
        Self(folder.to_owned())
    }

    /// Unmounts it, which fails as long as anything in it is open.
    pub fn unmount(self) {
        ran("umount", &[self.0.to_str().unwrap()]);
        std::mem::forget(self);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Runs a program, which must succeed.
pub fn ran(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}
