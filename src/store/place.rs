//! Where a store lives: its directory and database file, made so that nobody else can reach them.
//!
//! The directory is 0700 and the database 0600 whatever the umask; SQLite gives `-wal` and `-shm` the database's mode.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use super::{Error, Result};

const DATABASE: &str = "store.db";

/// The checked place of a store.
#[derive(Debug)]
pub(super) struct Place {
    /// Absolute, free of symlinks.
    pub(super) root: PathBuf,
    pub(super) database: PathBuf,
    /// The file system can only be read here.
    pub(super) read_only: bool,
}

impl Place {
    /// Makes directory and (empty) database file as needed.
    pub(super) fn create(root: &Path) -> Result<Self> {
        match fs::symlink_metadata(root) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_directory(root)?,
            Err(error) => return Err(Error::io(root)(error)),
        }
        let place = Self::resolve(root)?;
        match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&place.database)
        {
            Ok(file) => {
                file.set_permissions(Permissions::from_mode(0o600))
                    .map_err(Error::io(&place.database))?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(&place.database)(error)),
        }
        place.check_database()?;
        Ok(place)
    }

    /// The place of a store that is there; `None` if it is not.
    pub(super) fn existing(root: &Path) -> Result<Option<Self>> {
        let missing = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound);
        match fs::metadata(root) {
            Err(error) if missing(&error) => return Ok(None),
            Err(error) => return Err(Error::io(root)(error)),
            Ok(_) => {}
        }
        let place = Self::resolve(root)?;
        match fs::symlink_metadata(&place.database) {
            Err(error) if missing(&error) => return Ok(None),
            Err(error) => return Err(Error::io(&place.database)(error)),
            Ok(_) => {}
        }
        place.check_database()?;
        Ok(Some(place))
    }

    fn resolve(root: &Path) -> Result<Self> {
        let root = fs::canonicalize(root).map_err(Error::io(root))?;
        let meta = fs::metadata(&root).map_err(Error::io(&root))?;
        if !meta.is_dir() {
            return Err(Error::NotAStore {
                path: root,
                reason: "it is not a directory".to_owned(),
            });
        }
        refuse_writable_by_others(&root, meta.mode())?;
        let stat = rustix::fs::statvfs(&root).map_err(|errno| Error::io(&root)(errno.into()))?;
        Ok(Self {
            database: root.join(DATABASE),
            read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
            root,
        })
    }

    fn check_database(&self) -> Result<()> {
        let meta = fs::symlink_metadata(&self.database).map_err(Error::io(&self.database))?;
        if !meta.is_file() {
            let reason = "it is not a regular file".to_owned();
            return Err(Error::NotAStore {
                path: self.database.clone(),
                reason,
            });
        }
        refuse_writable_by_others(&self.database, meta.mode())
    }

    /// Fails where nothing can be written.
    pub(super) fn must_be_writable(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::io(&self.root)(rustix::io::Errno::ROFS.into()));
        }
        Ok(())
    }

    /// Database, write-ahead log and its index, bytes.
    pub(super) fn disk_bytes(&self) -> Result<u64> {
        Ok(self.file_bytes("")? + self.log_bytes()? + self.file_bytes("-shm")?)
    }

    /// The write-ahead log, bytes.
    pub(super) fn log_bytes(&self) -> Result<u64> {
        self.file_bytes("-wal")
    }

    fn file_bytes(&self, suffix: &str) -> Result<u64> {
        let path = self.beside(suffix);
        match fs::metadata(&path) {
            Ok(meta) => Ok(meta.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(Error::io(&path)(error)),
        }
    }

    /// A file that SQLite keeps beside the database: `-wal` or `-shm`.
    pub(super) fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.database.clone().into_os_string();
        path.push(suffix);
        path.into()
    }
}

fn make_directory(root: &Path) -> Result<()> {
    let parent = match root.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(Error::io(parent))?;
    match fs::DirBuilder::new().mode(0o700).create(root) {
        Ok(()) => {
            // mkdir(2) takes bits of the umask away; a umask of 0277 would leave us shut out.
            fs::set_permissions(root, Permissions::from_mode(0o700)).map_err(Error::io(root))?;
            // SQLite syncs what it makes inside; that the directory itself is there is ours to press to the disk.
            let synced = fs::File::open(parent).and_then(|parent| parent.sync_all());
            synced.map_err(Error::io(parent))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::io(root)(error)),
    }
}

fn refuse_writable_by_others(path: &Path, mode: u32) -> Result<()> {
    if mode & 0o022 == 0 {
        return Ok(());
    }
    let reason = format!(
        "others may write to it (mode {:04o}); chmod go-w it, or choose another --root",
        mode & 0o7777
    );
    Err(Error::Unsafe {
        path: path.to_owned(),
        reason,
    })
}
