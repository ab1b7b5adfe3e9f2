//! podman and buildah as root with ovl as their mount program: what they build, keep and show is what they do with the
//! kernel's overlayfs.

mod common;
mod podman_support;
mod real_support;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Sandbox, busybox, command};
use podman_support::{Driver, Station, copy_programs};
use real_support::{Tree, assert_same, tree};

/// runc as root on machines whose hard limits cannot be raised.
const RUN: &str =
    "--runtime runc run --network=none --ulimit nofile=20000:20000 --ulimit nproc=32768:32768";

/// Steps that meet everything a layer can hold: renamed directories (also of lower layers), hard links, owners, set-id
/// bits, capabilities, ACLs, replaced and removed directories, symlinks, a FIFO, holes, old times.
const CONTAINERFILE: &str = r#"
FROM localhost/busybox
ENV PATH=/bin:/sbin:/usr/bin:/usr/sbin
COPY tools/ /
RUN mkdir -p /srv/app/sub && echo one > /srv/app/sub/one && echo two > /srv/app/two && ln /srv/app/two /srv/app/hard
RUN chown -R 1000:2000 /srv/app && chmod 4755 /srv/app/two && chmod 2770 /srv/app/sub && ln -s sub/one /srv/app/link
RUN mv /srv/app /srv/moved && mv /etc/old.d /etc/new.d && echo more >> /srv/moved/sub/one && ln /srv/moved/sub/one /srv/again
RUN rm /srv/moved/hard /etc/motd && rm -r /var/log && mkdir /var/log && echo log > /var/log/new
RUN cp /bin/busybox /srv/pinger && setcap cap_net_raw+ep /srv/pinger && getcap /srv/pinger
RUN setfacl -m u:1234:rwx /srv/moved/two && setfacl -d -m g:77:rx /srv/moved/sub && mkdir /srv/moved/sub/inherits
RUN dd if=/dev/zero of=/srv/holes bs=1 count=1 seek=5000000 && touch -d '1999-12-31 23:59:59' /srv/holes && busybox mkfifo /srv/fifo
RUN mv /srv/moved/sub /srv/moved/renamed && mv /srv/moved /srv/app && rm /srv/app/renamed/one && echo last > /home/last
USER 1000:2000
RUN echo mine > /tmp/mine && id > /tmp/id
"#;

fn context(station: &Station) -> PathBuf {
    let context = station.sandbox.mkdir("context");
    copy_programs(&["setcap", "getcap", "setfacl"], &context.join("tools"));
    station
        .sandbox
        .write("context/Containerfile", CONTAINERFILE);
    context
}

fn load_busybox(station: &Station) {
    let archive = busybox();
    station.run("podman", ["load", "-q", "-i", archive.to_str().unwrap()]);
}

/// With the kernel's driver a layer is what the upper holds: also /run, in which a step's mounts were put and taken away,
/// and an opaque mark where a directory was replaced. With a mount program it is the difference of two walks, which does
/// not see the one and tells the other by whiteouts.
fn told_one_way(name: &str) -> bool {
    name != "run/" && !name.starts_with("var/log/.wh.")
}

/// The names of each layer's entries, bottom first, and the tree that all layers make; times after `since` as one.
fn contents(archive: &Path, since: i64) -> (Vec<Vec<String>>, Tree) {
    let sandbox = Sandbox::new();
    let dir = sandbox.mkdir("archive");
    command(
        "tar",
        [
            "-C",
            dir.to_str().unwrap(),
            "-xf",
            archive.to_str().unwrap(),
        ],
    );
    let manifest = fs::read_to_string(dir.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let layers = manifest[0]["Layers"].as_array().expect("layers").iter();
    let names = |layer: &serde_json::Value| {
        let listed = command(
            "tar",
            ["-tf", dir.join(layer.as_str().unwrap()).to_str().unwrap()],
        );
        let listed = String::from_utf8(listed.stdout).unwrap();
        let names = listed.lines().filter(|name| told_one_way(name));
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        names
    };
    let names = layers.map(names).collect();
    let mnt = sandbox.mkdir("mnt");
    let id = sandbox.run(["import".as_ref(), archive.as_os_str()]);
    sandbox.run(["mount", "--read-only", id.trim(), "mnt"]);
    let mut seen = tree(&mnt);
    sandbox.run(["umount", "mnt"]);
    for facts in seen.values_mut().filter(|facts| facts.mtime.0 >= since) {
        facts.mtime = NOW;
    }
    (names, seen)
}

/// Stands for every time of the build itself.
const NOW: (i64, i64) = (i64::MAX, 0);

fn now() -> i64 {
    ovl::meta::Timestamp::now().secs
}

fn build(driver: Driver, layers: &str) -> (Vec<Vec<String>>, Tree) {
    let station = Station::new(driver);
    let context = context(&station);
    let since = now() - 1;
    load_busybox(&station);
    let args = ["bud", "-q", "--isolation", "chroot", layers, "-t", "built"];
    station.run(
        "buildah",
        args.iter().map(Path::new).chain([context.as_path()]),
    );
    let archive = station.sandbox.path("built.tar");
    station.run(
        "podman",
        ["save", "-q", "-o", archive.to_str().unwrap(), "built"],
    );
    if driver != Driver::Kernel {
        station.assert_nothing_left();
    }
    contents(&archive, since)
}

fn same_build(layers: &str) {
    let (their_names, theirs) = build(Driver::Kernel, layers);
    let (our_names, ours) = build(Driver::Ovl("nodev"), layers);
    assert_same("the built image", &ours, &theirs);
    assert_eq!(our_names, their_names, "the layers' entries");
    let facts = |path: &str| &ours[Path::new(path)];
    let capability = "security.capability".as_ref();
    assert!(
        facts("srv/pinger")
            .xattrs
            .contains_key(capability as &std::ffi::OsStr)
    );
    // podman's layers have no ACLs, but the mode shows that there was one when the step was run.
    assert_eq!(facts("srv/app/two").mode & 0o7777, 0o4775);
    assert_eq!(facts("srv/holes").mtime, (946_684_799, 0));
}

#[test]
fn a_build_step_by_step_is_the_kernels() {
    same_build("--layers=true");
}

#[test]
fn a_build_in_one_layer_is_the_kernels() {
    same_build("--layers=false");
}

const CHANGE: &str = "echo made > /etc/made; rm /etc/group; mv /etc/old.d /etc/kept.d";

/// A container `made` of busybox with a few changes.
fn container_with_changes(station: &Station) {
    load_busybox(station);
    let container = station.line("buildah from --name made busybox");
    assert_eq!(container, "made");
    station.run(
        "buildah",
        ["run", "--isolation", "chroot", "made", "sh", "-c", CHANGE],
    );
}

#[test]
fn buildah_runs_copies_and_commits() {
    let station = Station::new(Driver::Ovl("nodev,metacopy=on"));
    container_with_changes(&station);
    let file = station.sandbox.write("file", "copied");
    station.run(
        "buildah",
        ["copy", "-q", "made", file.to_str().unwrap(), "/srv/file"],
    );
    let root = station.line("buildah mount made");
    assert_eq!(
        fs::read(station.see(&root).join("srv/file")).unwrap(),
        b"copied"
    );
    fs::write(station.see(&root).join("srv/by-hand"), "by hand").unwrap();
    assert_eq!(station.live_mounts().len(), 1);
    station.line("buildah umount made");
    station.line("buildah commit -q made committed");
    let again = station.line("buildah from --name again committed");
    let show = "cat /etc/made /srv/file /srv/by-hand; ls /etc /etc/kept.d";
    let shown = station.run(
        "buildah",
        ["run", "--isolation", "chroot", &again, "sh", "-c", show],
    );
    for word in ["made", "copiedby hand", "kept.d", "shown"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    assert!(
        !shown.contains("group") && !shown.contains("old.d"),
        "{shown}"
    );
    station.line("buildah rm --all");
    station.line("podman rmi --all --force");
    station.assert_nothing_left();
}

/// Starts a container and waits for its end; what it printed.
fn podman_run(station: &Station, options: &str, image: &str, script: &str) -> String {
    let words = format!("{RUN} {options} {image} sh -c");
    let words = words.split(' ').filter(|word| !word.is_empty());
    station.run("podman", words.chain([script]))
}

#[test]
fn podman_runs_diffs_mounts_and_commits() {
    let station = Station::new(Driver::Ovl("nodev"));
    load_busybox(&station);
    let script = "echo new > /etc/new; rm /etc/motd; mv /etc/old.d /etc/moved.d; cat /proc/mounts";
    let mounts = podman_run(&station, "--name one", "busybox", script);
    assert!(mounts.starts_with("ovl / fuse.ovl "), "{mounts}");
    let changes = station.line("podman diff one");
    for change in [
        "A /etc/new",
        "D /etc/motd",
        "D /etc/old.d",
        "A /etc/moved.d",
        "C /etc",
    ] {
        assert!(
            changes.lines().any(|line| line == change),
            "{change}: {changes}"
        );
    }
    let root = station.line("podman mount one");
    assert_eq!(
        fs::read(station.see(&root).join("etc/new")).unwrap(),
        b"new\n"
    );
    assert_eq!(
        fs::read(station.see(&root).join("etc/moved.d/shown")).unwrap(),
        b"from the second layer\n"
    );
    // While it is mounted, its parent's mount and its own are walked and compared.
    station.line("podman commit -q one kept");
    station.line("podman umount one");
    let started = station.line("podman --runtime runc start --attach one");
    assert!(started.starts_with("ovl / fuse.ovl "), "{started}");
    station.line("podman rm one");

    let image = station.line("podman image mount kept");
    let image = station.see(&image);
    assert_eq!(fs::read(image.join("etc/new")).unwrap(), b"new\n");
    assert!(!image.join("etc/motd").exists() && !image.join("etc/old.d").exists());
    fs::write(image.join("etc/no"), "").expect_err("images are mounted read-only");
    station.line("podman image unmount kept");
    let saved = station.sandbox.path("kept.tar");
    station.line(&format!("podman save -q -o {} kept", saved.display()));
    station.line("podman rmi kept busybox");
    station.line(&format!("podman load -q -i {}", saved.display()));
    assert_eq!(podman_run(&station, "--rm", "kept", "cat /etc/new"), "new");
    station.line("podman rmi --all --force");
    assert_eq!(station.line("podman images -q"), "");
    station.assert_nothing_left();
}

/// `-v SRC:DST:O` is an overlay that is thrown away: lower, upper and work directory are podman's, with `private`.
#[test]
fn podman_overlays_volumes() {
    let station = Station::new(Driver::Ovl("nodev"));
    load_busybox(&station);
    let source = station.sandbox.mkdir("source");
    station.sandbox.write("source/file", "source");
    let volume = format!("--rm -v {}:/data:O", source.display());
    let script = "cat /data/file; echo changed > /data/file; echo new > /data/new; cat /data/file /data/new; grep /data /proc/mounts";
    let shown = podman_run(&station, &volume, "busybox", script);
    assert!(shown.starts_with("sourcechanged\nnew\n"), "{shown}");
    assert!(shown.contains("/data fuse.ovl "), "{shown}");
    assert_eq!(fs::read(source.join("file")).unwrap(), b"source");
    assert!(!source.join("new").exists());
    station.assert_nothing_left();
}

/// Layers as a store of another kind of podman, or an older one, left them: all forms of whiteouts, in any layer, also in
/// the one that is mounted as the upper when its difference is asked for.
#[test]
fn layers_as_podman_unpacks_them_are_understood() {
    let station = Station::new(Driver::Ovl("nodev"));
    container_with_changes(&station);
    station.line("buildah commit -q made committed");
    let marks = station.run(
        "find",
        [
            station.sandbox.path("graph").to_str().unwrap(),
            "-name",
            ".wh.*",
        ],
    );
    for mark in ["etc/.wh.group", "etc/.wh.old.d"] {
        assert!(
            marks.lines().any(|line| line.ends_with(mark)),
            "{mark}: {marks}"
        );
    }
    // The same image once more: its layer's difference to its parent is made anew, and must come out as it went in.
    let list = |name: &str| {
        let archive = station.sandbox.path(name);
        station.line(&format!(
            "podman save -q -o {} committed",
            archive.display()
        ));
        contents(&archive, i64::MAX)
    };
    let before = list("before.tar");
    let entries = &before.0.last().expect("a layer");
    for entry in [
        "etc/.wh.group",
        "etc/.wh.old.d",
        "etc/made",
        "etc/kept.d/shown",
    ] {
        assert!(entries.iter().any(|e| e == entry), "{entry}: {entries:?}");
    }
    assert!(!before.1.contains_key(Path::new("etc/group")));
    let tree = station.line("podman image diff committed");
    for change in [
        "D /etc/group",
        "D /etc/old.d",
        "A /etc/made",
        "A /etc/kept.d",
    ] {
        assert!(tree.lines().any(|line| line == change), "{change}: {tree}");
    }
    station.line("buildah rm --all");
    station.assert_nothing_left();
}
