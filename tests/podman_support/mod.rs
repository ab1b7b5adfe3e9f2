//! podman and buildah with ovl as their mount program, or with the kernel's overlayfs for comparison: storage,
//! configuration, processes and mounts in a sandbox of their own.
//!
//! The programs run in a mount and a pid namespace that end with the test, however it ends: what they mounted and
//! started is gone then.
#![allow(dead_code)] // each test file uses its part

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::Sandbox;

/// Who mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Kernel,
    /// ovl, by the name of fuse-overlayfs; with these words in `mountopt`.
    Ovl(&'static str),
}

pub struct Station {
    pub sandbox: Sandbox,
    /// Who the programs run as; `None`: root.
    user: Option<u32>,
    /// `unshare`, which lives as long as the namespaces.
    keeper: Child,
    /// The first process in them.
    init: u32,
}

/// The plain user, and the first of the ids that are subordinate to it.
pub const USER: u32 = 7431;
pub const SUB_IDS: u32 = 7_431_000;

/// The process in the namespaces that keeps them: it waits, and reaps what is left to it. First it gives up its copies of
/// the mounts other tests have just now, whose daemons would wait for it otherwise.
const INIT: &str = "mount --make-rprivate / && { \
    grep ' - fuse\\.' /proc/self/mountinfo | cut -d' ' -f5 | xargs -r -n1 umount -l 2> /dev/null; \
    : > \"$0\"; while :; do sleep 1000; done; }";

impl Station {
    pub fn new(driver: Driver) -> Self {
        crate::common::require_mounting();
        let sandbox = Sandbox::new();
        let mut unshare = Command::new("setpriv");
        unshare.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
        ]);
        unshare.args(["--kill-child", "--mount-proc", "sh", "-c", INIT]);
        let ready = sandbox.path("ready");
        let mut keeper = unshare
            .arg(&ready)
            .stdin(Stdio::null())
            .spawn()
            .expect("setpriv runs");
        let deadline = Instant::now() + Duration::from_secs(30);
        while !ready.exists() {
            assert!(Instant::now() < deadline, "no namespaces");
            assert_eq!(keeper.try_wait().unwrap(), None, "unshare ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        let children = format!("/proc/{0}/task/{0}/children", keeper.id());
        let children = fs::read_to_string(children).expect("unshare's children");
        let init = children.trim().parse().expect("one child");
        let station = Self {
            sandbox,
            user: None,
            keeper,
            init,
        };
        station.configure(driver);
        station
    }

    /// For a user like those of a desktop: known to the system, with 65536 subordinate ids, allowed to open /dev/fuse.
    /// Only in these namespaces.
    pub fn rootless(driver: Driver) -> Self {
        let mut station = Self::new(driver);
        let at = |name: &str| station.sandbox.path(name).display().to_string();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(station.sandbox.path(""), open).unwrap();
        let home = at("home");
        for (file, line) in [
            (
                "passwd",
                format!("tester:x:{USER}:{USER}::{home}:/bin/sh\n"),
            ),
            ("group", format!("tester:x:{USER}:\n")),
            ("subuid", format!("tester:{SUB_IDS}:65536\n")),
            ("subgid", format!("tester:{SUB_IDS}:65536\n")),
        ] {
            let real = Path::new("/etc").join(file);
            let known = fs::read_to_string(&real).unwrap_or_default();
            let copy = station.sandbox.write(file, known + &line);
            station.run("touch", [&real]);
            station.run("mount", [Path::new("--bind"), &copy, &real]);
        }
        // podman puts things straight into /tmp: into one of these namespaces' own, which shows the sandbox too.
        // And the program, where that is in /tmp.
        let own_tmp = r#"mount --bind "$0" /mnt && mount --bind "$1" /media && mount -t tmpfs -o mode=1777 tmp /tmp &&
            mkdir -p "$0" "$1" && mount --move /mnt "$0" && { [ "$1" -ef /media ] || mount --bind /media "$1"; }"#;
        let sandbox = station.sandbox.path("");
        let programs = Path::new(env!("CARGO_BIN_EXE_ovl")).parent().unwrap();
        station.run(
            "sh",
            [
                "-c".as_ref(),
                own_tmp.as_ref(),
                sandbox.as_os_str(),
                programs.as_os_str(),
            ],
        );
        let node = at("fuse");
        station.run("mknod", ["-m", "666", &node, "c", "10", "229"]);
        station.run("mount", ["--bind", &node, "/dev/fuse"]);
        // crun takes cgroups of version 1 or 2, but no mixture.
        let hybrid = "/sys/fs/cgroup/unified";
        if Path::new(hybrid).exists() {
            station.run("umount", ["--lazy", hybrid]);
        }
        for dir in ["graph", "rr", "home", "tmp", "xdg"] {
            let dir = station.sandbox.mkdir(dir);
            std::os::unix::fs::chown(&dir, Some(USER), Some(USER)).unwrap();
            fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        }
        station.user = Some(USER);
        station
    }

    fn configure(&self, driver: Driver) {
        let at = |name: &str| self.sandbox.path(name).display().to_string();
        for dir in ["graph", "rr", "bin", "home", "tmp"] {
            self.sandbox.mkdir(dir);
        }
        let program = at("bin/fuse-overlayfs");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ovl"), &program).unwrap();
        let overlay = match driver {
            Driver::Kernel => String::new(),
            Driver::Ovl(words) => format!("mount_program = {program:?}\nmountopt = {words:?}\n"),
        };
        self.sandbox.write(
            "storage.conf",
            format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = {:?}\nrunroot = {:?}\n[storage.options.overlay]\n{overlay}",
                at("graph"),
                at("rr")
            ),
        );
        self.sandbox.write(
            "containers.conf",
            "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n",
        );
    }

    /// A program that will run in the namespaces.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init.to_string(), "--mount", "--pid"])
            .arg("--wdns=/")
            .arg("--");
        if let Some(user) = self.user {
            let words = ["--reuid", "--regid"].map(|word| format!("{word}={user}"));
            command.arg("setpriv").args(words).arg("--clear-groups");
            command.arg("--");
        }
        command
            .arg(program)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LC_ALL", "C")
            .env("HOME", self.sandbox.path("home"))
            .env("TMPDIR", self.sandbox.path("tmp"))
            .env("CONTAINERS_STORAGE_CONF", self.sandbox.path("storage.conf"))
            .env("CONTAINERS_CONF", self.sandbox.path("containers.conf"))
            .stdin(Stdio::null());
        match self.user {
            None => command.env("OVL_RUN", self.sandbox.path("run")),
            // Where run state goes without being told.
            Some(_) => command.env("XDG_RUNTIME_DIR", self.sandbox.path("xdg")),
        };
        command
    }

    pub fn output(
        &self,
        program: &str,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Output {
        let mut command = self.command(program);
        command.args(args);
        command
            .output()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Runs a program that must succeed; its stdout without the last newline.
    pub fn run(&self, program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
        let mut command = self.command(program);
        command.args(args);
        let output = command
            .output()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{command:?}: {}\n{stderr}\n{}",
            output.status,
            self.logs()
        );
        String::from_utf8(output.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    }

    /// Runs a line of words, split at blanks.
    pub fn line(&self, words: &str) -> String {
        let mut words = words.split(' ');
        self.run(words.next().unwrap(), words)
    }

    /// A path of the namespace, as the test sees it: through its mounts.
    pub fn see(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref().strip_prefix("/").expect("an absolute path");
        Path::new(&format!("/proc/{}/root", self.init)).join(path)
    }

    /// Mounts of ovl in the namespace.
    pub fn live_mounts(&self) -> Vec<String> {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.init)).unwrap();
        let below = format!(" {}/", self.sandbox.path("").display()).replace("//", "/");
        let ours = table
            .lines()
            .filter(|line| line.contains(" - fuse.ovl ") && line.contains(&below));
        ours.map(str::to_owned).collect()
    }

    /// Processes of ovl in the namespace.
    pub fn daemons(&self) -> Vec<String> {
        let list = self.run("ps", ["-eo", "stat=,pid=,args="]);
        let ours = list
            .lines()
            .filter(|line| line.contains("fuse-overlayfs") && !line.starts_with('Z'));
        ours.map(str::to_owned).collect()
    }

    /// Fails unless all mounts and daemons of ovl are gone, or go within a while.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.live_mounts(), Vec::<String>::new(), "left mounted");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.daemons().is_empty() {
            assert!(
                Instant::now() < deadline,
                "left running: {:?}",
                self.daemons()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.logs(), "", "the daemons had something to say");
    }

    /// What the daemons said.
    pub fn logs(&self) -> String {
        let run = match self.user {
            None => "run/log",
            Some(_) => "xdg/ovl/log",
        };
        let logs = fs::read_dir(self.sandbox.path(run)).into_iter();
        logs.flatten()
            .flatten()
            .map(|log| fs::read_to_string(log.path()).unwrap_or_default())
            .collect()
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        // With the first process go all others of its pid namespace, and with them the mounts.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        let gone = |pid: u32| !Path::new(&format!("/proc/{pid}")).exists();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !gone(self.init) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Copies programs with the libraries they need to below `to`, at their own paths.
pub fn copy_programs(programs: &[&str], to: &Path) {
    let mut files: Vec<PathBuf> = Vec::new();
    for program in programs {
        let found = crate::common::command("sh", ["-c", &format!("command -v {program}")]).stdout;
        let found = String::from_utf8(found).unwrap().trim_end().to_owned();
        let libraries = crate::common::command("ldd", [&found]).stdout;
        let libraries = String::from_utf8(libraries).unwrap();
        let words = libraries.split_whitespace().filter(|w| w.starts_with('/'));
        files.extend(words.map(PathBuf::from));
        files.push(found.into());
    }
    files.sort();
    files.dedup();
    for file in files {
        let copy = to.join(file.strip_prefix("/").unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(&file, &copy).unwrap();
    }
}
