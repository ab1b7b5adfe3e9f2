//! A plain user: podman and buildah in a user namespace with subordinate ids, and ovl without any namespace.

mod common;
mod podman_support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use common::busybox;
use podman_support::{Driver, SUB_IDS, Station, USER};

fn load_busybox(station: &Station) {
    let archive = station.sandbox.path("busybox.tar");
    fs::copy(busybox(), &archive).unwrap();
    station.run("podman", ["load", "-q", "-i", archive.to_str().unwrap()]);
}

/// What a container may do in its root: owners, modes, ACL-free xattrs, renames of lower directories, links, devices.
const WORK: &str = "set -eu
id -u
ls -ln /etc/motd /bin/busybox
echo new > /etc/new && chown 1000:2000 /etc/new && chmod 4750 /etc/new
chown 5:6 /etc/passwd
rm /etc/motd && mv /etc/old.d /etc/moved.d && rm -r /var/log && mkdir /var/log
ln /etc/new /etc/linked && ln -s new /etc/symbolic
stat -c '%n %u:%g %a %h' /etc/new /etc/passwd
ls /etc/moved.d /var/log
grep ' / ' /proc/mounts";

#[test]
fn podman_runs_and_commits() {
    let station = Station::rootless(Driver::Ovl(""));
    load_busybox(&station);
    let run = "--runtime crun run --cgroups=disabled --network=none";
    let first = format!("{run} --name one busybox sh -c");
    let shown = station.run("podman", first.split(' ').chain([WORK]));
    for line in [
        "0",
        "/etc/new 1000:2000 4750 2",
        "/etc/passwd 5:6 644 1",
        "shown",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line}: {shown}");
    }
    assert!(shown.contains("ovl / fuse.ovl "), "{shown}");
    let changes = station.line("podman diff one");
    for change in [
        "A /etc/new",
        "D /etc/motd",
        "D /etc/old.d",
        "A /etc/moved.d",
        "A /etc/symbolic",
    ] {
        assert!(
            changes.lines().any(|line| line == change),
            "{change}: {changes}"
        );
    }
    println!("{changes}");
    station.line("podman commit -q one kept");
    let again = format!("{run} --rm kept sh -c");
    let script =
        "stat -c '%n %u:%g %a %h' /etc/new /etc/passwd; ls /etc/moved.d; test ! -e /etc/motd";
    let shown = station.run("podman", again.split(' ').chain([script]));
    assert_eq!(
        shown,
        "/etc/new 1000:2000 4750 2\n/etc/passwd 5:6 644 1\nshown"
    );
    let look = "set -eu; m=$(podman mount one); cat $m/etc/new; stat -c %u:%g $m/etc/new; podman umount one";
    let shown = station.run("podman", ["unshare", "sh", "-c", look]);
    assert!(shown.starts_with("new\n1000:2000\n"), "{shown}");
    station.line("podman rm --all");
    station.line("podman rmi --all --force");
    station.assert_nothing_left();
}

#[test]
fn buildah_unshare_mounts_and_commits() {
    let station = Station::rootless(Driver::Ovl(""));
    load_busybox(&station);
    let script = format!("set -eu
c=$(buildah from busybox)
buildah run --isolation chroot $c sh -c {work}
m=$(buildah mount $c)
echo by-hand > $m/srv-file
buildah umount $c
buildah commit -q $c built
buildah rm $c
d=$(buildah from built)
buildah run --isolation chroot $d sh -c \"cat /srv-file; stat -c '%n %u:%g %a %h' /etc/new; test ! -e /etc/motd\"
buildah rm $d", work = "\"$WORK\"");
    let mut command = station.command("buildah");
    command
        .args(["unshare", "sh", "-c", &script])
        .env("WORK", WORK);
    let output = command.output().expect("runs");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}");
    assert!(
        shown.contains("by-hand\n/etc/new 1000:2000 4750 2\n"),
        "{shown}"
    );
    station.assert_nothing_left();
}

/// `force_mask`: owners and modes are kept in xattrs, and every inode is the user's.
#[test]
fn owners_in_xattrs() {
    let station = Station::rootless(Driver::Ovl(""));
    let conf = station.sandbox.path("storage.conf");
    let text = fs::read_to_string(&conf).unwrap() + "force_mask = \"shared\"\n";
    fs::write(&conf, text).unwrap();
    load_busybox(&station);
    let run = "--runtime crun run --cgroups=disabled --network=none --name one busybox sh -c";
    let shown = station.run("podman", run.split(' ').chain([WORK]));
    for line in ["/etc/new 1000:2000 4750 2", "/etc/passwd 5:6 644 1"] {
        assert!(shown.lines().any(|l| l == line), "{line}: {shown}");
    }
    let graph = "home/.local/share/containers/storage/overlay";
    let layers = fs::read_dir(station.sandbox.path(graph)).unwrap();
    let new = layers
        .map(|layer| layer.unwrap().path().join("diff/etc/new"))
        .find(|file| file.exists())
        .expect("the file in some upper");
    let meta = new.metadata().unwrap();
    assert_eq!(meta.uid(), USER);
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(&new, "user.containers.override_stat", &mut value).unwrap();
    assert_eq!(&value[..length], b"1000:2000:4750:file");
    station.line("podman commit -q one kept");
    station.line("podman rm --all");
    // podman writes the layer's xattrs itself, and leaves set-id bits out.
    let again =
        "--runtime crun run --rm --cgroups=disabled --network=none kept stat -c %u:%g:%a /etc/new";
    assert_eq!(station.run("podman", again.split(' ')), "1000:2000:750");
    station.assert_nothing_left();
}

/// No namespace at all: fusermount3 mounts, the upper is the user's, its marks are `user.overlay.*`.
#[test]
fn a_plain_user_mounts_by_fusermount() {
    let station = Station::rootless(Driver::Ovl(""));
    let home = station.sandbox.path("home");
    let script = "set -eu
cd \"$HOME\"
mkdir -p low/dir low/gone up work mnt mnt2
echo below > low/file; echo inner > low/dir/inner
\"$PROGRAM\" -o lowerdir=low,upperdir=up,workdir=work mine mnt
echo changed > mnt/file
mv mnt/dir mnt/moved
rmdir mnt/gone
mkdir mnt/gone
chmod 600 mnt/moved/inner
cat mnt/file mnt/moved/inner
grep \" $HOME/mnt \" /proc/self/mounts
fusermount3 -u mnt
\"$PROGRAM\" -o lowerdir=low,upperdir=up,workdir=work mnt
cat mnt/moved/inner
test ! -e mnt/dir
if \"$PROGRAM\" -o lowerdir=low,allow_other mnt2 2> why; then exit 9; fi
cat why
fusermount3 -u mnt
\"$OVL\" mount /usr/share/doc ./fresh ./mnt
echo mine > mnt/note
\"$OVL\" diff mnt
\"$OVL\" umount mnt";
    let mut command = station.command("sh");
    let program = station.sandbox.path("bin/fuse-overlayfs");
    let output = command
        .args(["-c", script])
        .env("OVL", env!("CARGO_BIN_EXE_ovl"))
        .env("PROGRAM", program)
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}{said}");
    let (first, rest) = shown
        .split_once("mine ")
        .expect("a line of the mount table");
    assert_eq!(first, "changed\ninner\n");
    assert!(
        rest.contains(" fuse.ovl rw,nosuid,nodev,noatime,"),
        "{rest}"
    );
    assert!(rest.contains(&format!("user_id={USER}")), "{rest}");
    assert!(
        rest.contains("\ninner\nfuse-overlayfs: mounting on ") && rest.contains("user_allow_other"),
        "{rest}"
    );
    assert!(
        rest.ends_with("\nA /note\n"),
        "the lower's root is not the user's: {rest}"
    );
    let upper = home.join("up");
    let mark = |name: &str, mark: &str| {
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(upper.join(name), mark, &mut value);
        length.map(|length| String::from_utf8(value[..length].to_vec()).unwrap())
    };
    assert_eq!(mark("moved", "user.overlay.redirect").unwrap(), "dir");
    assert_eq!(mark("gone", "user.overlay.opaque").unwrap(), "y");
    let whiteout = upper.join("dir").symlink_metadata().unwrap();
    assert_eq!((whiteout.rdev(), whiteout.uid()), (0, USER));
    station.assert_nothing_left();
}

/// In a user namespace with subordinate ids, by the program alone: what a mount shows, and what is on disk.
#[test]
fn ids_in_a_user_namespace() {
    let station = Station::rootless(Driver::Ovl(""));
    let home = station.sandbox.path("home");
    let script = "set -eu
cd \"$HOME\"
mkdir -p low up work mnt up2 work2
echo below > low/file
chown 5:6 low/file
\"$PROGRAM\" -o lowerdir=low,upperdir=up,workdir=work mnt
stat -c '%n %u:%g' mnt/file
chown 7:8 mnt/file
echo new > mnt/new
chown 65536:0 mnt/new
fusermount3 -u mnt
\"$PROGRAM\" -o lowerdir=up:low,upperdir=up2,workdir=work2,uidmapping=0:7:1:1:10:5,squash_to_gid=3 mnt
stat -c '%n %u:%g' mnt/file mnt/new
touch mnt/made
stat -c '%n %u:%g' up2/made
umount mnt";
    let mut command = station.command("podman");
    let program = station.sandbox.path("bin/fuse-overlayfs");
    let output = command
        .args(["unshare", "sh", "-c", script])
        .env("PROGRAM", program)
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}{said}");
    assert_eq!(
        shown,
        "mnt/file 5:6\nmnt/file 0:3\nmnt/new 65534:3\nup2/made 7:3\n"
    );
    let owner = |name: &str| {
        let meta = home.join(name).symlink_metadata().unwrap();
        (meta.uid(), meta.gid())
    };
    // Subordinate ids begin with 1 of the namespace.
    assert_eq!(owner("up/file"), (SUB_IDS + 6, SUB_IDS + 7));
    assert_eq!(owner("up/new"), (SUB_IDS + 65_535, USER));
    station.assert_nothing_left();
}
