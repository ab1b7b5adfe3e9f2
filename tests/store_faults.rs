//! Failing disks: each I/O in turn is answered with EIO, ENOSPC or EACCES. The command says so in one line, and the store
//! is as before or as after it; nothing is lost.
//!
//! `OVL_FAULTS` sets how many places of each case are tried (0: every one). `OVL_FAULTS_ONLY` names one case, one kind and
//! a range of places instead, like `first import,Io,1100,1120`.

mod common;
mod disk_support;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Sandbox, busybox, require_mounting};
use disk_support::{Disk, Fault, Kind, Tree};
use ovl::image::check_documents;
use ovl::store::{FsckOptions, Store};

type Names = BTreeMap<String, String>;

/// The names in a store, which must be sound; `None` if there is no store.
fn names(tree: &Tree, told: &str) -> Option<Names> {
    let copy = tempfile::tempdir().unwrap();
    tree.materialize(copy.path());
    let store = Store::open_existing(&copy.path().join("store"));
    let store = store.unwrap_or_else(|error| panic!("{told}: {error}"))?;
    let options = FsckOptions {
        documents: Some(&check_documents),
        ..FsckOptions::default()
    };
    let report = store.fsck(&options, &|_| {}).unwrap();
    assert_eq!(report.problems, [], "{told}");
    let mut names = Names::new();
    for image in store.images().unwrap() {
        for name in image.names {
            names.insert(name, image.manifest.to_string());
        }
    }
    Some(names)
}

/// Runs `ovl` on a disk; its exit code and stderr, whether the fault struck, and the disk afterwards.
fn run(
    sandbox: &Sandbox,
    tree: &Tree,
    args: &[&str],
    fault: Option<Fault>,
) -> (i32, String, bool, Tree) {
    let at = sandbox.mkdir("disk");
    let disk = Disk::mount(tree.clone(), &at);
    if let Some(fault) = fault {
        disk.arm(fault);
    }
    let root = at.join("store");
    let output = sandbox
        .ovl(["--root", root.to_str().unwrap()].iter().chain(args))
        .env("OVL_BUSY_SECONDS", "2")
        .output()
        .unwrap();
    let struck = disk.disarm();
    let after = disk.state().tree.clone();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), stderr, struck, after)
}

struct Case<'a> {
    what: &'a str,
    args: Vec<&'a str>,
    before: Tree,
}

#[test]
fn every_fault_is_told_and_loses_nothing() {
    require_mounting();
    let sandbox = Sandbox::new();
    let busybox = busybox();
    let busybox = busybox.to_str().unwrap();
    let empty = Tree::new();
    let must = |tree: &Tree, args: &[&str]| {
        let (code, stderr, _, after) = run(&sandbox, tree, args, None);
        assert_eq!(code, 0, "{args:?}: {stderr}");
        after
    };
    let filled = must(&empty, &["import", busybox]);
    let tagged = must(&filled, &["tag", "busybox", "copy:1"]);
    let removed = must(&filled, &["rmi", "busybox"]);
    let cases = [
        Case {
            what: "first import",
            args: vec!["import", busybox],
            before: empty,
        },
        Case {
            what: "import",
            args: vec!["import", busybox],
            before: removed.clone(),
        },
        Case {
            what: "tag",
            args: vec!["tag", "busybox", "other:2"],
            before: tagged.clone(),
        },
        Case {
            what: "untag",
            args: vec!["untag", "copy:1"],
            before: tagged.clone(),
        },
        Case {
            what: "rmi",
            args: vec!["rmi", "--force", "busybox"],
            before: tagged.clone(),
        },
        Case {
            what: "gc",
            args: vec!["gc"],
            before: removed,
        },
        Case {
            what: "fsck",
            args: vec!["fsck", "--repair"],
            before: tagged.clone(),
        },
        Case {
            what: "images",
            args: vec!["images"],
            before: tagged,
        },
    ];
    let wanted: usize = std::env::var("OVL_FAULTS").map_or(3, |n| n.parse().expect("a number"));
    let only = std::env::var("OVL_FAULTS_ONLY").ok();
    let only = only.as_deref().map(Only::parse);
    let (mut struck, mut failed) = (0, Vec::new());
    for case in &cases {
        if only.as_ref().is_some_and(|only| only.what != case.what) {
            continue;
        }
        let (code, stderr, _, after) = run(&sandbox, &case.before, &case.args, None);
        assert_eq!(code, 0, "{}: {stderr}", case.what);
        let states = [names(&case.before, case.what), names(&after, case.what)];
        for kind in [Kind::Io, Kind::Read, Kind::Space, Kind::Access] {
            // How many requests there are: none of them is the last of all numbers.
            let all = requests(&sandbox, case, kind);
            // SQLite has two words for a read that fails, and the wrong one at some of the places only.
            let wanted = if kind == Kind::Read {
                4 * wanted
            } else {
                wanted
            };
            let step = (all as usize).checked_div(wanted).unwrap_or(1).max(1);
            let places = match &only {
                Some(only) if only.kind != format!("{kind:?}") => continue,
                Some(only) => (only.places.0..only.places.1.min(all)).step_by(1),
                None => (0..all).step_by(step),
            };
            println!(
                "{}, {kind:?}: {} of {all} places",
                case.what,
                places.clone().count()
            );
            for nth in places {
                let fault = Fault {
                    kind,
                    nth,
                    for_good: kind == Kind::Space,
                };
                let hit = std::panic::AssertUnwindSafe(|| strike(&sandbox, case, fault, &states));
                match std::panic::catch_unwind(hit) {
                    Ok(hit) => struck += u32::from(hit),
                    Err(_) => failed.push((case.what, fault)),
                }
            }
        }
    }
    println!("{struck} faults struck");
    assert!(failed.is_empty(), "these were not borne: {failed:?}");
    assert!(struck > 40 || only.is_some(), "only {struck} faults struck");
}

/// What `OVL_FAULTS_ONLY` names.
struct Only<'a> {
    what: &'a str,
    kind: &'a str,
    places: (u64, u64),
}

impl<'a> Only<'a> {
    fn parse(text: &'a str) -> Self {
        let parts: Vec<&str> = text.split(',').collect();
        let [what, kind, from, to] = parts[..] else {
            panic!("OVL_FAULTS_ONLY is CASE,KIND,FROM,TO, not {text:?}");
        };
        let number = |text: &str| text.parse().expect("a number in OVL_FAULTS_ONLY");
        Self {
            what,
            kind,
            places: (number(from), number(to)),
        }
    }
}

/// Requests of a kind that a command makes.
fn requests(sandbox: &Sandbox, case: &Case<'_>, kind: Kind) -> u64 {
    let at = sandbox.mkdir("disk");
    let disk = Disk::mount(case.before.clone(), &at);
    disk.arm(Fault {
        kind,
        nth: u64::MAX,
        for_good: false,
    });
    let root = at.join("store");
    sandbox
        .ovl(["--root", root.to_str().unwrap()].iter().chain(&case.args))
        .assert()
        .success();
    disk.seen()
}

fn strike(sandbox: &Sandbox, case: &Case<'_>, fault: Fault, states: &[Option<Names>; 2]) -> bool {
    let told = format!("{} with {fault:?}", case.what);
    let (code, stderr, struck, after) = run(sandbox, &case.before, &case.args, Some(fault));
    let now = names(&after, &told);
    let made_nothing =
        now.as_ref().is_none_or(Names::is_empty) && states[0].as_ref().is_none_or(Names::is_empty);
    assert!(
        states.contains(&now) || made_nothing,
        "{told}: {now:?}, not one of {states:?}; it said {stderr}"
    );
    if code == 0 {
        assert!(now == states[1], "{told}: reported as done, and is not");
        return struck;
    }
    assert_eq!(code, 1, "{told}: {stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("ovl: ") && last.len() > 10,
        "{told}: {stderr}"
    );
    let words: &[&str] = match fault.kind {
        Kind::Space => &["no space left"],
        Kind::Io | Kind::Read => &[
            "input or output failed",
            "input/output error",
            "could not be opened for writing",
        ],
        Kind::Access => &[
            "permission denied",
            "input or output failed",
            "could not be opened for writing",
        ],
    };
    let lower = last.to_lowercase();
    assert!(
        words.iter().any(|word| lower.contains(word)),
        "{told}: {stderr}"
    );
    assert_eq!(
        stderr.lines().count(),
        1,
        "{told}: one line, please: {stderr}"
    );
    // Once the disk is well again, so is the command.
    let (code, stderr, _, healed) = run(sandbox, &after, &case.args, None);
    assert!(code == 0 || now == states[1], "{told}: and then: {stderr}");
    assert!(
        names(&healed, &told) == states[1],
        "{told}: and then: {stderr}"
    );
    struck
}

/// So that a failing disk is told from a program that does not look: the test disk fails where it is told to.
#[test]
fn the_disk_fails_where_it_is_told_to() {
    require_mounting();
    let sandbox = Sandbox::new();
    let disk = Disk::mount(Tree::new(), &sandbox.mkdir("disk"));
    let path = sandbox.path("disk/file");
    let write = |path: &Path| {
        let script = format!("echo words > {}", path.display());
        std::process::Command::new("sh")
            .args(["-c", &script])
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap()
            .success()
    };
    disk.arm(Fault {
        kind: Kind::Space,
        nth: 1,
        for_good: false,
    });
    assert!(!write(&path), "the file is made, writing to it fails");
    assert!(disk.disarm());
    assert!(write(&path));
    assert!(!disk.disarm());
}
