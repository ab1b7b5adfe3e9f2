//! Overlays on overlays: ovl over ovl, as lower and as the place of the upper; the kernel's overlayfs over ovl.

mod common;
mod real_support;

use std::path::Path;

use common::{Sandbox, command, require_mounting};
use real_support::{Tree, assert_same, chroot, tree};

/// Changes of each kind that an overlay records in its upper: whiteouts, opaque and redirected directories, origins.
const CHANGES: &str = "
    echo changed > /etc/motd
    rm /etc/group
    mv /etc/old.d /etc/older.d && echo more >> /etc/older.d/shown
    mkdir /etc/old.d && echo new > /etc/old.d/new
    mv /etc/passwd /etc/users
    rm -r /var && mkdir -p /var/log && echo log > /var/log/log
    ln /bin/busybox /bin/again && chmod 700 /usr/bin/env
    mknod /dev/zero-zero c 0 0 && mkfifo /dev/pipe && ln -s motd /etc/link
    ln /etc/users /etc/hard && rm /etc/users
";

/// All but the time of what the script made or changed.
fn timeless(mut tree: Tree) -> Tree {
    tree.values_mut().for_each(|facts| facts.mtime = (0, 0));
    tree
}

#[test]
fn an_upper_on_ovl_works_as_one_on_a_disk() {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    let (outer, inner) = (sandbox.mkdir("outer"), sandbox.mkdir("inner"));
    sandbox.run(["mount", "busybox", "upper", "inner"]);
    chroot(&inner, CHANGES);
    let (on_disk, difference) = (timeless(tree(&inner)), sandbox.run(["diff", "inner"]));
    sandbox.run(["umount", "inner"]);

    sandbox.run(["mount", "busybox", "outer-upper", "outer"]);
    for below in ["home", "etc/old.d"] {
        std::fs::create_dir(outer.join(below).join("inner")).unwrap();
        let upper = format!("outer/{below}/inner/upper");
        sandbox.run(["mount", "busybox", &upper, "inner"]);
        chroot(&inner, CHANGES);
        assert_same("on ovl", &timeless(tree(&inner)), &on_disk);
        assert_eq!(sandbox.run(["diff", "inner"]), difference);
        sandbox.run(["umount", "inner"]);
        // All of it is in the upper, through a new mount of either.
        for again in ["inner", "outer"] {
            if again == "outer" {
                sandbox.run(["umount", "outer"]);
                sandbox.run(["mount", "busybox", "outer-upper", "outer"]);
            }
            sandbox.run(["mount", "busybox", &upper, "inner"]);
            assert_same("mounted again", &timeless(tree(&inner)), &on_disk);
            assert_eq!(sandbox.run(["diff", "inner"]), difference, "{again}");
            sandbox.run(["umount", "inner"]);
        }
    }
    sandbox.run(["umount", "outer"]);
}

#[test]
fn a_mount_is_a_lower_for_others() {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    let (lower, mnt) = (sandbox.mkdir("lower"), sandbox.mkdir("mnt"));
    sandbox.run(["mount", "busybox", "first-upper", "lower"]);
    chroot(&lower, CHANGES);
    // The kernel's overlayfs cannot show a device 0:0 of a lower.
    std::fs::remove_file(lower.join("dev/zero-zero")).unwrap();
    let shown = tree(&lower);
    sandbox.run(["umount", "lower"]);
    let changed = |mnt: &Path| {
        chroot(
            mnt,
            "rm /etc/motd; echo x >> /etc/older.d/shown; mkdir /etc/more; rm -r /var; chmod 640 /etc/hard",
        );
        timeless(tree(mnt))
    };

    sandbox.run(["mount", "busybox", "first-upper", "lower"]);
    sandbox.run(["mount", "./lower", "second-upper", "mnt"]);
    assert_same("ovl over ovl", &tree(&mnt), &shown);
    let by_ovl = changed(&mnt);
    sandbox.run(["umount", "mnt", "lower"]);

    for options in [&["busybox", "first-upper"][..], &["--read-only", "busybox"]] {
        sandbox.run(["mount"].iter().chain(options).chain(&["lower"]));
        let shown = tree(&lower);
        for dir in ["kernel-upper", "kernel-work"] {
            let _ = std::fs::remove_dir_all(sandbox.path(dir));
            sandbox.mkdir(dir);
        }
        let at = |name: &str| sandbox.path(name).display().to_string();
        let words = format!(
            "lowerdir={},upperdir={},workdir={}",
            at("lower"),
            at("kernel-upper"),
            at("kernel-work")
        );
        command(
            "mount",
            [
                "-t",
                "overlay",
                "overlay",
                "-o",
                &words,
                mnt.to_str().unwrap(),
            ],
        );
        let mut by_kernel = tree(&mnt);
        // The kernel shows the upper's root; ours was made by mkdir.
        by_kernel.insert("".into(), shown[Path::new("")].clone());
        assert_same("the kernel over ovl", &by_kernel, &shown);
        if options.len() == 2 && options[0] == "busybox" {
            let mut by_kernel = changed(&mnt);
            by_kernel.insert("".into(), by_ovl[Path::new("")].clone());
            assert_same("both changed", &by_kernel, &by_ovl);
        }
        command("umount", [&mnt]);
        sandbox.run(["umount", "lower"]);
    }
}
