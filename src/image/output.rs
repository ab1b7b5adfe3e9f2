//! Output that appears whole or not at all: written under a temporary name beside its place, renamed when complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::write_out::WriteOut;
use super::{Error, Result};

/// A file to be. What is no regular file (a pipe, a terminal) is written to as it is.
pub struct OutputFile {
    file: Output,
    path: PathBuf,
    /// Temporary name, removed unless published.
    temporary: Option<PathBuf>,
}

enum Output {
    AsItIs(File),
    Temporary(WriteOut),
}

impl OutputFile {
    pub fn create(path: &Path) -> Result<Self> {
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {
                return Err(Error::Exists {
                    path: path.to_owned(),
                });
            }
            Ok(meta) if !meta.is_file() => {
                let file = File::options()
                    .write(true)
                    .open(path)
                    .map_err(Error::io(path))?;
                return Ok(Self {
                    file: Output::AsItIs(file),
                    path: path.to_owned(),
                    temporary: None,
                });
            }
            _ => {}
        }
        // The file behind a symlink is replaced, not the symlink.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let (temporary, file) = beside(&path, |temporary| File::create_new(temporary))?;
        Ok(Self {
            file: Output::Temporary(WriteOut::new(file)),
            path,
            temporary: Some(temporary),
        })
    }

    pub fn writer(&mut self) -> &mut dyn Write {
        match &mut self.file {
            Output::AsItIs(file) => file,
            Output::Temporary(file) => file,
        }
    }

    /// Makes it appear, safely on the disk.
    pub fn publish(mut self) -> Result<()> {
        let (Some(temporary), Output::Temporary(file)) = (&self.temporary, &mut self.file) else {
            return Ok(());
        };
        file.sync().map_err(Error::io(temporary))?;
        fs::rename(temporary, &self.path).map_err(Error::io(&self.path))?;
        self.temporary = None;
        sync_parent(&self.path)
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nothing more can be done about a file that cannot be removed.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// A directory to be; its place must be free, or an empty directory.
pub struct OutputDir {
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl OutputDir {
    pub fn create(path: &Path) -> Result<Self> {
        match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => {
                return Err(Error::Exists {
                    path: path.to_owned(),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(Error::Exists {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Err(Error::io(path)(error)),
        }
        let (temporary, ()) = beside(path, |temporary| fs::create_dir(temporary))?;
        Ok(Self {
            path: path.to_owned(),
            temporary: Some(temporary),
        })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.temporary.as_deref().unwrap_or(&self.path)
    }

    pub fn publish(&mut self) -> Result<()> {
        if let Some(temporary) = &self.temporary {
            // Replaces an empty directory, and fails if it is not empty any more.
            fs::rename(temporary, &self.path).map_err(Error::io(&self.path))?;
        }
        self.temporary = None;
        sync_parent(&self.path)
    }
}

impl Drop for OutputDir {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_dir_all(temporary);
        }
    }
}

/// Makes something under a new hidden name beside `path`.
fn beside<T>(path: &Path, make: impl Fn(&Path) -> io::Result<T>) -> Result<(PathBuf, T)> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::Usage(format!("{}: not a file name", path.display())))?;
    for attempt in 0u32.. {
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}-{attempt}.part", std::process::id()));
        let temporary = path.with_file_name(hidden);
        match make(&temporary) {
            Ok(made) => return Ok((temporary, made)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => {
                continue;
            }
            Err(error) => return Err(Error::io(path)(error)),
        }
    }
    unreachable!("the loop above ends")
}

fn sync_parent(path: &Path) -> Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io(parent))
}
