//! git: a repository that is committed to, cloned, packed and looked at, with the bytes of every file kept beside it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Load, Outcome, Rng, at, run};

pub struct Git {
    rng: Rng,
    files: BTreeMap<String, Vec<u8>>,
    commits: u64,
    head: String,
}

impl Git {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            files: BTreeMap::new(),
            commits: 0,
            head: String::new(),
        }
    }

    fn git(dir: &Path, words: &[&str]) -> Outcome<String> {
        let settings = [
            "user.name=Nobody",
            "user.email=nobody@example.org",
            // What a commit reported must survive the daemon.
            "core.fsync=all",
            "gc.auto=0",
            "safe.directory=*",
        ];
        let mut command = Command::new("git");
        for setting in settings {
            command.args(["-c", setting]);
        }
        command
            .args(words)
            .current_dir(dir)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1");
        run(&mut command)
    }

    /// Changes some files and commits; the books follow only when it is done.
    fn commit(&mut self, dir: &Path) -> Outcome {
        let mut files = self.files.clone();
        for _ in 0..1 + self.rng.below(8) {
            let name = format!("d{}/f{}", self.rng.below(6), self.rng.below(15));
            let path = dir.join(&name);
            if self.rng.below(5) == 0 && files.remove(&name).is_some() {
                at("remove", fs::remove_file(&path))?;
                continue;
            }
            let len = self.rng.below(20_000) >> self.rng.below(6);
            let bytes = self.rng.bytes(len);
            let parent = path.parent().expect("joined");
            at("mkdir", fs::create_dir_all(parent))?;
            at("write", fs::write(&path, &bytes))?;
            files.insert(name, bytes);
        }
        Self::git(dir, &["add", "-A"])?;
        let message = format!("commit {}", self.commits);
        Self::git(dir, &["commit", "-q", "--allow-empty", "-m", &message])?;
        let head = Self::git(dir, &["rev-parse", "HEAD"])?;
        self.head = head.trim().to_owned();
        self.files = files;
        self.commits += 1;
        Ok(())
    }

    fn fsck(dir: &Path) -> Outcome {
        Self::git(dir, &["fsck", "--full", "--strict"]).map(|_| ())
    }
}

impl Load for Git {
    fn name(&self) -> &'static str {
        "git"
    }

    fn prepare(&mut self, dir: &Path) -> Outcome {
        Self::git(dir, &["init", "-q", "-b", "main"])?;
        for _ in 0..6 {
            self.commit(dir)?;
        }
        Self::git(dir, &["gc", "-q"]).map(|_| ())
    }

    fn work(&mut self, dir: &Path) -> Outcome {
        self.commit(dir)?;
        match self.rng.below(12) {
            0 => Self::git(dir, &["gc", "-q"]).map(|_| ()),
            1 => {
                // Beside the repository: it would be untracked in it.
                let clone = dir.join(".git/clone");
                let to = clone.to_str().ok_or("a path in UTF-8")?;
                Self::git(dir, &["clone", "-q", "--no-local", ".", to])?;
                Self::fsck(&clone)?;
                at("remove", fs::remove_dir_all(&clone))
            }
            2 => {
                Self::git(dir, &["checkout", "-q", "HEAD~2"])?;
                Self::git(dir, &["checkout", "-q", "main"]).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    fn check(&mut self, dir: &Path) -> Outcome {
        let head = Self::git(dir, &["rev-parse", "HEAD"])?;
        if head.trim() != self.head {
            return Err(format!("HEAD is {head}, not {}", self.head));
        }
        let changed = Self::git(dir, &["status", "--porcelain"])?;
        if !changed.is_empty() {
            return Err(format!("changed without a commit: {changed}"));
        }
        let listed = Self::git(dir, &["ls-files"])?;
        let known: String = self.files.keys().map(|name| format!("{name}\n")).collect();
        if listed != known {
            return Err(format!("other files: {listed}"));
        }
        for (name, bytes) in &self.files {
            if at(name, fs::read(dir.join(name)))? != *bytes {
                return Err(format!("{name}: other bytes"));
            }
        }
        let count = Self::git(dir, &["rev-list", "--count", "HEAD"])?;
        if count.trim() != self.commits.to_string() {
            return Err(format!("{count} commits, not {}", self.commits));
        }
        Self::fsck(dir)
    }

    fn recover(&mut self, dir: &Path) -> Outcome {
        let _ = fs::remove_dir_all(dir.join(".git/clone"));
        // What a killed git leaves.
        for left in walkdir::WalkDir::new(dir.join(".git")) {
            let left = left.map_err(|e| format!("list: {e}"))?;
            let name = left.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".lock") || name == "packed-refs.new" {
                at("remove", fs::remove_file(left.path()))?;
            }
        }
        for left in ["index", "gc.pid"] {
            let _ = fs::remove_file(dir.join(".git").join(left));
        }
        Self::git(dir, &["symbolic-ref", "HEAD", "refs/heads/main"])?;
        let main = Self::git(dir, &["rev-parse", "main"])?;
        let before = Self::git(dir, &["rev-parse", "main~1"])?;
        if main.trim() != self.head && before.trim() != self.head {
            return Err(format!("main is {main}, and {} is lost", self.head));
        }
        let head = self.head.clone();
        Self::git(dir, &["reset", "-q", "--hard", &head])?;
        Self::git(dir, &["clean", "-fdxq"])?;
        self.check(dir)
    }
}
