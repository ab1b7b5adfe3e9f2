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
