//! A mounted image is what umoci unpacks of it: every path's type, mode, owner, size, time, link count, links, target,
//! device, extended attributes and bytes. (`reference.rs` compares with podman and the kernel's overlayfs.)

mod common;
mod real_support;

use std::path::{Path, PathBuf};

use common::{Sandbox, command, images, require_mounting};
use real_support::{Tree, assert_same, tree};

/// What umoci makes of an image in an OCI layout. Unpacked below the sandbox.
fn by_umoci(sandbox: &Sandbox, layout: &Path, tag: &str) -> Tree {
    let bundle = sandbox.path("bundle");
    let _ = std::fs::remove_dir_all(&bundle);
    let image = format!("{}:{tag}", layout.display());
    command("umoci", ["unpack".as_ref(), "--image".as_ref(), image.as_ref(), bundle.as_os_str()]);
    tree(&bundle.join("rootfs"))
}

/// A layer above removes some names of this file. umoci counts the names that are left; an overlay, the kernel's too, counts
/// those that the file has in its own layer.
fn count_as_overlays_do(reference: &mut Tree, path: &str, links: u64) {
    let facts = reference.get_mut(Path::new(path)).unwrap_or_else(|| panic!("no {path}"));
    assert_eq!(facts.links.replace(links), Some(1), "{path}");
    facts.same_as = Some(path.into());
}

fn mounted(sandbox: &Sandbox, args: &[&str]) -> PathBuf {
    let mnt = sandbox.mkdir("mnt");
    sandbox.run(["mount"].iter().chain(args).chain(&["mnt"]));
    mnt
}

#[test]
fn the_five_layer_image_is_what_umoci_unpacks() {
    require_mounting();
    let sandbox = Sandbox::new();
    let archive = images("five").join("v1.oci.tar");
    let layout = sandbox.mkdir("layout");
    command("tar", ["-C".as_ref(), layout.as_os_str(), "-xf".as_ref(), archive.as_os_str()]);
    let mut reference = by_umoci(&sandbox, &layout, "localhost/five:1");
    assert!(reference.len() > 10_000, "{} paths", reference.len());
    count_as_overlays_do(&mut reference, "opt/app/hello", 2);

    sandbox.run(["import".as_ref(), archive.as_os_str(), "--quiet".as_ref()]);
    let mnt = mounted(&sandbox, &["--read-only", "localhost/five:1"]);
    assert_same("read-only", &tree(&mnt), &reference);
    sandbox.run(["umount", "mnt"]);

    // Looking at everything through a writable mount writes nothing.
    let mnt = mounted(&sandbox, &["localhost/five:1", "upper"]);
    assert_same("writable", &tree(&mnt), &reference);
    assert_eq!(sandbox.run(["diff", "mnt"]), "");
    sandbox.run(["umount", "mnt"]);
    let written: Vec<_> = std::fs::read_dir(sandbox.path("upper")).unwrap().collect();
    assert!(written.is_empty(), "{written:?}");
}

#[test]
fn small_images_of_hard_cases_are_what_umoci_unpacks() {
    require_mounting();
    for (layout, tag) in [("podman.oci", "localhost/small:1"), ("skopeo.oci", "small"), ("umoci.oci", "small"), ("umoci.oci", "changed")] {
        let sandbox = Sandbox::new();
        let layout = images("small").join(layout);
        let source = format!("oci:{}:{tag}", layout.display());
        let id = sandbox.run(["import", &source]);
        let mnt = mounted(&sandbox, &[id.trim(), "upper"]);
        let mut reference = by_umoci(&sandbox, &layout, tag);
        count_as_overlays_do(&mut reference, "odd/names/third", 3);
        assert_same(&source, &tree(&mnt), &reference);
    }
}
