//! The list of live mounts: one JSON file each below `RUN/mounts`, written by the daemon, readable by its user only.
//!
//! The list helps people and tools; nothing is unmounted or trusted because of it alone. Mount and daemon are checked by
//! mount id, and by pid with start time.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::kernel_merge::Merge;
use super::mountinfo::{self, MountKey};
use super::process::Process;
use crate::fuse::{Io, Transport};

/// One live mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// 12 hex digits.
    pub id: String,
    /// [`Process::nobody`] where the kernel does it all.
    pub daemon: Process,
    /// Who merges the layers.
    #[serde(default)]
    pub merge: Merge,
    /// The mount namespace it was made in.
    #[serde(default)]
    pub namespace: Option<String>,
    pub mount_point: EscapedPath,
    pub mount: MountKey,
    /// Topmost first, as given.
    pub lowers: Vec<RecordedLower>,
    pub upper: Option<EscapedPath>,
    pub work: Option<EscapedPath>,
    pub read_only: bool,
    /// Options worth showing, `word` or `word=value`.
    pub options: Vec<String>,
    /// How the layers are merged, for whoever looks at the upper beside the mount.
    pub engine: crate::overlay::Options,
    /// Where stored lowers are.
    pub store_root: EscapedPath,
    /// By what the daemon is asked. Daemons before this was written knew one way.
    #[serde(default)]
    pub transport: Transport,
    /// By what way data goes.
    #[serde(default)]
    pub io: Io,
    /// Seconds since 1970.
    pub started: i64,
    pub log: Option<EscapedPath>,
    /// Requests that a bug of ours ended so far; the log tells of each.
    #[serde(default)]
    pub panics: u64,
}

impl Record {
    /// Is the mount there? A mount that the kernel merges outlives its daemon.
    pub fn is_live(&self) -> bool {
        let served = !self.daemon.is_nobody() && self.daemon.is_alive() != Some(false);
        served || (self.merge == Merge::Kernel && self.is_mounted())
    }

    /// The mount is there but the process that served its lowers is not: what is not in the upper cannot be read.
    pub fn is_broken(&self) -> bool {
        !self.daemon.is_nobody() && self.daemon.is_alive() == Some(false)
    }

    /// Is it in the mount table, of this mount namespace or the one it was made in?
    pub fn is_mounted(&self) -> bool {
        matches!(self.mount.find(), Ok(Some(_))) || self.process_that_sees_it().is_some()
    }

    /// A process of another mount namespace, the one the mount was made in, if it is there.
    pub fn process_that_sees_it(&self) -> Option<u32> {
        let namespace = self.namespace.as_ref()?;
        if mountinfo::namespace_of("self").as_ref() == Some(namespace) {
            return None;
        }
        let pids = fs::read_dir("/proc").ok()?.flatten();
        let pid = pids
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .find(|pid| mountinfo::namespace_of(&pid.to_string()).as_ref() == Some(namespace))?;
        mountinfo::seen_by(pid, &self.mount).map(|_| pid)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordedLower {
    Dir(EscapedPath),
    Image {
        /// As given.
        reference: String,
        manifest: String,
        /// Diff IDs, bottom first.
        layers: Vec<String>,
    },
}

/// A path in JSON, which has no bytes: `\` is doubled and what is not UTF-8 becomes `\xNN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EscapedPath(pub PathBuf);

impl Serialize for EscapedPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::new();
        for chunk in self.0.as_os_str().as_bytes().utf8_chunks() {
            text.push_str(&chunk.valid().replace('\\', r"\\"));
            for byte in chunk.invalid() {
                text.push_str(&format!("\\x{byte:02x}"));
            }
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for EscapedPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = unescape(&text)
            .ok_or_else(|| serde::de::Error::custom("a backslash that escapes nothing"))?;
        Ok(Self(OsString::from_vec(bytes).into()))
    }
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        if let Some(tail) = rest.strip_prefix('\\') {
            bytes.push(b'\\');
            rest = tail;
        } else {
            let tail = rest.strip_prefix('x')?;
            bytes.push(u8::from_str_radix(tail.get(..2)?, 16).ok()?);
            rest = &tail[2..];
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(bytes)
}

/// The directory of run state: live mounts and their logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// `$OVL_RUN`; else for root `/run/ovl`; else `$XDG_RUNTIME_DIR/ovl`; else `/tmp/ovl-UID`. The first that can be
    /// made or is ours already; 0700.
    pub fn find() -> io::Result<Self> {
        if let Some(path) = std::env::var_os("OVL_RUN").filter(|p| !p.is_empty()) {
            return Self::at(&std::path::absolute(path)?);
        }
        let uid = rustix::process::geteuid();
        let mut candidates = Vec::new();
        if uid.is_root() {
            candidates.push(PathBuf::from("/run/ovl"));
        }
        if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()) {
            candidates.push(Path::new(&dir).join("ovl"));
        }
        candidates.push(format!("/tmp/ovl-{}", uid.as_raw()).into());
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for path in candidates {
            match Self::at(&path) {
                Ok(dir) => return Ok(dir),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Uses `path`, made 0700 if missing. Refused when it is somebody else's or a symlink: /tmp belongs to all.
    pub fn at(path: &Path) -> io::Result<Self> {
        for dir in [path.to_owned(), path.join("mounts"), path.join("log")] {
            match DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(named(e, &dir)),
            }
            let meta = fs::symlink_metadata(&dir).map_err(|e| named(e, &dir))?;
            if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
                let why = io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "not a directory of this user",
                );
                return Err(named(why, &dir));
            }
        }
        Ok(Self(path.to_owned()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the daemon of mount `id` writes its log, unless told otherwise.
    pub fn log_file(&self, id: &str) -> PathBuf {
        self.0.join("log").join(format!("{id}.log"))
    }

    fn file(&self, id: &str) -> PathBuf {
        self.0.join("mounts").join(format!("{id}.json"))
    }

    /// Publishes a record: it is there whole or not at all.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let file = self.file(&record.id);
        let temporary = file.with_extension("new");
        let mut text = serde_json::to_vec_pretty(record)?;
        text.push(b'\n');
        let mut out = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        out.write_all(&text)?;
        fs::rename(&temporary, &file)
    }

    /// Takes a record away; none is fine.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        match fs::remove_file(self.file(id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Every record, also of daemons that have died. Files that are no records are left out.
    pub fn all(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(self.0.join("mounts"))? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            // Gone since the directory was read, or not ours to understand.
            match fs::read(&path).map(|text| serde_json::from_slice(&text)) {
                Ok(Ok(record)) => records.push(record),
                Ok(Err(error)) => {
                    tracing::warn!(path = %path.display(), %error, "not a mount record");
                }
                Err(_) => {}
            }
        }
        records.sort_by(|a: &Record, b: &Record| (a.started, &a.id).cmp(&(b.started, &b.id)));
        Ok(records)
    }

    /// Mounts whose daemon lives, and those that the kernel merges, oldest first. Records of others are deleted on the
    /// way.
    pub fn live(&self) -> io::Result<Vec<Record>> {
        let mut records = self.all()?;
        records.retain(|record| {
            let live = record.is_live();
            if !live {
                let _ = self.remove(&record.id);
            }
            live
        });
        Ok(records)
    }

    /// The live mount called `name`: its id, or a path that leads to its root (relative, through symlinks, however).
    pub fn find_mount(&self, name: &Path) -> io::Result<Option<Record>> {
        let records = self.live()?;
        if let Some(record) = records.iter().find(|r| name == Path::new(&r.id)) {
            return Ok(Some(record.clone()));
        }
        let Some(mount) = mountinfo::mounted_at(name)? else {
            return Ok(None);
        };
        Ok(records.into_iter().find(|r| r.mount.means(&mount)))
    }
}

fn named(error: io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A new mount's name.
pub fn new_id() -> io::Result<String> {
    let mut bytes = [0_u8; 6];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn record(id: &str, mount_point: &[u8]) -> Record {
        Record {
            id: id.into(),
            daemon: Process::current().expect("own process"),
            merge: Merge::Fuse,
            namespace: None,
            mount_point: EscapedPath(OsString::from_vec(mount_point.to_vec()).into()),
            mount: MountKey {
                id: mountinfo::MountId(u64::MAX),
                major: 0,
                minor: 42,
                unique: Some(1 << 40),
            },
            lowers: vec![
                RecordedLower::Dir(EscapedPath("/a\\b".into())),
                RecordedLower::Image {
                    reference: "alpine".into(),
                    manifest: "sha256:00".into(),
                    layers: vec!["sha256:11".into()],
                },
            ],
            upper: Some(EscapedPath("/up".into())),
            work: None,
            read_only: false,
            options: vec!["volatile".into()],
            engine: crate::overlay::Options {
                volatile: true,
                ..crate::overlay::Options::default()
            },
            store_root: EscapedPath("/var/lib/ovl".into()),
            transport: Transport::IoUring,
            io: Io::Passthrough,
            started: 1_700_000_000,
            log: None,
            panics: 0,
        }
    }

    #[test]
    fn written_records_read_back() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let run = RunDir::at(&temp.path().join("run")).expect("run directory");
        for (id, path) in [
            ("000000000001", &b"/plain"[..]),
            ("000000000002", b"/b\xff\\x41\xc3("),
            ("000000000003", "/ü\n\"".as_bytes()),
        ] {
            let record = record(id, path);
            run.write(&record).expect("write");
            let read = run.all().expect("read");
            assert!(read.contains(&record), "{read:?}");
        }
        assert_eq!(run.live().expect("live").len(), 3);
        let mode = |p: &str| {
            let meta = fs::metadata(run.path().join(p)).expect("stat");
            meta.permissions().mode() & 0o7777
        };
        assert_eq!(mode("mounts"), 0o700);
        assert_eq!(mode("mounts/000000000001.json"), 0o600);
        let found = run.find_mount(Path::new("000000000002")).expect("find");
        assert_eq!(found.expect("by id").id, "000000000002");
        run.remove("000000000002").expect("remove");
        run.remove("000000000002").expect("remove again");
        assert_eq!(run.live().expect("live").len(), 2);
    }

    #[test]
    fn dead_daemons_and_foreign_files_are_dropped() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let run = RunDir::at(temp.path()).expect("run directory");
        let mut dead = record("dead", b"/dead");
        dead.daemon.start = 0;
        run.write(&dead).expect("write");
        run.write(&record("live", b"/live")).expect("write");
        fs::write(temp.path().join("mounts/broken.json"), "{").expect("write");
        fs::write(temp.path().join("mounts/readme"), "").expect("write");
        let ids = |records: Vec<Record>| records.into_iter().map(|r| r.id).collect::<Vec<_>>();
        assert_eq!(ids(run.all().expect("all")), ["dead", "live"]);
        assert_eq!(ids(run.live().expect("live")), ["live"]);
        assert_eq!(ids(run.all().expect("all")), ["live"]);
    }

    #[test]
    fn a_run_directory_of_others_is_refused() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let real = temp.path().join("real");
        fs::create_dir(&real).expect("mkdir");
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&real, &link).expect("symlink");
        let error = RunDir::at(&link).expect_err("a symlink");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    }

    #[test]
    fn escapes_that_are_none_are_errors() {
        for text in [r"\", r"\y", r"\x", r"\x1", r"\xg0", r"\xü"] {
            assert_eq!(unescape(text), None, "{text}");
        }
    }
}
