//! Looking at whole trees: what every path of one is, and where two differ. Shared by the tests on real images.
#![allow(dead_code)] // each test file uses its part

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ovl::store::Digest;
use sha2::Digest as _;

/// Everything there is to see of one path.
#[derive(Clone, PartialEq, Eq)]
pub struct Facts {
    /// Type and permissions, `st_mode`.
    pub mode: u32,
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Not of directories, for which it means nothing.
    pub size: Option<u64>,
    /// Not of directories. Names outside the tree count too.
    pub links: Option<u64>,
    /// The first path (in order) that is the same inode, of files with several names.
    pub same_as: Option<PathBuf>,
    pub target: Option<PathBuf>,
    pub device: Option<u64>,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// SHA-256 of a regular file's bytes.
    pub content: Option<String>,
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:o} {}:{} {}.{:09}",
            self.mode, self.owner.0, self.owner.1, self.mtime.0, self.mtime.1
        )?;
        for (name, value) in [
            ("size", self.size),
            ("links", self.links),
            ("device", self.device),
        ] {
            if let Some(value) = value {
                write!(f, " {name}={value}")?;
            }
        }
        if let Some(path) = &self.same_as {
            write!(f, " same as {path:?}")?;
        }
        if let Some(target) = &self.target {
            write!(f, " -> {target:?}")?;
        }
        for (name, value) in &self.xattrs {
            write!(f, " {}={}", name.display(), value.escape_ascii())?;
        }
        write!(f, " {}", self.content.as_deref().unwrap_or(""))
    }
}

/// All paths of a tree, from its root; the root itself is "".
pub type Tree = BTreeMap<PathBuf, Facts>;

/// Looks at everything below `root`. Any error is a failed test: a tree that can be listed can be read.
pub fn tree(root: &Path) -> Tree {
    walk(root, true)
}

/// The same without reading files.
pub fn look_at_all(root: &Path) -> Tree {
    walk(root, false)
}

fn walk(root: &Path, read: bool) -> Tree {
    let mut tree = Tree::new();
    let mut first_names: HashMap<(u64, u64), PathBuf> = HashMap::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let path = entry
            .unwrap_or_else(|error| panic!("walking {}: {error}", root.display()))
            .into_path();
        let inside = path.strip_prefix(root).unwrap().to_owned();
        let mut facts =
            look(&path, read).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if facts.links.is_some_and(|links| links > 1) {
            let meta = path.symlink_metadata().unwrap();
            let first = first_names
                .entry((meta.dev(), meta.ino()))
                .or_insert_with(|| inside.clone());
            facts.same_as = Some(first.clone());
        }
        tree.insert(inside, facts);
    }
    tree
}

fn look(path: &Path, read: bool) -> io::Result<Facts> {
    let meta = path.symlink_metadata()?;
    let kind = meta.file_type();
    let is_device = kind.is_block_device() || kind.is_char_device();
    Ok(Facts {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        size: (!kind.is_dir()).then_some(meta.size()),
        links: (!kind.is_dir()).then_some(meta.nlink()),
        same_as: None,
        target: kind
            .is_symlink()
            .then(|| std::fs::read_link(path))
            .transpose()?,
        device: is_device.then_some(meta.rdev()),
        xattrs: xattrs(path)?,
        content: (read && kind.is_file())
            .then(|| sha256(std::fs::File::open(path)?))
            .transpose()?,
    })
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names)?;
    let names = names[..length]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)?;
            value.truncate(length);
            Ok((OsString::from_vec(name.to_vec()), value))
        })
        .collect()
}

/// SHA-256 of all there is to read, in hex digits.
pub fn sha256(mut from: impl Read) -> io::Result<String> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match from.read(&mut buffer)? {
            0 => {
                return Ok(hasher
                    .finalize()
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect());
            }
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Fails, showing the first paths where two trees differ, unless they are the same.
pub fn assert_same(what: &str, ours: &Tree, theirs: &Tree) {
    let paths: BTreeSet<&PathBuf> = ours.keys().chain(theirs.keys()).collect();
    let differing: Vec<&&PathBuf> = paths
        .iter()
        .filter(|path| ours.get(**path) != theirs.get(**path))
        .collect();
    let shown: String = differing
        .iter()
        .take(12)
        .map(|path| {
            format!(
                "{path:?}\n  ours:   {:?}\n  theirs: {:?}\n",
                ours.get(**path),
                theirs.get(**path)
            )
        })
        .collect();
    assert!(
        differing.is_empty(),
        "{what}: {} of {} paths differ:\n{shown}",
        differing.len(),
        paths.len()
    );
}

/// SHA-256 of what a shell pipeline prints. Made by other programs than ovl's own code.
pub fn sha256_of_pipe(script: &str, arguments: &[&Path]) -> Digest {
    let mut child = Command::new("sh")
        .args([
            "-euc",
            &format!("{script} | sha256sum | cut -d' ' -f1"),
            "sh",
        ])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh runs");
    let mut hex = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut hex)
        .unwrap();
    assert!(child.wait().unwrap().success(), "{script} {arguments:?}");
    format!("sha256:{}", hex.trim())
        .parse()
        .unwrap_or_else(|error| panic!("{script}: {hex:?}: {error}"))
}

/// Runs a script in a chroot with the usual shell; what it printed. The script must succeed.
pub fn chroot(root: &Path, script: &str) -> String {
    let output = Command::new("chroot")
        .arg(root)
        .args(["/bin/sh", "-euc", script])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .expect("chroot runs");
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "in {}: {}\n{stdout}\n{stderr}\n{script}",
        root.display(),
        output.status
    );
    stdout.into_owned()
}

/// A field of `/proc/PID/status` in KiB (`VmRSS`, `VmHWM`).
pub fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let number = line
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .unwrap_or_else(|| panic!("{field} in {status}"));
    number.trim().parse().unwrap()
}

/// The digests of an image archive's uncompressed layers, bottom first, of each image in it; by tar, gzip, zstd and
/// sha256sum. `archive` is a docker-archive, an oci-archive or an OCI layout.
pub fn layers_by_others(archive: &Path) -> Vec<Vec<Digest>> {
    let read = |member: &str| -> Vec<u8> {
        if archive.is_dir() {
            return std::fs::read(archive.join(member)).unwrap();
        }
        crate::common::command(
            "tar",
            [
                "-xOf".as_ref(),
                archive.as_os_str(),
                "--".as_ref(),
                member.as_ref(),
            ],
        )
        .stdout
    };
    let json =
        |member: &str| -> serde_json::Value { serde_json::from_slice(&read(member)).unwrap() };
    let uncompressed = |member: &str| {
        sha256_of_pipe(
            r#"member() { if [ -d "$1" ]; then cat "$1/$2"; else tar -xOf "$1" -- "$2"; fi; }
            case $(member "$@" 2> /dev/null | head -c 4 | od -An -tx1 | tr -d ' ') in
                1f8b*) program='gzip -dc' ;; 28b52ffd) program='zstd -dc' ;; *) program=cat ;;
            esac
            member "$@" | $program"#,
            &[archive, Path::new(member)],
        )
    };
    let members = |list: &serde_json::Value| -> Vec<String> {
        list.as_array()
            .unwrap()
            .iter()
            .map(|member| member.as_str().unwrap().to_owned())
            .collect()
    };
    let blob = |digest: &serde_json::Value| {
        format!("blobs/{}", digest.as_str().unwrap().replace(':', "/"))
    };
    let is_docker = !archive.is_dir() && !archive.to_str().unwrap().contains(".oci.");
    let images: Vec<Vec<String>> = if is_docker {
        json("manifest.json")
            .as_array()
            .unwrap()
            .iter()
            .map(|image| members(&image["Layers"]))
            .collect()
    } else {
        let index = json("index.json");
        let manifests = index["manifests"].as_array().unwrap().iter();
        let layers =
            |manifest: &serde_json::Value| json(&blob(&manifest["digest"]))["layers"].clone();
        manifests
            .map(|manifest| {
                layers(manifest)
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|layer| blob(&layer["digest"]))
                    .collect()
            })
            .collect()
    };
    images
        .iter()
        .map(|layers| layers.iter().map(|layer| uncompressed(layer)).collect())
        .collect()
}
