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
