//! The store rows: the same docker archive taken in by ovl and by others, each into an empty store of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::arena::Arena;
use crate::command::{Cost, command, cost, disk_usage, output, run};
use crate::containerd::{Containerd, ctr};
use crate::corpus::test_images;
use crate::results::ImportCosts;
use crate::stats::Random;
use crate::systems::OVL;

/// One program that takes images in.
struct Importer {
    id: &'static str,
    title: &'static str,
    /// The command for version 1 or 2.
    import: fn(&Images, &Path, u8) -> Command,
    /// The command that writes version 1 to an archive, where there is one.
    export: Option<fn(&Path, &Path) -> Command>,
    /// The command that removes version 1 and gives its space back, where there is one.
    remove: Option<fn(&Path) -> Command>,
    /// Whether containerd must run meanwhile.
    daemon: bool,
    version: &'static [&'static str],
}

fn own(store: &Path) -> Command {
    let mut ovl = command(OVL, ["--root"]);
    ovl.arg(store);
    ovl
}

fn containers_storage(store: &Path, version: u8) -> String {
    format!(
        "containers-storage:[overlay@{0}/root+{0}/run]localhost/five:{version}",
        store.display()
    )
}

fn podman(store: &Path) -> Command {
    let mut podman = command("podman", ["--storage-driver", "overlay", "--root"]);
    podman
        .arg(store.join("root"))
        .arg("--runroot")
        .arg(store.join("run"));
    podman
}

const IMPORTERS: &[Importer] = &[
    Importer {
        id: "ovl",
        title: "ovl import",
        version: &[OVL, "--version"],
        import: |images, store, version| {
            let mut ovl = own(store);
            ovl.args(["--progress", "none", "import", "--replace", "--tag"])
                .arg(format!("five:{version}"));
            ovl.arg(images.archive(version));
            ovl
        },
        export: Some(|store, to| {
            let mut ovl = own(store);
            ovl.args(["--progress", "none", "export", "five:1"])
                .arg(format!("docker-archive:{}", to.display()));
            ovl
        }),
        remove: Some(|store| {
            let mut both = command(
                "sh",
                [
                    "-c",
                    "\"$0\" --root \"$1\" rmi five:1 && \"$0\" --root \"$1\" gc",
                ],
            );
            both.arg(OVL).arg(store);
            both
        }),
        daemon: false,
    },
    Importer {
        id: "skopeo",
        title: "skopeo copy",
        version: &["skopeo", "--version"],
        import: |images, store, version| {
            let mut skopeo = command("skopeo", ["--insecure-policy", "copy", "-q"]);
            skopeo
                .arg(format!(
                    "docker-archive:{}",
                    images.archive(version).display()
                ))
                .arg(containers_storage(store, version));
            skopeo
        },
        export: Some(|store, to| {
            let mut skopeo = command("skopeo", ["--insecure-policy", "copy", "-q"]);
            skopeo
                .arg(containers_storage(store, 1))
                .arg(format!("docker-archive:{}:five:1", to.display()));
            skopeo
        }),
        remove: None,
        daemon: false,
    },
    Importer {
        id: "podman",
        title: "podman load",
        version: &["podman", "--version"],
        import: |images, store, version| {
            let mut podman = podman(store);
            podman
                .args(["load", "-q", "-i"])
                .arg(images.archive(version));
            podman
        },
        export: Some(|store, to| {
            let mut podman = podman(store);
            podman.args(["save", "-q", "-o"]).arg(to).arg("five:1");
            podman
        }),
        remove: Some(|store| {
            let mut podman = podman(store);
            podman.args(["rmi", "five:1"]);
            podman
        }),
        daemon: false,
    },
    Importer {
        id: "ctr",
        title: "ctr image import",
        version: &["containerd", "--version"],
        import: |images, store, version| {
            let mut ctr = ctr(store, ["image", "import"]);
            ctr.arg(images.archive(version));
            ctr
        },
        export: Some(|store, to| {
            let mut ctr = ctr(store, ["image", "export"]);
            ctr.arg(to).arg("localhost/five:1");
            ctr
        }),
        remove: Some(|store| ctr(store, ["image", "rm", "--sync", "localhost/five:1"])),
        daemon: true,
    },
    Importer {
        id: "umoci",
        title: "umoci unpack",
        version: &["umoci", "--version"],
        import: |images, store, version| {
            let mut umoci = command("umoci", ["unpack", "--image"]);
            umoci
                .arg(format!("{}:v{version}", images.layout.display()))
                .arg(store.join(format!("bundle{version}")));
            umoci
        },
        export: None,
        remove: None,
        daemon: false,
    },
];

/// The two versions of the five-layer image.
struct Images {
    dir: PathBuf,
    /// Both as an OCI layout with gzip layers, which is all that umoci reads.
    layout: PathBuf,
    /// Settings of containers-storage that say as little as they may.
    settings: PathBuf,
}

impl Images {
    fn archive(&self, version: u8) -> PathBuf {
        self.dir.join(format!("v{version}.docker.tar"))
    }

    fn new(arena: &Arena) -> Result<Self> {
        let at = |name: &str| arena.path().join(name);
        let images = Self {
            dir: test_images("five")?,
            layout: at("layout"),
            settings: at("storage.conf"),
        };
        let storage = at("importer").display().to_string();
        let settings = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{storage}/root\"\nrunroot = \"{storage}/run\"\n"
        );
        fs::write(&images.settings, settings)?;
        for version in [1, 2] {
            let mut skopeo = command("skopeo", ["--insecure-policy", "copy", "-q"]);
            skopeo.arg(format!(
                "oci-archive:{}",
                images.dir.join(format!("v{version}.oci.tar")).display()
            ));
            run(skopeo.arg(format!("oci:{}:v{version}", images.layout.display())))?;
        }
        Ok(images)
    }

    /// Bytes of the different layer tars of both versions together.
    fn unique_layer_bytes(&self) -> Result<u64> {
        let mut layers = std::collections::BTreeMap::new();
        for version in [1, 2] {
            let list = output(command("tar", ["-tvf"]).arg(self.archive(version)))?;
            for line in list.lines().filter(|line| line.starts_with('-')) {
                let words: Vec<&str> = line.split_whitespace().collect();
                let [_, _, size, .., name] = words[..] else {
                    continue;
                };
                // `DIGEST.tar`: other members are documents.
                if name.ends_with(".tar") {
                    layers.insert(
                        name.to_owned(),
                        size.parse::<u64>().context("tar's listing")?,
                    );
                }
            }
        }
        Ok(layers.values().sum())
    }
}

pub struct Store {
    pub costs: Vec<ImportCosts>,
    pub unique_layer_bytes: u64,
    pub archive_bytes: u64,
}

/// Every importer `repetitions` times, in random order, the archive cached; the disk it takes is looked at once.
pub fn measure(arena: &Arena, repetitions: usize, random: &mut Random) -> Result<Store> {
    let images = Images::new(arena)?;
    let mut costs: Vec<ImportCosts> = IMPORTERS.iter().map(blank).collect::<Result<_>>()?;
    for repetition in 0..repetitions {
        let mut order: Vec<usize> = (0..IMPORTERS.len()).collect();
        random.shuffle(&mut order);
        for which in order {
            let importer = &IMPORTERS[which];
            eprintln!("store {}/{repetitions}: {}", repetition + 1, importer.title);
            if let Err(error) = once(importer, &images, arena, &mut costs[which], repetition == 0) {
                // The last line of what the program said, without this machine's paths.
                let words = format!("{error:#}");
                let last = words.lines().last().unwrap_or_default();
                let last = last.replace(&*arena.path().to_string_lossy(), "ARENA");
                costs[which].failure = Some(last.replace(&*images.dir.to_string_lossy(), "IMAGES"));
            }
        }
    }
    let unique_layer_bytes = images.unique_layer_bytes()?;
    let archive_bytes = fs::metadata(images.archive(1))?.len();
    fs::remove_dir_all(&images.layout)?;
    Ok(Store {
        costs,
        unique_layer_bytes,
        archive_bytes,
    })
}

fn blank(importer: &Importer) -> Result<ImportCosts> {
    let said = output(&mut command(importer.version[0], &importer.version[1..]))?;
    Ok(ImportCosts {
        id: importer.id.to_owned(),
        title: importer.title.to_owned(),
        version: said
            .lines()
            .next()
            .unwrap_or_default()
            .split(' ')
            // The first word that is a number; containerd says more behind it.
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
            .unwrap_or_default()
            .to_owned(),
        ..ImportCosts::default()
    })
}

fn once(
    importer: &Importer,
    images: &Images,
    arena: &Arena,
    costs: &mut ImportCosts,
    with_disk: bool,
) -> Result<()> {
    let store = arena.path().join("importer");
    fs::create_dir_all(&store)?;
    let note = arena.path().join("time");
    let archive = arena.path().join("exported");
    crate::drivers::warm(&images.archive(1))?;
    arena.settle()?;
    let mut run = || -> Result<()> {
        let daemon = importer
            .daemon
            .then(|| Containerd::start(&store))
            .transpose()?;
        let used = |command: Command| spent(command, images, &note, daemon.as_ref());
        let first = used((importer.import)(images, &store, 1))?;
        costs.seconds.push(first.seconds);
        costs.cpu.push(first.cpu);
        costs.memory = costs.memory.max(first.memory);
        arena.settle()?;
        if with_disk {
            costs.disk_one = Some(disk_usage(&store)?);
        }
        if let Some(export) = importer.export {
            let exported = used(export(&store, &archive))?;
            costs.export_seconds.push(exported.seconds);
            costs.export_cpu.push(exported.cpu);
            fs::remove_file(&archive)?;
            arena.settle()?;
        }
        if with_disk {
            costs.second_seconds = Some(used((importer.import)(images, &store, 2))?.seconds);
            arena.settle()?;
            costs.disk_both = Some(disk_usage(&store)?);
        }
        if let Some(remove) = importer.remove {
            costs.remove_seconds.push(used(remove(&store))?.seconds);
        }
        Ok(())
    };
    let result = run();
    clear(&store)?;
    result
}

/// Runs `command`; what a daemon did for it counts, too.
fn spent(
    mut command: Command,
    images: &Images,
    note: &Path,
    daemon: Option<&Containerd>,
) -> Result<Cost> {
    // Not this machine's.
    command.env("CONTAINERS_STORAGE_CONF", &images.settings);
    let before = daemon.map(Containerd::usage).transpose()?;
    let mut cost = cost(&command, note)?;
    if let (Some(daemon), Some(before)) = (daemon, before) {
        let after = daemon.usage()?;
        cost.cpu += after.cpu - before.cpu;
        cost.memory = cost.memory.max(after.resident);
    }
    Ok(cost)
}

/// Removes a store, and what its program may have left mounted in it.
fn clear(store: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut inside: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    inside.retain(|at| Path::new(at).starts_with(store));
    for at in inside.into_iter().rev() {
        rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH)?;
    }
    fs::remove_dir_all(store).with_context(|| format!("removing {}", store.display()))
}
