//! Metadata work in this process, one system call after another: what small programs do to many files.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const FILES_PER_DIRECTORY: usize = 1000;

pub fn stat(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        fs::symlink_metadata(path).with_context(|| format!("stat {}", path.display()))?;
    }
    Ok(())
}

/// Opens, reads with one read (small files fit) and closes.
pub fn read(paths: &[PathBuf]) -> Result<()> {
    let mut buffer = vec![0; 16 << 10];
    for path in paths {
        let n = File::open(path).and_then(|mut file| file.read(&mut buffer));
        let n = n.with_context(|| format!("reading {}", path.display()))?;
        anyhow::ensure!(n > 0, "{} reads as empty", path.display());
    }
    Ok(())
}

/// Names for `count` files below `dir`, whose directories are made.
pub fn names(dir: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let mut names = Vec::with_capacity(count);
    for number in 0..count {
        let sub = dir.join(format!("n{:02}", number / FILES_PER_DIRECTORY));
        if number % FILES_PER_DIRECTORY == 0 {
            fs::create_dir_all(&sub)?;
        }
        names.push(sub.join(format!("f{number:05}")));
    }
    Ok(names)
}

pub fn create(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        File::create_new(path).with_context(|| format!("creating {}", path.display()))?;
    }
    Ok(())
}

/// Gives each file another name beside it.
pub fn rename(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut renamed = Vec::with_capacity(paths.len());
    for path in paths {
        let to = path.with_extension("renamed");
        fs::rename(path, &to).with_context(|| format!("renaming {}", path.display()))?;
        renamed.push(to);
    }
    Ok(renamed)
}

pub fn unlink(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        fs::remove_file(path).with_context(|| format!("unlinking {}", path.display()))?;
    }
    Ok(())
}

pub fn chmod(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("chmod {}", path.display()))?;
    }
    Ok(())
}

pub fn append(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        let file = OpenOptions::new().append(true).open(path);
        let done = file.and_then(|mut file| file.write_all(b"x"));
        done.with_context(|| format!("appending to {}", path.display()))?;
    }
    Ok(())
}

/// Changes the first byte of a file and waits until that is on disk.
pub fn change_one_byte(path: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(b"x", 0)?;
    Ok(file.sync_all()?)
}

/// A file of `bytes` bytes, on disk.
pub fn filled(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let block = vec![b'.'; 1 << 20];
    for _ in 0..bytes >> 20 {
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

/// Lists a directory and counts.
pub fn entries(dir: &Path) -> Result<usize> {
    let list = fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    let mut count = 0;
    for entry in list {
        entry.with_context(|| format!("listing {}", dir.display()))?;
        count += 1;
    }
    Ok(count)
}

/// Reads a file once, so that it is cached.
pub fn warm(path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// The regular files below `dir`.
pub fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(dir).sort_by_file_name() {
        let entry = entry?;
        if entry.file_type().is_file() {
            files.push(entry.into_path());
        }
    }
    Ok(files)
}
