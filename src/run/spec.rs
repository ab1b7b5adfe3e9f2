//! The runtime's configuration of one container: `config.json` of the OCI runtime specification 1.0.
//!
//! The defaults are those of rootful podman, without seccomp filter and limits: eleven capabilities (none that makes or
//! opens devices), none at all for other users than root; private pid, mount, ipc, uts and (but for `--net host`) network
//! namespaces; /proc and /sys masked where they tell or change the host. Annotations are our own: an image's labels never
//! reach the runtime, which would act on some.

use std::path::Path;

use serde_json::{Value, json};

use super::user::User;

/// What the container's network is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Net {
    /// A loopback device and nothing else.
    #[default]
    None,
    /// The host's.
    Host,
}

/// A directory or file of the host in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    pub source: String,
    /// In the container, resolved.
    pub destination: String,
    pub read_only: bool,
}

pub struct Spec<'a> {
    pub id: &'a str,
    pub rootfs: &'a Path,
    pub hostname: &'a str,
    pub args: &'a [String],
    pub env: &'a [String],
    pub cwd: &'a str,
    pub user: &'a User,
    pub tty: bool,
    pub read_only: bool,
    pub net: Net,
    /// In this order, those that lie in others after them.
    pub binds: &'a [Bind],
    pub stop_signal: Option<&'a str>,
    /// Control groups can be had.
    pub cgroups: bool,
    /// This process is root of a user namespace only.
    pub in_user_namespace: bool,
    /// The group of terminals is known here.
    pub tty_group: bool,
}

const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/fs/selinux",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
];

const READ_ONLY: [&str; 6] = [
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

impl Spec<'_> {
    pub fn to_json(&self) -> Value {
        let mut linux = json!({
            "namespaces": self.namespaces(),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        });
        if self.cgroups {
            linux["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
        }
        let mut annotations = json!({ "io.ovl.container": self.id });
        if let Some(signal) = self.stop_signal {
            annotations["org.opencontainers.image.stopSignal"] = signal.into();
        }
        json!({
            "ociVersion": "1.0.2",
            "process": process(self.args, self.env, self.cwd, self.user, self.tty),
            "root": { "path": self.rootfs, "readonly": self.read_only },
            "hostname": self.hostname,
            "mounts": self.mounts(),
            "annotations": annotations,
            "linux": linux,
        })
    }

    fn namespaces(&self) -> Value {
        let mut kinds = vec!["pid", "mount", "ipc", "uts"];
        if self.net == Net::None {
            kinds.push("network");
        }
        if self.cgroups && Path::new("/proc/self/ns/cgroup").exists() {
            kinds.push("cgroup");
        }
        kinds
            .into_iter()
            .map(|kind| json!({ "type": kind }))
            .collect()
    }

    fn mounts(&self) -> Vec<Value> {
        let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
        let mut terminals = vec![
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
        ];
        if self.tty_group {
            terminals.push("gid=5");
        }
        let mut mounts = vec![
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount(
                "/dev",
                "tmpfs",
                &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"],
            ),
        ];
        // sysfs is mounted by who owns the network namespace.
        if self.in_user_namespace && self.net == Net::Host {
            mounts.push(
                json!({ "destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"] }),
            );
        } else {
            mounts.push(mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]));
        }
        mounts.extend([
            mount("/dev/pts", "devpts", &terminals),
            mount(
                "/dev/shm",
                "tmpfs",
                &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
            ),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        ]);
        if self.cgroups {
            mounts.push(mount(
                "/sys/fs/cgroup",
                "cgroup",
                &["nosuid", "noexec", "nodev", "relatime", "ro"],
            ));
        }
        mounts.extend(self.binds.iter().map(|bind| {
            let access = if bind.read_only { "ro" } else { "rw" };
            json!({ "destination": bind.destination, "type": "bind", "source": bind.source,
                "options": ["rbind", "rprivate", access] })
        }));
        mounts
    }
}

/// The `process` object, of a container or of a command in one.
pub fn process(args: &[String], env: &[String], cwd: &str, user: &User, tty: bool) -> Value {
    // Held, a capability would be in force for every user; only root is to have them.
    let held: &[&str] = if user.uid == 0 { &CAPABILITIES } else { &[] };
    json!({
        "terminal": tty,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
        "args": args,
        "env": env,
        "cwd": cwd,
        "capabilities": {
            "bounding": CAPABILITIES,
            "effective": held,
            "permitted": held,
            "inheritable": [],
            "ambient": [],
        },
        "noNewPrivileges": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(change: impl FnOnce(&mut Spec<'_>)) -> Value {
        let user = User {
            uid: 0,
            gid: 0,
            groups: vec![4],
            home: "/root".into(),
        };
        let (args, env) = (["true".to_owned()], ["A=1".to_owned()]);
        let bind = [Bind {
            source: "/src".into(),
            destination: "/dst".into(),
            read_only: true,
        }];
        let mut spec = Spec {
            id: "0123",
            rootfs: Path::new("/bundle/rootfs"),
            hostname: "0123",
            args: &args,
            env: &env,
            cwd: "/",
            user: &user,
            tty: false,
            read_only: false,
            net: Net::None,
            binds: &bind,
            stop_signal: Some("SIGINT"),
            cgroups: true,
            in_user_namespace: false,
            tty_group: true,
        };
        change(&mut spec);
        spec.to_json()
    }

    fn kinds(spec: &Value) -> Vec<&str> {
        let kinds = spec["linux"]["namespaces"].as_array().expect("a list");
        kinds
            .iter()
            .map(|kind| kind["type"].as_str().expect("a word"))
            .collect()
    }

    fn mount<'a>(spec: &'a Value, at: &str) -> Option<&'a Value> {
        let mounts = spec["mounts"].as_array().expect("a list");
        mounts.iter().find(|mount| mount["destination"] == at)
    }

    #[test]
    fn namespaces_and_mounts() {
        let plain = spec(|_| ());
        assert_eq!(
            kinds(&plain),
            ["pid", "mount", "ipc", "uts", "network", "cgroup"]
        );
        assert_eq!(mount(&plain, "/dst").expect("-v")["options"][2], "ro");
        assert_eq!(mount(&plain, "/sys").expect("/sys")["type"], "sysfs");
        let host = spec(|spec| {
            spec.net = Net::Host;
            spec.cgroups = false;
            spec.in_user_namespace = true;
        });
        assert_eq!(kinds(&host), ["pid", "mount", "ipc", "uts"]);
        assert_eq!(mount(&host, "/sys").expect("/sys")["source"], "/sys");
        assert!(mount(&host, "/sys/fs/cgroup").is_none());
        assert!(host["linux"].get("resources").is_none());
    }

    #[test]
    fn only_root_holds_capabilities() {
        let process_of = |uid| {
            let user = User {
                uid,
                gid: 0,
                groups: Vec::new(),
                home: "/".into(),
            };
            process(&[], &[], "/", &user, false)["capabilities"].clone()
        };
        assert_eq!(
            process_of(0)["effective"].as_array().map(Vec::len),
            Some(11)
        );
        assert_eq!(process_of(7)["effective"].as_array().map(Vec::len), Some(0));
        assert_eq!(process_of(7)["bounding"].as_array().map(Vec::len), Some(11));
        for forbidden in ["CAP_MKNOD", "CAP_SYS_ADMIN", "CAP_NET_RAW"] {
            assert!(!process_of(0).to_string().contains(forbidden));
        }
    }
}
