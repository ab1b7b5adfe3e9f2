//! Memory follows what the kernel knows: what it forgets is given back to the system. Alone in its process, whose memory it
//! looks at.

mod engine_support;

use std::ffi::OsStr;
use std::fs;

use engine_support::Bench;
use ovl::overlay::NodeId;

const FILES: usize = 30_000;

/// Resident bytes of this process.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() << 10
}

#[test]
fn what_the_kernel_forgets_goes_back_to_the_system() {
    let name = |n: usize| format!("a-file-with-a-name-of-usual-length-{n}");
    let bench = Bench::new(|lower, _| {
        // One file of many names would be one node.
        (0..FILES).for_each(|n| fs::write(lower.join(name(n)), "").unwrap());
    });
    let look_up_all = || -> Vec<NodeId> {
        let entries = (0..FILES).map(|n| bench.overlay.lookup(NodeId::ROOT, OsStr::new(&name(n))));
        entries.map(|entry| entry.unwrap().unwrap().node).collect()
    };
    let before = resident();
    for round in 0..2 {
        let nodes = look_up_all();
        assert_eq!(bench.overlay.node_count(), FILES + 1, "round {round}");
        let known = resident();
        for node in nodes {
            bench.overlay.forget(node, 1);
        }
        assert_eq!(bench.overlay.node_count(), 1, "round {round}");
        let forgotten = resident();
        println!("{before} bytes, {known} with {FILES} files known, {forgotten} afterwards");
        let (grown, kept) = (known - before, forgotten.saturating_sub(before));
        assert!(
            grown < FILES * 550,
            "round {round}: {} bytes for each file",
            grown / FILES
        );
        assert!(
            grown > FILES * 100 && kept < grown / 2,
            "round {round}: {known} bytes while {FILES} files were known, {forgotten} afterwards, {before} before"
        );
    }
}
