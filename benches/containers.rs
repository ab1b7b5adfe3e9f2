//! The container rows: the same image's `true`, and its own program, run by ovl and by podman on the kernel's overlay driver, both
//! through runc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use super::arena::Arena;
use super::command::{command, output, run};
use super::corpus::test_images;
use super::results::{ContainerStart, Work};
use super::stats::Random;
use super::systems::OVL;

const IMAGE: &str = "localhost/five:1";
const WORKS: [Work; 2] = [Work::Nothing, Work::Program];

/// The words that name the image and what is done in it.
const fn image(work: Work) -> &'static [&'static str] {
    match work {
        Work::Nothing => &["--entrypoint", "/usr/bin/true", IMAGE],
        Work::Program => &[IMAGE],
    }
}

/// One program that runs containers.
struct Runner {
    id: &'static str,
    title: &'static str,
    load: fn(&Place, &Path) -> Command,
    start: fn(&Place, Work) -> Command,
}

/// Where a runner keeps its images and state.
struct Place(PathBuf);

impl Place {
    fn ovl(&self) -> Command {
        let mut ovl = command(OVL, ["--progress", "none", "--root"]);
        ovl.arg(self.0.join("ovl"));
        ovl.env("OVL_RUN", self.0.join("ovl-run"));
        ovl
    }

    fn podman(&self) -> Command {
        let mut podman = command("podman", ["--storage-driver", "overlay"]);
        for (word, name) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            podman.arg(word).arg(self.0.join(name));
        }
        // The words it needs where there is no systemd and hard limits are low.
        podman.args(["--cgroup-manager", "cgroupfs", "--runtime", "runc"]);
        podman.env("CONTAINERS_STORAGE_CONF", self.0.join("storage.conf"));
        podman
    }
}

const RUNNERS: [Runner; 2] = [
    Runner {
        id: "ovl",
        title: "ovl run",
        load: |place, archive| {
            let mut ovl = place.ovl();
            ovl.arg("import").arg(archive);
            ovl
        },
        start: |place, work| {
            let mut ovl = place.ovl();
            ovl.args(["run", "--rm", "--runtime", "runc", "--net", "none"]);
            ovl.args(image(work));
            ovl
        },
    },
    Runner {
        id: "podman",
        title: "podman run, kernel's overlay",
        load: |place, archive| {
            let mut podman = place.podman();
            podman.args(["load", "-q", "-i"]).arg(archive);
            podman
        },
        start: |place, work| {
            let mut podman = place.podman();
            podman.args(["run", "--rm", "--network=none"]);
            podman.args(["--ulimit", "nofile=20000:20000"]);
            podman.args(["--ulimit", "nproc=32768:32768"]);
            podman.args(image(work));
            podman
        },
    },
];

/// A program that could not be measured, and why.
type Failures = Vec<(&'static str, anyhow::Error)>;

/// All, so many times, in random order: each cold, with the kernel's caches dropped, and then warm. One that fails is not
/// asked again.
pub fn measure(
    arena: &Arena,
    repetitions: usize,
    random: &mut Random,
) -> Result<(Vec<ContainerStart>, Failures)> {
    let place = Place(arena.path().join("containers"));
    fs::create_dir_all(&place.0)?;
    fs::write(
        place.0.join("storage.conf"),
        format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{0}/root\"\nrunroot = \"{0}/run\"\n",
            place.0.display()
        ),
    )?;
    let archive = test_images("five")?.join("v1.docker.tar");
    let mut failures = Failures::new();
    let mut starts = Vec::new();
    for runner in &RUNNERS {
        match prepared(runner, &place, &archive) {
            Ok(start) => starts.extend(WORKS.map(|work| {
                let start = start.clone();
                (runner, ContainerStart { work, ..start })
            })),
            Err(error) => failures.push((runner.title, error)),
        }
    }
    for repetition in 0..repetitions {
        eprintln!("containers {}/{repetitions}", repetition + 1);
        random.shuffle(&mut starts);
        starts.retain_mut(|(runner, start)| {
            let mut both = || -> Result<()> {
                start
                    .cold
                    .push(once(runner, start.work, &place, arena, true)?);
                start
                    .warm
                    .push(once(runner, start.work, &place, arena, false)?);
                Ok(())
            };
            match both() {
                Ok(()) => true,
                Err(error) => {
                    failures.push((runner.title, error));
                    false
                }
            }
        });
    }
    starts.sort_by_key(|(runner, start)| {
        let runner = RUNNERS.iter().position(|known| known.id == runner.id);
        (WORKS.iter().position(|work| *work == start.work), runner)
    });
    // What podman may have left mounted is in this namespace only and goes with it.
    Ok((
        starts.into_iter().map(|(_, start)| start).collect(),
        failures,
    ))
}

/// Takes the image in.
fn prepared(runner: &Runner, place: &Place, archive: &Path) -> Result<ContainerStart> {
    run(&mut (runner.load)(place, archive))?;
    let program = (runner.load)(place, archive);
    let version = output(&mut command(program.get_program(), ["--version"]))?;
    Ok(ContainerStart {
        id: runner.id.to_owned(),
        title: runner.title.to_owned(),
        version: version
            .split_whitespace()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
            .unwrap_or_default()
            .to_owned(),
        ..ContainerStart::default()
    })
}

fn once(runner: &Runner, work: Work, place: &Place, arena: &Arena, cold: bool) -> Result<f64> {
    match cold {
        true => arena.drop_caches()?,
        false => arena.settle()?,
    }
    let mut start = (runner.start)(place, work);
    let began = Instant::now();
    run(&mut start)?;
    Ok(began.elapsed().as_secs_f64())
}
