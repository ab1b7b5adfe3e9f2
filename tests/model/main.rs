//! The model test: random sequences of operations on an ovl mount, on the kernel's overlayfs over the same lowers, and
//! on a plain directory with the same content. The plain directory is the law: ovl must answer every operation with
//! the same result and show the same tree, also after remounts, dropped caches, and when the kernel's overlayfs takes
//! over ovl's upper for a while and hands it back.
//!
//! A failing sequence prints its mode, its seed and its operations; `OVL_MODES=M MODEL_SEED=N cargo test --test model` runs
//! it alone. `MODEL_SEQUENCES` and `MODEL_OPERATIONS` set how many and how long (defaults below), `OVL_MODES` how the mounts
//! are served; not said, most sequences run in the default mode and some in each other one.

#[path = "../mode_support/mod.rs"]
mod mode_support;
mod ops;
mod systems;
mod tree;
#[path = "../uring_support/mod.rs"]
mod uring_support;

use std::path::Path;

use mode_support::{ALL, CACHED, Mode};
use ops::{Hand, Op};
use systems::{By, System};

const SEQUENCES: u64 = 500;
const OPERATIONS: usize = 50;
/// Of the sequences, one in so many runs in each of the other modes, too.
const IN_OTHER_MODES: u64 = 50;

/// splitmix64: small, and the same on every machine.
pub struct Rng(pub u64);

impl Rng {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % n as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| {
        v.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {v}"))
    })
}

/// Set in the process that has a mount namespace of its own.
const INSIDE: &str = "MODEL_INSIDE";

#[test]
fn ovl_behaves_like_a_plain_directory() {
    if std::env::var_os(INSIDE).is_none() {
        // Whoever copies the common namespace would keep our mounts, and so their uppers, busy.
        let status = std::process::Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "ovl_behaves_like_a_plain_directory"])
            .arg("--nocapture")
            .env(INSIDE, "1")
            .status();
        assert!(status.expect("unshare").success(), "see above");
        return;
    }
    uring_support::permit_io_uring();
    let chosen = std::env::var_os("OVL_MODES").is_some();
    for mode in ALL {
        let sequences = match setting("MODEL_SEQUENCES", SEQUENCES) {
            all if mode == CACHED || chosen => all,
            all => all.div_ceil(IN_OTHER_MODES),
        };
        if !mode.is_wanted(true) {
            continue;
        }
        println!("mode: {}, {sequences} sequences", mode.name);
        if std::env::var_os("MODEL_SEED").is_some() {
            sequence(mode, setting("MODEL_SEED", 0));
        } else {
            all_sequences(mode, sequences);
        }
    }
}

fn all_sequences(mode: Mode, sequences: u64) {
    // Two at a time: the machine's cores are better used by the daemons.
    std::thread::scope(|scope| {
        let halves: Vec<_> = (0..2)
            .map(|half| {
                scope.spawn(move || {
                    for seed in (half..sequences).step_by(2) {
                        sequence(mode, seed);
                        if (seed + 2).is_multiple_of(1000) {
                            println!("every second sequence up to {seed} done");
                        }
                    }
                })
            })
            .collect();
        for half in halves {
            if let Err(panic) = half.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

fn sequence(mode: Mode, seed: u64) {
    let mut rng = Rng(seed.wrapping_mul(0x1000_0001));
    let dir = tempfile::Builder::new()
        .prefix("ovl-model-")
        .tempdir()
        .expect("a scratch directory");
    tree::populate(
        &dir.path().join("lower1"),
        &dir.path().join("lower2"),
        &mut rng,
    );
    let mut trace: Vec<String> = Vec::new();
    let mut systems = [
        System::new("ovl", dir.path(), By::Ovl, mode),
        System::new("kernel", dir.path(), By::Kernel, mode),
        System::new("plain", dir.path(), By::Nobody, mode),
    ];
    tree::clone_merged(dir.path(), &systems[2].root);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for system in &mut systems {
            system.mount();
        }
        compare_trees(&systems, "at the start");
        for _ in 0..setting("MODEL_OPERATIONS", OPERATIONS as u64) {
            step(&mut rng, &mut systems, &mut trace);
        }
        for system in &mut systems {
            system.hands.clear();
        }
        compare_trees(&systems, "at the end");
        let before = tree::inodes(&systems[0].root);
        systems[0].remount(By::Ovl);
        compare_trees(&systems, "after a remount");
        if !systems[0].is_kernels() {
            tree::same_inodes(&before, &tree::inodes(&systems[0].root));
        }
        systems[0].remount(By::Kernel);
        compare_trees(&systems, "as the kernel's overlayfs sees the upper");
    }));
    for system in &mut systems {
        system.unmount();
    }
    if let Err(panic) = outcome {
        eprintln!("OVL_MODES={} MODEL_SEED={seed} failed after:", mode.name);
        for line in &trace {
            eprintln!("  {line}");
        }
        std::panic::resume_unwind(panic);
    }
}

fn step(rng: &mut Rng, systems: &mut [System; 3], trace: &mut Vec<String>) {
    match rng.below(100) {
        0 => {
            trace.push("remount".into());
            systems.iter_mut().for_each(|s| s.hands.clear());
            let before = tree::inodes(&systems[0].root);
            let by = systems[0].by;
            systems[0].remount(by);
            systems[1].remount(By::Kernel);
            compare_trees(systems, "after a remount");
            if !systems[0].is_kernels() {
                tree::same_inodes(&before, &tree::inodes(&systems[0].root));
            }
        }
        1 => {
            let by = if systems[0].by == By::Ovl {
                By::Kernel
            } else {
                By::Ovl
            };
            trace.push(format!("swap: ovl's upper is now mounted by {by:?}"));
            systems.iter_mut().for_each(|s| s.hands.clear());
            systems[0].remount(by);
            compare_trees(systems, "after a swap");
        }
        2 => {
            trace.push("drop caches".into());
            // 2: names and inodes, which makes the kernel forget what it looked up.
            std::fs::write("/proc/sys/vm/drop_caches", "2").expect("root may drop caches");
        }
        3..=9 => compare_trees(systems, "in between"),
        _ => {
            let op = ops::choose(rng, &systems[2].root, systems[2].hands.len());
            trace.push(format!("{op:?}"));
            let results: Vec<_> = systems
                .iter_mut()
                .map(|s| (s.name, ops::apply(&op, s)))
                .collect();
            // The kernel's overlayfs keeps a read-only open file at the lower's data: not what POSIX says.
            let kernel_excused = systems[0].is_kernels() && matches!(op, Op::HandRead { .. });
            assert!(
                results[0].1 == results[2].1 || kernel_excused,
                "{op:?}: {} answered {:?}, {} answered {:?} ({} answered {:?})",
                results[0].0,
                results[0].1,
                results[2].0,
                results[2].1,
                results[1].0,
                results[1].1,
            );
            // A rename that the kernel's overlayfs refuses may have made the directory younger all the same.
            if systems[0].is_kernels() && results[0].1.is_err() {
                tree::take_over_times(&systems[0].root, &systems[2].root);
            }
            if results[1].1 != results[2].1 {
                trace.push(format!(
                    "  (the kernel's overlayfs answered {:?})",
                    results[1].1
                ));
            }
        }
    }
}

fn compare_trees(systems: &[System; 3], when: &str) {
    let plain = tree::snapshot(&systems[2].root, true);
    let ovl = tree::snapshot(&systems[0].root, !systems[0].is_kernels());
    tree::assert_same(
        &ovl,
        &plain,
        &format!("{when}, mounted by {:?}", systems[0].by),
    );
}

/// Hands are open files kept over operations.
pub type Hands = Vec<Hand>;

/// What a scratch directory is called.
pub fn under(base: &Path, system: &str, name: &str) -> std::path::PathBuf {
    base.join(format!("{system}-{name}"))
}
