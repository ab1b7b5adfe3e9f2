//! Rows about the daemon itself: its memory and processor time around a walk, and how long `ovl mount` takes.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::arena::Arena;
use super::command::{drain, output, run};
use super::corpus::Corpus;
use super::daemon::{self, Usage};
use super::results::{MountLatency, WalkCost};
use super::session::{Session, ovl};
use super::stats::{Random, median};
use super::systems::System;

/// How long the kernel may take to hand back inodes after its caches are dropped.
const FORGET: Duration = Duration::from_secs(2);

/// Mounts, walks a tree of many files stat'ing each, and lets the kernel forget them; `None` for a system without a
/// daemon.
pub fn walk(system: &System, arena: &Arena, corpus: &Corpus) -> Result<Option<WalkCost>> {
    let session = Session::open(system, arena, &corpus.walk)?;
    let Some(daemon) = session.daemon() else {
        session.close()?;
        return Ok(None);
    };
    arena.drop_caches()?;
    let idle = daemon.usage()?;
    let root = session.lower("");
    let started = Instant::now();
    // Asking for the size makes find stat every file.
    drain(super::command::command("find", [&root]).args(["-size", "+1k", "-o", "-print"]))?;
    let seconds = started.elapsed().as_secs_f64();
    let walked = daemon.usage()?;
    arena.drop_caches()?;
    let forgotten = settled(|| daemon.usage())?;
    session.close()?;
    Ok(Some(WalkCost {
        idle: idle.resident,
        walked: walked.resident,
        forgotten: forgotten.resident,
        seconds,
        daemon_cpu: walked.cpu - idle.cpu,
    }))
}

/// Waits until a process rests.
fn settled(usage: impl Fn() -> Result<Usage>) -> Result<Usage> {
    let started = Instant::now();
    let mut last = usage()?;
    loop {
        std::thread::sleep(FORGET / 10);
        let now = usage()?;
        let rests = now.cpu - last.cpu == 0.0 && now.resident == last.resident;
        if (rests && started.elapsed() > FORGET / 2) || started.elapsed() > FORGET * 5 {
            return Ok(now);
        }
        last = now;
    }
}

/// `ovl mount` of images of very different size, in turn: from the start of the command until it returns, the mount
/// being there.
pub fn mount_latency(
    arena: &Arena,
    corpus: &Corpus,
    mounts: usize,
    random: &mut Random,
) -> Result<Vec<MountLatency>> {
    let home = arena.path().join("latency");
    let mut seconds = vec![Vec::new(); corpus.mounted.len()];
    let mut memory = vec![Vec::new(); corpus.mounted.len()];
    for _ in 0..mounts {
        let mut order: Vec<usize> = (0..corpus.mounted.len()).collect();
        random.shuffle(&mut order);
        for which in order {
            fs::create_dir_all(home.join("mnt"))?;
            let (took, resident) = mount_once(arena, &home, corpus.mounted[which].0.image)?;
            seconds[which].push(took);
            memory[which].push(resident as f64);
            fs::remove_dir_all(&home)?;
        }
    }
    let of = |which: usize| -> Result<MountLatency> {
        Ok(MountLatency {
            files: corpus.mounted[which].1,
            seconds: seconds[which].clone(),
            resident: median(&memory[which]).context("at least one mount")? as u64,
        })
    };
    (0..corpus.mounted.len()).map(of).collect()
}

fn mount_once(arena: &Arena, home: &Path, image: &str) -> Result<(f64, u64)> {
    let mnt = home.join("mnt");
    let mut mount = ovl(arena, ["mount"]);
    mount
        .arg(format!("image:{image}"))
        .arg(home.join("upper"))
        .arg(&mnt);
    let started = Instant::now();
    run(&mut mount)?;
    let seconds = started.elapsed().as_secs_f64();
    anyhow::ensure!(
        fs::read_dir(&mnt)?.next().is_some(),
        "the mount shows nothing"
    );
    let mounts: serde_json::Value =
        serde_json::from_str(&output(&mut ovl(arena, ["mounts", "--format", "json"]))?)?;
    let pid = mounts[0]["PID"]
        .as_u64()
        .or(mounts[0]["Pid"].as_u64())
        .context("ovl mounts tells no process")?;
    let resident = daemon::usage(u32::try_from(pid)?)?.resident;
    run(ovl(arena, ["umount"]).arg(&mnt))?;
    Ok((seconds, resident))
}
