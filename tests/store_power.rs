//! Power cuts: whatever of the writes that were not synced reached the disk, the store opens, checks clean, and has what
//! finished commands reported.
//!
//! The real program works on a disk that remembers every write and sync (`disk_support`). Afterwards the disk is set to
//! what a cut could have left, at every sync and between, and looked at. `OVL_POWER_STATES` sets how many such states are
//! tried (0: every cut, each in eight ways).

mod common;
mod disk_support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Sandbox, busybox, require_mounting};
use disk_support::{Disk, Luck, Op, Rng, Tree};
use ovl::image::check_documents;
use ovl::store::{FsckOptions, Store};

const DAMAGE: &str = "OVL_TEST_DAMAGE";
const DATABASE: &str = "OVL_TEST_DATABASE";

/// Names and the images they stand for.
type Names = BTreeMap<String, String>;

/// One command that has finished.
struct Step {
    what: String,
    /// Operations of the disk when it had ended.
    end: usize,
    names: Names,
    /// Whether nothing is damaged afterwards.
    sound: bool,
}

/// Commands on a store that is on the disk.
struct Scenario {
    sandbox: Sandbox,
    disk: Option<Disk>,
    root: PathBuf,
    steps: Vec<Step>,
}

impl Scenario {
    fn new() -> Self {
        require_mounting();
        let sandbox = Sandbox::new();
        let disk = Disk::mount(Tree::new(), &sandbox.mkdir("disk"));
        let root = sandbox.path("disk/store");
        Self {
            sandbox,
            disk: Some(disk),
            root,
            steps: Vec::new(),
        }
    }

    fn ovl(&mut self, args: &[&str]) {
        let root = self.root.to_str().unwrap().to_owned();
        self.sandbox
            .ovl(["--root", &root].iter().chain(args))
            .assert()
            .success();
        let sound = self.steps.last().is_none_or(|step| step.sound) || args[0] == "fsck";
        self.finished(args.join(" "), sound);
    }

    /// A check that finds damage.
    fn damage_is_found(&mut self) {
        let root = self.root.to_str().unwrap().to_owned();
        self.sandbox.ovl(["--root", &root, "fsck"]).assert().code(5);
        assert!(self.root.join("store.damage").exists());
        self.finished("fsck".to_owned(), false);
    }

    /// An import that puts right what the check found.
    fn healed(&mut self, args: &[&str]) {
        self.ovl(args);
        assert!(!self.root.join("store.damage").exists());
        self.steps.last_mut().unwrap().sound = true;
        self.ovl(&["fsck"]);
    }

    /// Something that damages the store, done behind ovl's back. By a process of its own: this one serves the disk, and
    /// must not wait for it with a page fault.
    fn damage(&mut self, sql: &str) {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_power_cut_loses_nothing_that_was_reported"])
            .env(DAMAGE, sql)
            .env(DATABASE, self.root.join("store.db"))
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{sql}");
        self.finished(sql.to_owned(), false);
    }

    fn finished(&mut self, what: String, sound: bool) {
        let (tree, end) = {
            let state = self.disk.as_ref().unwrap().state();
            (state.tree.clone(), state.log.len())
        };
        let copy = tempfile::tempdir().unwrap();
        tree.materialize(copy.path());
        let names = names(&Store::open(&copy.path().join("store")).unwrap());
        self.steps.push(Step {
            what,
            end,
            names,
            sound,
        });
    }

    fn log(&mut self) -> Vec<Op> {
        let disk = self.disk.take().unwrap();
        disk.state().log.clone()
    }
}

fn names(store: &Store) -> Names {
    let mut names = Names::new();
    for image in store.images().unwrap() {
        for name in image.names {
            names.insert(name, image.manifest.to_string());
        }
    }
    names
}

fn everything() -> Scenario {
    let mut scenario = Scenario::new();
    let two = rootfs(&scenario.sandbox, "two", 2);
    let three = rootfs(&scenario.sandbox, "three", 3);
    scenario.ovl(&["import", busybox().to_str().unwrap()]);
    scenario.ovl(&["import", &two, "--tag", "two:1"]);
    scenario.ovl(&["tag", "busybox", "copy:1"]);
    commit(&mut scenario);
    scenario.ovl(&["rmi", "two:1"]);
    scenario.ovl(&["gc"]);
    scenario.ovl(&["import", &two, "--tag", "two:2"]);
    scenario.ovl(&["import", &three, "--tag", "three:1"]);
    scenario.ovl(&["untag", "copy:1"]);
    scenario.damage(
        "UPDATE pack SET data = zeroblob(length(data)) WHERE id = (SELECT max(id) FROM pack)",
    );
    scenario.damage_is_found();
    scenario.healed(&["import", &three, "--tag", "three:1"]);
    scenario.damage(
        "UPDATE pack SET data = zeroblob(length(data)) WHERE id = (SELECT max(id) FROM pack)",
    );
    scenario.ovl(&["fsck", "--repair"]);
    scenario.ovl(&["gc"]);
    scenario.ovl(&["import", &three, "--tag", "three:2"]);
    assert_eq!(
        scenario.steps.last().unwrap().names.len(),
        4,
        "all is as it should be at the end"
    );
    scenario
}

/// A tar of a small root file system that is like no other.
fn rootfs(sandbox: &Sandbox, name: &str, seed: u64) -> String {
    let mut rng = Rng(seed);
    let dir = sandbox.mkdir(&format!("{name}.d/etc"));
    let mut noise = |len: usize| -> Vec<u8> { (0..len).map(|_| rng.below(256) as u8).collect() };
    std::fs::write(dir.join("one"), noise(5_000)).unwrap();
    std::fs::write(dir.join("big"), noise(200_000)).unwrap();
    std::fs::write(dir.join("text"), name.repeat(500)).unwrap();
    let tar = sandbox.path(format!("{name}.tar"));
    common::command(
        "tar",
        [
            "--sort=name",
            "-cf",
            tar.to_str().unwrap(),
            "-C",
            dir.parent().unwrap().to_str().unwrap(),
            ".",
        ],
    );
    tar.to_str().unwrap().to_owned()
}

/// Commits a mount of host directories, so that the mount itself keeps nothing on the disk busy.
fn commit(scenario: &mut Scenario) {
    let lower = scenario.sandbox.mkdir("lower");
    std::fs::write(lower.join("below"), "below").unwrap();
    let (upper, mnt) = (
        scenario.sandbox.mkdir("upper"),
        scenario.sandbox.mkdir("mnt"),
    );
    let words = [&lower, &upper, &mnt].map(|path| path.to_str().unwrap().to_owned());
    scenario
        .sandbox
        .run(["mount", &words[0], &words[1], &words[2]]);
    std::fs::write(mnt.join("above"), "above").unwrap();
    scenario.ovl(&["commit", &words[2], "made:1"]);
    scenario.sandbox.run(["umount", &words[2]]);
}

#[test]
fn a_power_cut_loses_nothing_that_was_reported() {
    if let Ok(sql) = std::env::var(DAMAGE) {
        let db = rusqlite::Connection::open(std::env::var_os(DATABASE).unwrap()).unwrap();
        db.pragma_update(None, "synchronous", "FULL").unwrap();
        assert!(db.execute(&sql, []).unwrap() > 0, "{sql}");
        return;
    }
    let mut scenario = everything();
    let log = scenario.log();
    let cuts = cuts(&log, &scenario.steps);
    let states: Vec<(usize, u64)> = cuts
        .iter()
        .flat_map(|cut| (0..8).map(move |way| (*cut, way)))
        .collect();
    let wanted = match std::env::var("OVL_POWER_STATES").map(|n| n.parse().expect("a number")) {
        Ok(0) => states.len(),
        Ok(n) => n,
        Err(_) => 250,
    };
    // Evenly spread, and each way has its turn.
    let picked: Vec<_> = (0..wanted.min(states.len()))
        .map(|n| states[n * states.len() / wanted.min(states.len())])
        .collect();
    println!(
        "{} operations, {} cuts, {} states tried",
        log.len(),
        cuts.len(),
        picked.len()
    );
    let halves = picked.split_at(picked.len() / 2);
    let base = Tree::new();
    let failed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for part in [halves.0, halves.1] {
            let (base, log, steps, failed) = (&base, &log, &scenario.steps, &failed);
            scope.spawn(move || {
                for (cut, way) in part {
                    let looked = std::panic::catch_unwind(|| look(base, log, steps, *cut, *way));
                    if looked.is_err() {
                        failed.lock().unwrap().push((*cut, *way));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "these cuts, in these ways, did harm: {failed:?}"
    );
}

/// Just before and behind each sync, each command's end, and some places between.
fn cuts(log: &[Op], steps: &[Step]) -> Vec<usize> {
    let mut cuts: Vec<usize> = steps.iter().map(|step| step.end).collect();
    let mut rng = Rng(1);
    for (index, op) in log.iter().enumerate() {
        if op.is_sync() {
            cuts.extend([index, index + 1]);
        } else if rng.below(8) == 0 {
            cuts.push(index);
        }
    }
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

/// Sets a disk to what a cut left, and looks at the store on it.
fn look(base: &Tree, log: &[Op], steps: &[Step], cut: usize, way: u64) {
    let mut luck = match way {
        0 => Luck::None,
        1 => Luck::All,
        way => Luck::Random(Rng(way * 1_000_003 + cut as u64)),
    };
    let copy = tempfile::tempdir().unwrap();
    base.after_cut(&log[..cut], &mut luck)
        .materialize(copy.path());
    let done = steps.iter().take_while(|step| step.end <= cut).count();
    let before = done.checked_sub(1).map(|index| &steps[index]);
    let after = steps.get(done);
    let told = format!(
        "cut at {cut}, way {way}: after {:?}, within {:?}",
        before.map(|step| &step.what),
        after.map(|step| &step.what)
    );
    look_at(&copy.path().join("store"), before, after, &told);
}

fn look_at(root: &Path, before: Option<&Step>, after: Option<&Step>, told: &str) {
    let store = match Store::open_existing(root) {
        Ok(Some(store)) => store,
        Ok(None) if before.is_none() => return,
        Ok(None) => panic!("{told}: the store is gone"),
        Err(error) => panic!("{told}: {error}"),
    };
    let now = names(&store);
    let nothing = Names::new();
    let states = [
        before.map_or(&nothing, |step| &step.names),
        after.map_or(&nothing, |step| &step.names),
    ];
    assert!(
        states.contains(&&now),
        "{told}: {now:?}, not one of {states:?}"
    );
    let options = FsckOptions {
        documents: Some(&check_documents),
        ..FsckOptions::default()
    };
    let report = store
        .fsck(&options, &|_| {})
        .unwrap_or_else(|error| panic!("{told}: {error}"));
    let sound = before.is_none_or(|step| step.sound) && after.is_none_or(|step| step.sound);
    if sound {
        assert_eq!(report.problems, [], "{told}");
    } else {
        // Damaged, or about to be: no other image may suffer.
        let suffering: Vec<_> = report
            .problems
            .iter()
            .flat_map(|problem| &problem.images)
            .collect();
        assert!(
            suffering.iter().all(|name| name.ends_with("three:1")),
            "{told}: {suffering:?}"
        );
    }
    // It works on.
    store
        .gc()
        .unwrap_or_else(|error| panic!("{told}: gc: {error}"));
    assert_eq!(names(&store), now, "{told}: gc");
    if sound {
        let report = store.fsck(&options, &|_| {}).unwrap();
        assert_eq!(report.problems, [], "{told}: after gc");
    }
}

/// The disk itself: what is not synced can be lost, what is synced cannot.
#[test]
fn the_disk_forgets_only_what_was_not_synced() {
    require_mounting();
    let sandbox = Sandbox::new();
    let disk = Disk::mount(Tree::new(), &sandbox.mkdir("disk"));
    let path = sandbox.path("disk/file");
    let script = format!(
        "printf synced > {p} && sync {p} && sync {d} && printf more >> {p} && printf x > {p}2",
        p = path.display(),
        d = sandbox.path("disk").display()
    );
    assert!(
        Command::new("sh")
            .args(["-c", &script])
            .status()
            .unwrap()
            .success()
    );
    let log = disk.state().log.clone();
    drop(disk);
    for (luck, want, names) in [(Luck::None, "synced", 1), (Luck::All, "syncedmore", 2)] {
        let mut luck = luck;
        let copy = tempfile::tempdir().unwrap();
        Tree::new()
            .after_cut(&log, &mut luck)
            .materialize(copy.path());
        assert_eq!(
            std::fs::read_to_string(copy.path().join("file")).unwrap(),
            want
        );
        assert_eq!(std::fs::read_dir(copy.path()).unwrap().count(), names);
    }
}
