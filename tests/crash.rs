//! The daemon is killed (`kill -9`) at random moments while files are copied up, written, renamed, linked and removed.
//! After a new mount of the same upper every name is as before or after the operation that was under way, every block
//! of every file was written to that file at that place, nothing is half copied, and what fsync reported is there.
//!
//! `OVL_CRASH_ROUNDS` sets the number of rounds; `make torture` runs 500.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::Sandbox;

const BLOCK: usize = 4096;
/// Blocks of each file: several write requests, so that a kill can fall between them.
const BLOCKS: usize = 40;
const WORKERS: u64 = 3;
const FILES: u64 = 12;

/// splitmix64
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ x >> 31) % n
    }
}

/// A block says whose it is, which version, and where it belongs.
fn block(id: u64, version: u64, index: usize) -> Vec<u8> {
    let head = [id, version, index as u64];
    let mut out = Vec::with_capacity(BLOCK);
    while out.len() < BLOCK {
        head.iter()
            .for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
    }
    out.truncate(BLOCK);
    out
}

fn content(id: u64, version: u64) -> Vec<u8> {
    (0..BLOCKS)
        .flat_map(|index| block(id, version, index))
        .collect()
}

/// What a worker knows of its own directory, which nobody else changes.
#[derive(Clone, Default)]
struct Model {
    /// Name to file.
    names: BTreeMap<String, u64>,
    /// Per file: the last version written, and the last that fsync said is on disk.
    written: BTreeMap<u64, u64>,
    synced: BTreeMap<u64, u64>,
    /// Files made during the test: before an fsync they may lack blocks.
    fresh: BTreeSet<u64>,
}

struct Worker {
    dir: PathBuf,
    rng: Rng,
    now: Model,
    /// As `now` will be if the operation under way is done.
    next: Model,
    next_id: u64,
}

impl Worker {
    fn step(&mut self) -> io::Result<()> {
        let names: Vec<String> = self.now.names.keys().cloned().collect();
        let name = names[self.rng.below(names.len() as u64) as usize].clone();
        let id = self.now.names[&name];
        let other = format!("n{}", self.rng.below(40));
        let (path, to) = (self.dir.join(&name), self.dir.join(&other));
        self.next = self.now.clone();
        match self.rng.below(10) {
            0..=4 => {
                let version = self.now.written[&id] + 1;
                self.next.written.insert(id, version);
                // The version counts as written from its first byte on.
                self.now.written.insert(id, version);
                let file = OpenOptions::new().write(true).open(&path)?;
                file.write_all_at(&content(id, version), 0)?;
                if self.rng.below(2) == 0 {
                    file.sync_all()?;
                    self.next.synced.insert(id, version);
                    self.next.fresh.remove(&id);
                }
            }
            5 | 6 => {
                // Over another name or to a free one; between two names of one file nothing happens.
                if self.now.names.get(&other) != Some(&id) {
                    self.next.names.remove(&name);
                    self.next.names.insert(other, id);
                }
                fs::rename(&path, &to)?;
            }
            7 => {
                if self.now.names.contains_key(&other) {
                    return Ok(());
                }
                self.next.names.insert(other, id);
                fs::hard_link(&path, &to)?;
            }
            8 => {
                if names.len() < 4 {
                    return Ok(());
                }
                self.next.names.remove(&name);
                fs::remove_file(&path)?;
            }
            _ => {
                if self.now.names.contains_key(&other) {
                    return Ok(());
                }
                let id = self.next_id;
                self.next_id += 1;
                self.next.names.insert(other, id);
                self.next.written.insert(id, 1);
                self.next.fresh.insert(id);
                // Made but not filled, or both.
                let file = File::create_new(&to)?;
                file.write_all_at(&content(id, 1), 0)?;
            }
        }
        self.now = self.next.clone();
        Ok(())
    }

    /// Compares the directory after a crash with the model, which it becomes.
    fn verify(&mut self, round: u64) {
        let found: BTreeSet<String> = fs::read_dir(&self.dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        let is = |model: &Model| model.names.keys().cloned().collect::<BTreeSet<_>>() == found;
        let mut model = match (is(&self.next), is(&self.now)) {
            (true, _) => self.next.clone(),
            (_, true) => self.now.clone(),
            _ => panic!(
                "round {round}, {}: names {found:?}\n before {:?}\n after {:?}",
                self.dir.display(),
                self.now.names,
                self.next.names
            ),
        };
        // An interrupted write may have got anywhere; what fsync said before it counts.
        model.synced.clone_from(&self.now.synced);
        let mut lasts = BTreeMap::new();
        for (name, id) in model.names.clone() {
            let path = self.dir.join(&name);
            let bytes = fs::read(&path)
                .unwrap_or_else(|e| panic!("round {round}, {}: {e}", path.display()));
            let fresh = self.next.fresh.contains(&id) || self.now.fresh.contains(&id);
            let synced = model.synced.get(&id).copied().unwrap_or(0);
            let last = self
                .next
                .written
                .get(&id)
                .copied()
                .unwrap_or(1)
                .max(self.now.written.get(&id).copied().unwrap_or(0));
            let whole = bytes.len() == BLOCKS * BLOCK;
            assert!(
                whole || fresh,
                "round {round}, {}: {} bytes",
                path.display(),
                bytes.len()
            );
            for (index, got) in bytes.chunks(BLOCK).enumerate() {
                if fresh && (got.len() < BLOCK || got.iter().all(|b| *b == 0)) {
                    continue;
                }
                let version = u64::from_le_bytes(got[8..16].try_into().unwrap());
                assert!(
                    got == block(id, version, index) && (synced..=last).contains(&version),
                    "round {round}, {}: block {index} of file {id} begins {:x?} (synced {synced}, last {last})",
                    path.display(),
                    &got[..24]
                );
            }
            lasts.insert(id, (last, path));
        }
        // What was not on disk is written anew, so that the next round starts from whole files.
        for (id, (last, path)) in lasts {
            let version = last + 1;
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(0).unwrap();
            file.write_all_at(&content(id, version), 0).unwrap();
            file.sync_all().unwrap();
            model.written.insert(id, version);
            model.synced.insert(id, version);
            model.fresh.remove(&id);
        }
        self.now = model.clone();
        self.next = model;
    }
}

#[test]
fn a_killed_daemon_loses_nothing_it_promised() {
    let rounds: u64 = std::env::var("OVL_CRASH_ROUNDS")
        .ok()
        .map_or(12, |v| v.parse().expect("a number"));
    let s = Sandbox::new();
    let (lower, upper, mnt) = (s.mkdir("lower"), s.mkdir("upper"), s.mkdir("mnt"));
    let mut workers: Vec<Worker> = (0..WORKERS)
        .map(|w| {
            let dir = lower.join(format!("w{w}"));
            fs::create_dir(&dir).unwrap();
            let mut now = Model::default();
            for i in 0..FILES {
                let id = w * 1_000_000 + i;
                let path = dir.join(format!("n{i}"));
                fs::write(&path, content(id, 0)).unwrap();
                now.names.insert(format!("n{i}"), id);
                // Some have two names in the lower.
                if i % 4 == 0 {
                    fs::hard_link(&path, dir.join(format!("n{}", 20 + i))).unwrap();
                    now.names.insert(format!("n{}", 20 + i), id);
                }
                now.written.insert(id, 0);
                now.synced.insert(id, 0);
            }
            let next_id = w * 1_000_000 + 1000;
            Worker {
                dir: mnt.join(format!("w{w}")),
                rng: Rng(w + 77),
                next: now.clone(),
                now,
                next_id,
            }
        })
        .collect();
    let mount = || {
        s.run([
            "mount".as_ref(),
            lower.as_os_str(),
            upper.as_os_str(),
            mnt.as_os_str(),
        ])
    };
    let mut rng = Rng(4711);
    mount();
    for round in 0..rounds {
        let pid = common::daemon_of(&s);
        let stop = AtomicBool::new(false);
        let delay = Duration::from_micros(500 + rng.below(120_000));
        std::thread::scope(|scope| {
            for worker in &mut workers {
                let stop = &stop;
                scope
                    .spawn(move || while !stop.load(Ordering::Relaxed) && worker.step().is_ok() {});
            }
            std::thread::sleep(delay);
            let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        assert!(
            Command::new("umount")
                .arg("-l")
                .arg(&mnt)
                .status()
                .unwrap()
                .success()
        );
        mount();
        for worker in &mut workers {
            worker.verify(round);
        }
    }
    s.run(["umount".as_ref(), mnt.as_os_str()]);
    let left = fs::read_dir(s.path(".upper.ovl-work/work"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "an orderly unmount leaves nothing in the workdir");
}
