//! containerd for one import: a daemon of its own, with a configuration, a socket and a store inside the given directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::command::command;
use super::daemon::{self, Usage};

const START: Duration = Duration::from_secs(60);

pub struct Containerd {
    child: Child,
}

/// Its socket, inside the store.
pub fn socket(store: &Path) -> PathBuf {
    store.join("run/containerd.sock")
}

/// A client's command.
pub fn ctr<'a>(store: &Path, words: impl IntoIterator<Item = &'a str>) -> Command {
    let mut ctr = command("ctr", ["--address"]);
    ctr.arg(socket(store)).args(words);
    ctr
}

impl Containerd {
    /// Starts it and waits until it answers. It dies with us.
    pub fn start(store: &Path) -> Result<Self> {
        let run = store.join("run");
        fs::create_dir_all(&run)?;
        let settings = run.join("config.toml");
        let text = format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{run}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
            [grpc]\n  address = \"{socket}\"\n",
            root = store.join("root").display(),
            run = run.display(),
            socket = socket(store).display(),
        );
        fs::write(&settings, text)?;
        let log = run.join("log");
        let words = File::create(&log)?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig=KILL", "containerd", "--config"])
            .arg(&settings)
            .stdin(Stdio::null())
            .stdout(words.try_clone()?)
            .stderr(words)
            .spawn()
            .context("starting containerd")?;
        let mut containerd = Self { child };
        let started = Instant::now();
        while !ctr(store, ["version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("starting ctr")?
            .success()
        {
            if containerd.child.try_wait()?.is_some() || started.elapsed() > START {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!(
                    "containerd does not answer: {}",
                    said.lines().last().unwrap_or_default()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(containerd)
    }

    pub fn usage(&self) -> Result<Usage> {
        daemon::usage(self.child.id())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
