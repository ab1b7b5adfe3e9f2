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
    command(
        "umoci",
        [
            "unpack".as_ref(),
            "--image".as_ref(),
            image.as_ref(),
            bundle.as_os_str(),
        ],
    );
    tree(&bundle.join("rootfs"))
}

/// A layer above removes some names of this file. umoci counts the names that are left; an overlay, the kernel's too, counts
/// those that the file has in its own layer.
fn count_as_overlays_do(reference: &mut Tree, path: &str, links: u64) {
    let facts = reference
        .get_mut(Path::new(path))
        .unwrap_or_else(|| panic!("no {path}"));
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
    command(
        "tar",
        [
            "-C".as_ref(),
            layout.as_os_str(),
            "-xf".as_ref(),
            archive.as_os_str(),
        ],
    );
    let mut reference = by_umoci(&sandbox, &layout, "localhost/five:1");
    assert!(reference.len() > 10_000, "{} paths", reference.len());
    count_as_overlays_do(&mut reference, "opt/app/hello", 2);

    sandbox.run(["import".as_ref(), archive.as_os_str(), "--quiet".as_ref()]);
    let mnt = mounted(&sandbox, &["--read-only", "localhost/five:1"]);
    assert_same("read-only", &tree(&mnt), &reference);
}

#[test]
fn small_images_of_hard_cases_are_what_umoci_unpacks() {
    require_mounting();
    for (layout, tag) in [
        ("podman.oci", "localhost/small:1"),
        ("skopeo.oci", "small"),
        ("umoci.oci", "small"),
        ("umoci.oci", "changed"),
    ] {
        let sandbox = Sandbox::new();
        let layout = images("small").join(layout);
        let source = format!("oci:{}:{tag}", layout.display());
        let id = sandbox.run(["import", &source]);
        let mnt = mounted(&sandbox, &[id.trim(), "upper"]);
        let mut reference = by_umoci(&sandbox, &layout, tag);
        count_as_overlays_do(&mut reference, "odd/names/third", 3);
        assert_same(&source, &tree(&mnt), &reference);
        // Looking at everything through a writable mount writes nothing.
        assert_eq!(sandbox.run(["diff", "mnt"]), "");
        sandbox.run(["umount", "mnt"]);
        let written: Vec<_> = std::fs::read_dir(sandbox.path("upper")).unwrap().collect();
        assert!(written.is_empty(), "{written:?}");
    }
}

/// A layer may hold `private/new` without naming `private`. The directory's mode, owner, time and xattrs are then those of
/// the layer below, as they are for a program that unpacks one layer over the other; so, too, when the root is not named.
/// (They were once 0755 root:root from 1970: a private directory became everybody's.)
#[test]
fn a_directory_that_a_layer_does_not_name_keeps_its_attributes() {
    require_mounting();
    let sandbox = Sandbox::new();
    command(
        "sh",
        [
            "-euc",
            r#"cd "$1"
            mkdir -p one/private/deep two/private/deep
            chmod 711 one && chmod 700 one/private && chown 5:6 one/private && chmod 1770 one/private/deep
            setfattr -n user.note -v kept one/private
            touch -d '2001-02-03 04:05:06' one/private/deep one/private one
            echo new > two/private/deep/new
            tar --format=pax --xattrs -C one -cf one.tar .
            tar --format=pax --no-recursion -C two -cf two.tar private/deep/new
            umoci init --layout layout && umoci new --image layout:t
            for layer in one two; do umoci raw add-layer --image layout:t $layer.tar; done"#,
            "sh",
            sandbox.path("").to_str().unwrap(),
        ],
    );
    let reference = by_umoci(&sandbox, &sandbox.path("layout"), "t");
    assert_eq!(reference[Path::new("private")].mode, 0o40700);
    let id = sandbox.run(["import", "oci:layout:t"]);
    let mnt = mounted(&sandbox, &[id.trim(), "upper"]);
    assert_same("mounted", &tree(&mnt), &reference);

    // Copied up, too.
    std::fs::write(mnt.join("private/deep/more"), "more").unwrap();
    std::fs::remove_file(mnt.join("private/deep/more")).unwrap();
    let mut shown = tree(&mnt);
    let deep = shown.get_mut(Path::new("private/deep")).unwrap();
    deep.mtime = reference[Path::new("private/deep")].mtime;
    assert_same("after copy-up", &shown, &reference);
    assert_eq!(
        sandbox.run(["diff", "mnt"]),
        "C /private\nC /private/deep\n"
    );
}
