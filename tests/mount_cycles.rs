//! Mounts that come and go again and again, as container programs make them: unmounted from outside, lazily, moved with
//! their directory, and mounted anew on the same path at once. No daemon stays, none hangs, none takes away a mount that
//! is not its own, and none keeps anything of its caller's.
//!
//! `OVL_MOUNT_CYCLES=2000 cargo test --test mount_cycles` for more rounds.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Sandbox, mounts_below, require_mounting};
use rustix::process::{Pid, Signal, kill_process};

const ROUNDS: usize = 200;
const AT_ONCE: usize = 64;

struct Place(Sandbox);

impl Place {
    fn new() -> Self {
        require_mounting();
        let place = Self(Sandbox::new());
        symlink(env!("CARGO_BIN_EXE_ovl"), place.at("fuse-overlayfs")).unwrap();
        place.0.mkdir("low");
        place.0.write("low/below", "from below");
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    fn command(&self, upper: &str, mount_point: &str) -> Command {
        for dir in [upper, &format!("{upper}-work"), mount_point] {
            self.0.mkdir(dir);
        }
        let options = format!("lowerdir=low,upperdir={upper},workdir={upper}-work,volatile");
        let mut program = Command::new(self.at("fuse-overlayfs"));
        program.args(["-o", &options, mount_point]);
        program
            .current_dir(self.at(""))
            .env("OVL_RUN", self.at("run"))
            .stdin(Stdio::null());
        program
    }

    fn mount(&self, upper: &str, mount_point: &str) {
        let output = self.command(upper, mount_point).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }

    /// Uses a mount: what is below shows, what is written is kept in that upper.
    fn utilise(&self, upper: &str, mount_point: &str, text: &str) {
        let mnt = self.at(mount_point);
        assert_eq!(fs::read(mnt.join("below")).unwrap(), b"from below");
        fs::write(mnt.join("mine"), text).unwrap();
        fs::create_dir_all(mnt.join("a/b")).unwrap();
        fs::rename(mnt.join("a"), mnt.join("c")).unwrap();
        fs::remove_dir_all(mnt.join("c")).unwrap();
        assert_eq!(fs::read_dir(&mnt).unwrap().count(), 2);
        assert_eq!(
            fs::metadata(self.at(upper).join("mine")).unwrap().len(),
            text.len() as u64
        );
    }

    /// As from outside. For a moment others may hold what is there: between fork and exec, a process that another test
    /// starts has our open files.
    fn unmount(&self, mount_point: &str, how: &str) {
        let path = self.at(mount_point);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let mut fusermount = Command::new("fusermount3");
            let output = fusermount.arg(how).arg(&path).output().unwrap();
            let words = String::from_utf8_lossy(&output.stderr);
            if output.status.success() {
                return;
            }
            assert!(
                words.contains("busy") && Instant::now() < deadline,
                "{fusermount:?}: {words}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The daemons of this place, from the list of all processes. (Not by their words: reading those waits for a process
    /// that is stuck, whoever's it is.)
    fn daemons(&self) -> Vec<u32> {
        let logs = self.at("run/log");
        let ours = |pid: &u32| {
            let stderr = fs::read_link(format!("/proc/{pid}/fd/2"));
            stderr.is_ok_and(|log| log.starts_with(&logs))
        };
        let entries = fs::read_dir("/proc").unwrap();
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(ours)
            .collect()
    }

    fn wait_until_none_is_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.daemons().is_empty() {
            assert!(
                Instant::now() < deadline,
                "left running: {:?}",
                self.daemons()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(mounts_below(&self.at("")), Vec::<PathBuf>::new());
        assert_eq!(fs::read_dir(self.at("run/mounts")).unwrap().count(), 0);
        assert_eq!(
            fs::read_dir(self.at("run/log")).unwrap().count(),
            0,
            "words in a log"
        );
    }
}

#[test]
fn again_and_again_on_the_same_path() {
    let rounds = std::env::var("OVL_MOUNT_CYCLES").map_or(ROUNDS, |n| n.parse().expect("a number"));
    let place = Place::new();
    for round in 0..rounds {
        let text = format!("round {round}");
        place.mount("up", "place/mnt");
        place.utilise("up", "place/mnt", &text);
        match round % 4 {
            0 => place.unmount("place/mnt", "-u"),
            1 => {
                // Held while it goes; the next round's mount takes the same upper over.
                let held = File::open(place.at("place/mnt/mine")).unwrap();
                place.unmount("place/mnt", "-uz");
                assert_eq!(std::io::read_to_string(&held).unwrap(), text);
            }
            2 => {
                // The mount moves with its directory, and its old path is mounted on by another.
                fs::rename(place.at("place"), place.at("moved")).unwrap();
                place.mount("other", "place/mnt");
                place.utilise("other", "place/mnt", "in between");
                place.utilise("up", "moved/mnt", &text);
                place.unmount("moved/mnt", "-u");
                place.utilise("other", "place/mnt", "still there");
                place.unmount("place/mnt", "-u");
                fs::remove_dir_all(place.at("moved")).unwrap();
            }
            _ => {
                // The old daemon, still in use, is told to end while another's mount has its path.
                let old = place.daemons();
                let held = File::open(place.at("place/mnt/mine")).unwrap();
                place.unmount("place/mnt", "-uz");
                place.mount("other", "place/mnt");
                for pid in old {
                    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
                    // It may be an earlier one, gone meanwhile.
                    let _ = kill_process(pid, Signal::TERM);
                }
                assert_eq!(std::io::read_to_string(&held).unwrap(), text);
                drop(held);
                place.utilise("other", "place/mnt", "the newer one");
                place.unmount("place/mnt", "-u");
            }
        }
        let left = place.daemons().len();
        assert!(left <= 8, "{left} daemons after round {round}");
    }
    place.wait_until_none_is_left();
}

/// What a daemon may have open: nothing of its caller's.
fn check_descriptors(pid: u32, forbidden: &[PathBuf]) {
    let dir = format!("/proc/{pid}/fd");
    for entry in fs::read_dir(&dir).expect("a living daemon") {
        let link = entry.unwrap().path();
        // Some come and go.
        let Ok(target) = fs::read_link(&link) else {
            continue;
        };
        assert!(!forbidden.contains(&target), "{pid} holds {target:?}");
        let text = target.to_string_lossy();
        let foreign = ["pipe:", "socket:", "/dev/pts", "/dev/tty"];
        assert!(
            !foreign.iter().any(|f| text.starts_with(f)),
            "{pid} holds {text}"
        );
    }
    for what in ["cwd", "root"] {
        let target = fs::read_link(format!("/proc/{pid}/{what}")).unwrap();
        assert_eq!(target, Path::new("/"), "{what}");
    }
}

#[test]
fn many_at_once_that_keep_nothing_of_their_caller() {
    let place = Place::new();
    let canary = place.0.write("canary", "the caller's");
    let inherited = File::open(&canary).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let none = rustix::io::FdFlags::empty();
    rustix::io::fcntl_setfd(&inherited, none).unwrap();
    rustix::io::fcntl_setfd(&writer, none).unwrap();
    let name = |i: usize| (format!("up-{i}"), format!("mnt-{i}"));
    let callers: Vec<Child> = (0..AT_ONCE)
        .map(|i| {
            let (upper, mnt) = name(i);
            let mut caller = place.command(&upper, &mnt);
            caller.stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    drop((inherited, writer));
    for caller in callers {
        let output = caller.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    // Nobody has the pipe any more, or this would wait for ever.
    assert_eq!(std::io::read_to_string(reader).unwrap(), "");
    for i in 0..AT_ONCE {
        let (upper, mnt) = name(i);
        place.utilise(&upper, &mnt, &mnt);
    }
    let daemons = place.daemons();
    assert_eq!(daemons.len(), AT_ONCE);
    for pid in daemons {
        check_descriptors(pid, &[canary.clone(), place.at("")]);
    }
    assert_eq!(mounts_below(&place.at("")).len(), AT_ONCE);
    for i in 0..AT_ONCE {
        let (upper, mnt) = name(i);
        place.unmount(&mnt, if i % 2 == 0 { "-u" } else { "-uz" });
        assert_eq!(
            fs::read_to_string(place.at(&upper).join("mine")).unwrap(),
            mnt
        );
    }
    place.wait_until_none_is_left();
}
