//! Every input that fuzzing found worth keeping, through the functions that are fuzzed: what failed once must never again.
//! `make fuzz` looks for more.

#[path = "fuzz/targets.rs"]
mod targets;

use std::path::Path;

#[test]
fn the_corpus_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/fuzz");
    for (name, target) in targets::ALL {
        let dir = corpus.join(name);
        let list = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut files: Vec<_> = list.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 5, "{}: hardly a corpus", dir.display());
        for file in files {
            let data = std::fs::read(&file).unwrap();
            let held = std::panic::catch_unwind(|| target(&data));
            assert!(held.is_ok(), "target {name} fails with {}", file.display());
        }
    }
}

/// The stateful targets find most with inputs nobody thought of: a few new ones each (`OVL_FUZZ_INPUTS`, from `OVL_FUZZ_FIRST` on), the same on every
/// machine. Those from which a failure can be learnt are printed.
#[test]
fn random_operations_hold() {
    let inputs = std::env::var("OVL_FUZZ_INPUTS").map_or(150, |n| n.parse().expect("a number"));
    for (name, target) in [
        ("engine", targets::engine as targets::Target),
        ("marks", targets::marks),
        ("wire", targets::wire),
    ] {
        let first = std::env::var("OVL_FUZZ_FIRST").map_or(0, |n| n.parse().expect("a number"));
        for seed in first..first + inputs {
            let mut state: u64 = seed;
            let mut byte = || {
                // The multiplier and increment of Knuth's MMIX.
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            let data: Vec<u8> = (0..400).map(|_| byte()).collect();
            let held = std::panic::catch_unwind(|| target(&data));
            assert!(
                held.is_ok(),
                "target {name} fails with seed {seed}: {data:?}"
            );
        }
    }
}
