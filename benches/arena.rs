//! The file system everything is measured on: ext4 with a journal, in a file, on a loop device, mounted in a temporary
//! directory.
//!
//! Nothing of it survives: the benchmark runs in a mount namespace of its own, the image file is unlinked as soon as it
//! is mounted, and the loop device frees itself with the last unmount, whether this process returns, panics or is
//! killed; no process that keeps the mount outlives it either (see `place`).

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::UnmountFlags;

use super::command::{command, output, run};

pub struct Arena {
    at: PathBuf,
    /// Its root, to sync it by; gone before unmounting.
    root: Option<File>,
}

impl Arena {
    /// `sparse` saves the time of writing the image file, at the price of figures that mean less.
    pub fn new(bytes: u64, inodes: u64, sparse: bool) -> Result<Self> {
        // Our own (see `place`); a short name, because podman refuses long ones.
        let dir = std::env::temp_dir();
        let image = dir.join("disk");
        match sparse {
            true => File::create_new(&image)
                .and_then(|file| file.set_len(bytes))
                .map_err(Into::into),
            false => write_zeros(&image, bytes),
        }
        .context("making the disk image; TMPDIR can name a roomier place")?;
        let at = dir.join("mnt");
        fs::create_dir(&at)?;
        // Lazy initialisation would go on in the background of the first minutes.
        let options = [
            "-q",
            "-F",
            "-O",
            "has_journal",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
        ];
        run(command("mkfs.ext4", options)
            .args(["-N", &inodes.to_string()])
            .arg(&image))?;
        run(command("mount", ["-o", "loop"]).arg(&image).arg(&at))?;
        let mut arena = Self { at, root: None };
        fs::remove_file(&image)?;
        arena.root = Some(File::open(&arena.at)?);
        let device = output(command("findmnt", ["-n", "-o", "SOURCE"]).arg(&arena.at))?;
        // Else everything is cached twice, and "cold" is a copy from the page cache.
        run(&mut command("losetup", ["--direct-io=on", device.trim()]))?;
        Ok(arena)
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    /// A message without this machine's paths.
    pub fn hidden(&self, words: &str) -> String {
        let mut words = words
            .replace(&*self.at.to_string_lossy(), "ARENA")
            .replace(super::systems::OVL, "ovl")
            .replace(env!("CARGO_MANIFEST_DIR"), "REPOSITORY");
        for (name, sign) in [("OVL_CACHE", "CACHE"), ("HOME", "~")] {
            let path = std::env::var(name).unwrap_or_default();
            if path.len() > 1 {
                words = words.replace(&path, sign);
            }
        }
        words
    }

    /// Writes out what earlier work left dirty, so that it is not charged to the next.
    pub fn settle(&self) -> Result<()> {
        Ok(rustix::fs::syncfs(
            self.root.as_ref().context("the arena is mounted")?,
        )?)
    }

    /// Makes the next access cold: page cache, names and inodes.
    pub fn drop_caches(&self) -> Result<()> {
        self.settle()?;
        fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches")
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.root = None;
        if rustix::mount::unmount(&self.at, UnmountFlags::empty()).is_err() {
            // Somebody of ours is still in it; the mount goes with the last of them.
            let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
        }
    }
}

/// Written, not merely reserved: the first write to a reserved block costs more than the later ones.
fn write_zeros(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create_new(path)?;
    let zeros = vec![0; 4 << 20];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(zeros.len() as u64);
        file.write_all(&zeros[..usize::try_from(n)?])?;
        left -= n;
    }
    Ok(file.sync_all()?)
}
