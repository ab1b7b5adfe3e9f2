//! The file systems compared: a table of columns.
//!
//! Another mode of ovl is one more line in [`MODES`]. A column that cannot be had here (a program is missing, or ovl or the
//! kernel refuses the mode) is left out, and the page says why.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::arena::Arena;
use super::command::{command, output};
use super::groups::Group;
use super::session::{Lower, Session};

/// How a system is mounted.
#[derive(Clone, Debug)]
pub enum Kind {
    /// The file system below itself: what all are compared with.
    Plain,
    KernelOverlay,
    FuseOverlayfs(PathBuf),
    /// ovl over the lower directory, or over the same content imported into its store.
    Ovl {
        image: bool,
        /// Further words for `ovl mount`.
        words: &'static [&'static str],
        /// Whether the daemon is to use io_uring: an ovl that does not know the option passes over it.
        ring: bool,
    },
}

#[derive(Clone, Debug)]
pub struct System {
    /// Short and stable: the key in results.
    pub id: &'static str,
    pub title: &'static str,
    pub version: String,
    pub kind: Kind,
    /// Whose rows it is measured in; none: all.
    groups: &'static [Group],
}

impl System {
    pub fn is_in(&self, group: Group) -> bool {
        self.groups.is_empty() || self.groups.contains(&group)
    }
}

pub const BASE: &str = "ext4";
/// The system the targets of ovl's own engine are for.
pub const OURS: &str = "ovl";
/// The system the targets of passthrough are for.
pub const PASSTHROUGH: &str = "ovl-pass";
/// What targets of [`OURS`] that are missed are looked up in as well.
pub const OVER_RING: &str = "ovl-ring";
/// The system the targets of the merge by the kernel are for.
pub const UNDER_KERNEL: &str = "ovl-kernel";

/// The program under test, as cargo built it beside this one.
pub const OVL: &str = env!("CARGO_BIN_EXE_ovl");

/// One column.
#[derive(Clone)]
struct Mode {
    id: &'static str,
    title: &'static str,
    kind: Kind,
    groups: &'static [Group],
}

const fn mode(
    id: &'static str,
    title: &'static str,
    image: bool,
    words: &'static [&'static str],
    groups: &'static [Group],
) -> Mode {
    let ring = false;
    Mode {
        id,
        title,
        kind: Kind::Ovl { image, words, ring },
        groups,
    }
}

const MODES: &[Mode] = &[
    mode(OURS, "ovl, directory", false, &[], &[]),
    mode("ovl-image", "ovl, image", true, &[], &[]),
    mode(
        "ovl-through",
        "ovl, no write-back",
        false,
        &["-o", "writeback=0"],
        &[],
    ),
    mode(
        PASSTHROUGH,
        "ovl, passthrough",
        false,
        &["--io", "passthrough"],
        // What is not data does not go that way.
        &[Group::Data, Group::Metadata],
    ),
    mode(
        "ovl-volatile",
        "ovl, volatile",
        false,
        &["-o", "volatile"],
        // Where fsync is asked for it would not compare.
        &[Group::Changes],
    ),
    mode(
        UNDER_KERNEL,
        "ovl, kernel merge",
        true,
        &["--merge", "kernel"],
        &[],
    ),
    Mode {
        id: OVER_RING,
        title: "ovl, io_uring",
        kind: Kind::Ovl {
            image: false,
            words: &["-o", "io_uring=on"],
            ring: true,
        },
        groups: &[],
    },
];

/// What a run compares, and what it had to leave out.
pub struct Systems {
    /// `BASE` first.
    pub present: Vec<System>,
    /// Title and reason.
    pub absent: Vec<String>,
}

/// Every column's key, for those who choose.
pub fn keys() -> Vec<&'static str> {
    let mut keys = vec![BASE, "kernel", "fo1", "fo2"];
    keys.extend(MODES.iter().map(|mode| mode.id));
    keys
}

/// The systems of these keys (none: all) that can be mounted here. `peer` is fuse-overlayfs 2.0.
pub fn usable(keys: &[String], peer: &Path, arena: &Arena) -> Result<Systems> {
    let mut systems = Systems {
        present: Vec::new(),
        absent: Vec::new(),
    };
    let probe = Lower {
        dir: arena.path().join("probe"),
        image: "bench:probe",
    };
    fs::create_dir(&probe.dir)?;
    fs::write(probe.dir.join("file"), "probe")?;
    super::corpus::import(arena, &probe)?;
    for Mode {
        id,
        title,
        kind,
        groups,
    } in table(peer)
    {
        if id != BASE && !keys.is_empty() && !keys.iter().any(|key| key == id) {
            continue;
        }
        let tried = version(&kind).and_then(|version| {
            let system = System {
                id,
                title,
                version,
                kind,
                groups,
            };
            let session = Session::open(&system, arena, &probe)?;
            let read = fs::read(session.lower("file"))?;
            anyhow::ensure!(read == b"probe", "a file reads as something else");
            if let (Kind::Ovl { ring: true, .. }, Some(daemon)) = (&system.kind, session.daemon()) {
                anyhow::ensure!(daemon.uses_ring()?, "this ovl does not use io_uring");
            }
            session.close()?;
            Ok(system)
        });
        match tried {
            Ok(system) => systems.present.push(system),
            Err(error) => {
                anyhow::ensure!(id != BASE, "ext4 itself: {error:#}");
                let said = format!("{title}: {}", arena.hidden(&format!("{error:#}")));
                eprintln!("left out: {said}");
                systems.absent.push(said);
            }
        }
    }
    fs::remove_dir_all(&probe.dir)?;
    Ok(systems)
}

fn table(peer: &Path) -> Vec<Mode> {
    let other = |id, title, kind| Mode {
        id,
        title,
        kind,
        groups: &[],
    };
    let debian = PathBuf::from("/usr/bin/fuse-overlayfs");
    let mut table = vec![
        other(BASE, "ext4", Kind::Plain),
        other("kernel", "kernel overlayfs", Kind::KernelOverlay),
        other("fo1", "fuse-overlayfs 1.x", Kind::FuseOverlayfs(debian)),
        other(
            "fo2",
            "fuse-overlayfs 2.x",
            Kind::FuseOverlayfs(peer.to_owned()),
        ),
    ];
    table.extend(MODES.iter().cloned());
    table
}

fn version(kind: &Kind) -> Result<String> {
    Ok(match kind {
        Kind::Plain | Kind::KernelOverlay => rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        Kind::FuseOverlayfs(program) => {
            let said = output(&mut command(program, ["--version"]))
                .context("`make bench` installs fuse-overlayfs 2.x at target/peers")?;
            let line = said
                .lines()
                .find(|line| line.starts_with("fuse-overlayfs"))
                .unwrap_or(&said);
            let word = line.rsplit(' ').next().unwrap_or_default();
            word.trim().to_owned()
        }
        Kind::Ovl { .. } => env!("CARGO_PKG_VERSION").to_owned(),
    })
}
