//! The store rows: the same docker archive taken in by ovl and by others, each into an empty store of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::arena::Arena;
use super::command::{Cost, command, cost, disk_usage, output, run};
use super::containerd::{Containerd, ctr};
use super::corpus::test_images;
use super::results::ImportCosts;
use super::stats::Random;
use super::systems::OVL;

/// Made of the store and the directory to mount at.
type MountCommand = fn(&Path, &Path) -> Command;

/// One program that takes images in.
struct Importer {
    id: &'static str,
    title: &'static str,
    /// The command that takes in an archive.
    import: fn(&Images, &Path, Source) -> Command,
    /// Whether it reads archives with gzip layers, too.
    gzip: bool,
    /// The commands that mount version 1 and unmount it again, where there are such.
    mount: Option<[MountCommand; 2]>,
    /// The command that writes version 1 to an archive, where there is one.
    export: Option<fn(&Path, &Path) -> Command>,
    /// The command that removes version 1 and gives its space back, where there is one.
    remove: Option<fn(&Path) -> Command>,
    /// Whether containerd must run meanwhile.
    daemon: bool,
    version: &'static [&'static str],
}

/// What is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A docker archive of this version, its layers plain.
    Docker(u8),
    /// The first version as an OCI archive, its layers compressed with gzip.
    Gzip,
}

impl Source {
    fn version(self) -> u8 {
        match self {
            Self::Docker(version) => version,
            Self::Gzip => 1,
        }
    }
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
        import: |images, store, source| {
            let mut ovl = own(store);
            ovl.args(["--progress", "none", "import", "--replace", "--tag"])
                .arg(format!("five:{}", source.version()));
            ovl.arg(images.archive(source));
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
        gzip: true,
        mount: Some([
            |store, at| {
                let mut ovl = own(store);
                ovl.env("OVL_RUN", store.join("run"));
                ovl.args(["mount", "five:1"])
                    .arg(at.with_extension("upper"));
                ovl.arg(at);
                ovl
            },
            |store, at| {
                let mut ovl = own(store);
                ovl.env("OVL_RUN", store.join("run"));
                ovl.arg("umount").arg(at);
                ovl
            },
        ]),
        daemon: false,
    },
    Importer {
        id: "skopeo",
        title: "skopeo copy",
        version: &["skopeo", "--version"],
        import: |images, store, source| {
            let mut skopeo = command("skopeo", ["--insecure-policy", "copy", "-q"]);
            skopeo
                .arg(match source {
                    Source::Docker(_) => {
                        format!("docker-archive:{}", images.archive(source).display())
                    }
                    Source::Gzip => format!("oci-archive:{}", images.archive(source).display()),
                })
                .arg(containers_storage(store, source.version()));
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
        gzip: true,
        mount: None,
        daemon: false,
    },
    Importer {
        id: "podman",
        title: "podman load",
        version: &["podman", "--version"],
        import: |images, store, source| {
            let mut podman = podman(store);
            podman
                .args(["load", "-q", "-i"])
                .arg(images.archive(source));
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
        gzip: true,
        mount: Some([
            |store, _| {
                let mut podman = podman(store);
                podman.args(["image", "mount", "five:1"]);
                podman
            },
            |store, _| {
                let mut podman = podman(store);
                podman.args(["image", "unmount", "five:1"]);
                podman
            },
        ]),
        daemon: false,
    },
    Importer {
        id: "ctr",
        title: "ctr image import",
        version: &["containerd", "--version"],
        import: |images, store, source| {
            let mut ctr = ctr(store, ["image", "import"]);
            ctr.arg(images.archive(source));
            ctr
        },
        export: Some(|store, to| {
            let mut ctr = ctr(store, ["image", "export"]);
            ctr.arg(to).arg("localhost/five:1");
            ctr
        }),
        remove: Some(|store| ctr(store, ["image", "rm", "--sync", "localhost/five:1"])),
        gzip: true,
        mount: Some([
            |store, at| {
                let mut ctr = ctr(store, ["image", "mount", "localhost/five:1"]);
                ctr.arg(at);
                ctr
            },
            |store, at| {
                let mut ctr = ctr(store, ["image", "unmount", "--rm"]);
                ctr.arg(at);
                ctr
            },
        ]),
        daemon: true,
    },
    Importer {
        id: "umoci",
        title: "umoci unpack",
        version: &["umoci", "--version"],
        import: |images, store, source| {
            let mut umoci = command("umoci", ["unpack", "--image"]);
            umoci
                .arg(format!("{}:v{}", images.layout.display(), source.version()))
                .arg(store.join(format!("bundle{}", source.version())));
            umoci
        },
        export: None,
        remove: None,
        gzip: false,
        mount: None,
        daemon: false,
    },
];

const FIRST: Source = Source::Docker(1);

/// The two versions of the five-layer image.
struct Images {
    dir: PathBuf,
    /// Both as an OCI layout with gzip layers, which is all that umoci reads.
    layout: PathBuf,
    /// Settings of containers-storage that say as little as they may.
    settings: PathBuf,
}

impl Images {
    fn archive(&self, source: Source) -> PathBuf {
        self.dir.join(match source {
            Source::Docker(version) => format!("v{version}.docker.tar"),
            Source::Gzip => "v1.oci.tar".to_owned(),
        })
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
            let list = output(command("tar", ["-tvf"]).arg(self.archive(Source::Docker(version))))?;
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
    pub gzip_bytes: u64,
}

/// Every importer `repetitions` times, in random order, the archive cached; the disk it takes is looked at once.
/// Archives with gzip layers are taken in each time or only once, too.
pub fn measure(
    arena: &Arena,
    repetitions: usize,
    each_gzip: bool,
    random: &mut Random,
) -> Result<Store> {
    let images = Images::new(arena)?;
    let mut costs: Vec<ImportCosts> = IMPORTERS.iter().map(blank).collect();
    for repetition in 0..repetitions {
        let mut order: Vec<usize> = (0..IMPORTERS.len()).collect();
        random.shuffle(&mut order);
        for which in order {
            let importer = &IMPORTERS[which];
            if costs[which].failure.is_some() {
                continue;
            }
            eprintln!("store {}/{repetitions}: {}", repetition + 1, importer.title);
            let first = repetition == 0;
            let cost = &mut costs[which];
            let mut measured = once(importer, &images, arena, cost, first);
            if importer.gzip && (first || each_gzip) {
                measured = measured.and_then(|()| once_gzip(importer, &images, arena, cost));
            }
            if let Err(error) = measured {
                // The last line of what the program said, without this machine's paths.
                let words = format!("{error:#}");
                let last = arena.hidden(words.lines().last().unwrap_or_default());
                let last = last.replace(&*images.dir.to_string_lossy(), "IMAGES");
                eprintln!("{} failed: {last}", importer.title);
                costs[which].failure = Some(last);
            }
        }
    }
    let unique_layer_bytes = images.unique_layer_bytes()?;
    let archive_bytes = fs::metadata(images.archive(FIRST))?.len();
    let gzip_bytes = fs::metadata(images.archive(Source::Gzip))?.len();
    fs::remove_dir_all(&images.layout)?;
    Ok(Store {
        costs,
        unique_layer_bytes,
        archive_bytes,
        gzip_bytes,
    })
}

/// One that is not there is a failure of its own.
fn blank(importer: &Importer) -> ImportCosts {
    let said = output(&mut command(importer.version[0], &importer.version[1..]));
    let failure = said.as_ref().err().map(|error| format!("{error:#}"));
    let said = said.unwrap_or_default();
    ImportCosts {
        failure,
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
    }
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
    super::drivers::warm(&images.archive(FIRST))?;
    arena.settle()?;
    let mut run = || -> Result<()> {
        let daemon = importer
            .daemon
            .then(|| Containerd::start(&store))
            .transpose()?;
        let used = |command: Command| spent(command, images, &note, daemon.as_ref());
        let first = used((importer.import)(images, &store, FIRST))?;
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
        if let Some([mount, unmount]) = importer.mount {
            let at = arena.path().join("importer.mnt");
            fs::create_dir_all(&at)?;
            costs.mount_seconds.push(used(mount(&store, &at))?.seconds);
            used(unmount(&store, &at))?;
        }
        if with_disk {
            costs.second_seconds =
                Some(used((importer.import)(images, &store, Source::Docker(2)))?.seconds);
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

fn once_gzip(
    importer: &Importer,
    images: &Images,
    arena: &Arena,
    costs: &mut ImportCosts,
) -> Result<()> {
    let store = arena.path().join("importer");
    fs::create_dir_all(&store)?;
    super::drivers::warm(&images.archive(Source::Gzip))?;
    arena.settle()?;
    let mut run = || -> Result<()> {
        let daemon = importer
            .daemon
            .then(|| Containerd::start(&store))
            .transpose()?;
        let import = (importer.import)(images, &store, Source::Gzip);
        let note = arena.path().join("time");
        let cost = spent(import, images, &note, daemon.as_ref())?;
        costs.gzip_seconds.push(cost.seconds);
        costs.gzip_cpu.push(cost.cpu);
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
