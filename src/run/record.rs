//! What is known of containers: one directory each below `ROOT/containers`, 0700.
//!
//! ```text
//! ROOT/containers/ID/record.json   what `ovl ps` shows, and what diff, commit, exec and rm need
//!                    lock          held (flock) by the process that looks after the container, for as long as it does
//!                    log           what a container in the background printed
//!                    upper, work   what the container changed
//!                    volumes/N     uppers of `-v …:O` and of the image's volumes
//! RUN/containers/ID/               the bundle: config.json, rootfs, hosts; only while the container runs
//! ```
//!
//! Invariants: a directory is made under the lock of all containers, so that names are unique. A record is written whole
//! or not at all, and only by who holds the container's lock. A lock that can be had means that nobody looks after the
//! container any more: what is left of it is then put right by whoever holds it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::rootfs::private_dir;
use crate::mount::{self, EscapedPath, Process, RunDir};
use crate::store::Digest;

/// A container as it was last seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Container {
    /// 12 hex digits.
    pub id: String,
    pub name: String,
    /// As given.
    pub image: String,
    /// Digest of the image's configuration.
    pub image_id: String,
    pub command: Vec<String>,
    /// Seconds since 1970.
    pub created: i64,
    pub finished: Option<i64>,
    /// `None` before its end, and when nobody was there to see it.
    pub exit_code: Option<i32>,
    /// The container goes when its command ends.
    pub remove: bool,
    pub tty: bool,
    /// Made by a user who is not root, in a user namespace.
    pub rootless: bool,
    /// Who looks after it.
    pub monitor: Process,
    /// Its first process; `None` before the start.
    pub init: Option<Process>,
    pub runtime: EscapedPath,
    /// The runtime works without control groups.
    pub without_cgroups: bool,
    /// Signal that asks the command to end, from the image.
    pub stop_signal: Option<String>,
    /// The image's labels, which are data and nothing else.
    pub labels: BTreeMap<String, String>,
    /// Its root's mount, as it was made.
    pub mount: Option<mount::Record>,
    /// Where what is kept of overlays over host directories is.
    pub kept: Vec<EscapedPath>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Created,
    Running,
    Exited,
}

impl Container {
    pub fn state(&self) -> State {
        match (&self.finished, &self.init) {
            (Some(_), _) => State::Exited,
            (None, Some(_)) => State::Running,
            (None, None) => State::Created,
        }
    }
}

/// Where containers are.
#[derive(Clone, Debug)]
pub struct Containers {
    dir: PathBuf,
    run_dir: RunDir,
}

/// The right to change a container's record and directories.
#[derive(Debug)]
pub struct Held {
    _lock: OwnedFd,
}

impl Containers {
    /// Those of the store at `root`, which need not be there.
    pub fn new(root: &Path, run_dir: &RunDir) -> Self {
        Self {
            dir: root.join("containers"),
            run_dir: run_dir.clone(),
        }
    }

    pub fn run_dir(&self) -> &RunDir {
        &self.run_dir
    }

    pub fn dir(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// Where overlays of host directories go that outlive their container.
    pub fn kept(&self, id: &str, number: usize) -> Result<PathBuf> {
        let root = self.dir.parent().unwrap_or(&self.dir).join("kept");
        private_dir(&root)?;
        Ok(root.join(format!("{id}-{number}")))
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        self.run_dir.path().join("containers").join(id)
    }

    /// Where the runtime keeps its own state.
    pub fn runtime_root(&self) -> PathBuf {
        self.run_dir.path().join("runtime")
    }

    pub fn log(&self, id: &str) -> PathBuf {
        self.dir(id).join("log")
    }

    /// Makes the directories that all containers share.
    pub fn prepare(&self) -> Result<()> {
        if let Some(root) = self.dir.parent() {
            fs::create_dir_all(root).map_err(|e| Error::io("making", root, e))?;
        }
        private_dir(&self.dir)?;
        private_dir(&self.run_dir.path().join("containers"))?;
        private_dir(&self.runtime_root())
    }

    /// Makes a container's directory and first record. `named` gives the record its id and name, once it knows which are
    /// taken.
    pub fn create(
        &self,
        named: impl FnOnce(&[Container]) -> Result<Container>,
    ) -> Result<(Container, Held)> {
        let _all = lock(&self.dir.join("lock"), FlockOperation::LockExclusive)?;
        let container = named(&self.all()?)?;
        let dir = self.dir(&container.id);
        rustix::fs::mkdir(&dir, Mode::RWXU).map_err(|e| Error::io("making", &dir, e))?;
        let held = self.hold(&container.id)?.ok_or_else(|| {
            Error::Conflict(format!("container {} is somebody else's", container.id))
        })?;
        self.write(&container, &held)?;
        Ok((container, held))
    }

    /// The container's lock, if nobody has it.
    pub fn hold(&self, id: &str) -> Result<Option<Held>> {
        let path = self.dir(id).join("lock");
        match lock(&path, FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => Ok(Some(Held { _lock: lock })),
            Err(Error::Io { source, .. })
                if source.raw_os_error() == Some(Errno::WOULDBLOCK.raw_os_error()) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// [`Self::hold`], but never of a directory that is just being made.
    pub fn hold_made(&self, id: &str) -> Result<Option<Held>> {
        let _all = lock(&self.dir.join("lock"), FlockOperation::LockExclusive)?;
        self.hold(id)
    }

    /// Is there a record, readable or not?
    pub fn has_record(&self, id: &str) -> bool {
        fs::symlink_metadata(record_file(&self.dir, id))
            .map_or_else(|e| e.kind() != io::ErrorKind::NotFound, |_| true)
    }

    /// Publishes a record: it is there whole or not at all.
    pub fn write(&self, container: &Container, _: &Held) -> Result<()> {
        let path = record_file(&self.dir, &container.id);
        let temporary = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut text = serde_json::to_vec_pretty(container)?;
            text.push(b'\n');
            let mut out = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            out.write_all(&text)?;
            if !container.remove {
                // After a crash of the machine an empty record would be worse than none.
                out.sync_data()?;
            }
            fs::rename(&temporary, &path)
        };
        write().map_err(|e| Error::io("writing", &path, e))
    }

    pub fn read(&self, id: &str) -> Result<Option<Container>> {
        read(&self.dir, id)
    }

    /// Names of all containers' directories, also of those without a record.
    pub fn ids(&self) -> Result<Vec<String>> {
        ids(&self.dir)
    }

    /// All containers, the newest first, as last written.
    pub fn all(&self) -> Result<Vec<Container>> {
        all(&self.dir)
    }

    /// The container called `words`: its name, or (the beginning of) its id. A name wins.
    pub fn find(&self, words: &str) -> Result<Option<Container>> {
        let all = self.all()?;
        if let Some(container) = all.iter().find(|c| c.name == words) {
            return Ok(Some(container.clone()));
        }
        if words.is_empty() || !words.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let mut found = all.into_iter().filter(|c| c.id.starts_with(words));
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(Error::Conflict(format!(
                "{words} is the beginning of several containers' IDs; give more digits"
            ))),
            (found, _) => Ok(found),
        }
    }

    /// Takes a container's directories away. Nothing of it may be mounted any more.
    pub fn delete(&self, id: &str, held: Held) -> Result<()> {
        self.delete_bundle(id)?;
        let dir = self.dir(id);
        remove_all(&dir)?;
        drop(held);
        Ok(())
    }

    pub fn delete_bundle(&self, id: &str) -> Result<()> {
        let bundle = self.bundle(id);
        // All its directories are mount points. Not recursively through one that, against all care, is still mounted.
        for entry in fs::read_dir(&bundle).into_iter().flatten().flatten() {
            let point = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir())
                && let Err(error) = fs::remove_dir(&point)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(Error::io("removing the mount point", &point, error));
            }
        }
        remove_all(&bundle)
    }
}

fn record_file(dir: &Path, id: &str) -> PathBuf {
    dir.join(id).join("record.json")
}

fn read(dir: &Path, id: &str) -> Result<Option<Container>> {
    let path = record_file(dir, id);
    match fs::read(&path) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(container) => Ok(Some(container)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "not a container's record; what it changed is in upper beside it");
                Ok(None)
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("reading", &path, error)),
    }
}

fn ids(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("reading", dir, error)),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("reading", dir, e))?;
        if let Ok(id) = entry.file_name().into_string()
            && is_id(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn all(dir: &Path) -> Result<Vec<Container>> {
    let mut all = Vec::new();
    for id in ids(dir)? {
        all.extend(read(dir, &id)?);
    }
    all.sort_by(|a: &Container, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
    Ok(all)
}

/// The name of a container of the image with this configuration, if the store at `root` has one.
pub fn user_of(root: &Path, image_id: &Digest) -> Result<Option<String>> {
    let id = image_id.to_string();
    let users = all(&root.join("containers"))?;
    let user = users.into_iter().find(|container| container.image_id == id);
    Ok(user.map(|container| container.name))
}

/// Removes a tree without following symlinks; none is fine.
pub fn remove_all(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("removing", path, error))
        }
        _ => Ok(()),
    }
}

fn lock(path: &Path, operation: FlockOperation) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| Error::io("opening", path, e))?;
    rustix::fs::flock(&fd, operation).map_err(|e| Error::io("locking", path, e))?;
    Ok(fd)
}

fn is_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Random bytes as hex digits: a new container's ID.
pub fn new_id() -> Result<String> {
    let mut bytes = [0_u8; 6];
    let source = Path::new("/dev/urandom");
    File::open(source)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|e| Error::io("reading", source, e))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
