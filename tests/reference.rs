//! A mounted image is what another program makes of the same archive: every path's kind, mode, owner, size, time, link
//! count, target, device, extended attributes and bytes.

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use common::{Sandbox, command, images, require_mounting};
use ovl::store::Digest;

/// Everything there is to see of a tree, by path, one line each. The root itself is left out: unpackers make their own.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let walk = walkdir::WalkDir::new(root).min_depth(1);
    let describe = |entry: walkdir::Result<walkdir::DirEntry>| {
        let path = entry.expect("a readable tree").into_path();
        let line = describe(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path.strip_prefix(root).unwrap().to_owned(), line)
    };
    walk.into_iter().map(describe).collect()
}

fn describe(path: &Path) -> std::io::Result<String> {
    let meta = path.symlink_metadata()?;
    let mut line = format!(
        "{:o} {}:{} {}.{:09}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    let kind = meta.file_type();
    if !kind.is_dir() {
        write!(line, " links={} size={}", meta.nlink(), meta.size()).unwrap();
    }
    if kind.is_symlink() {
        write!(
            line,
            " -> {}",
            std::fs::read_link(path)?
                .as_os_str()
                .as_bytes()
                .escape_ascii()
        )
        .unwrap();
    } else if kind.is_block_device() || kind.is_char_device() {
        write!(line, " device={:x}", meta.rdev()).unwrap();
    } else if kind.is_file() {
        write!(line, " {}", Digest::of(&std::fs::read(path)?).hex()).unwrap();
    }
    let mut xattrs = Vec::new();
    for name in list_xattrs(path)? {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(&name), &mut value)?;
        xattrs.push(format!(
            " {}={}",
            name.escape_ascii(),
            value[..length].escape_ascii()
        ));
    }
    xattrs.sort();
    line.extend(xattrs);
    Ok(line)
}

fn list_xattrs(path: &Path) -> std::io::Result<Vec<Vec<u8>>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names)?;
    Ok(names[..length]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

/// Asserts that two trees are the same, and shows the first few paths where they are not.
fn assert_same(what: &str, ours: &BTreeMap<PathBuf, String>, theirs: &BTreeMap<PathBuf, String>) {
    let mut differences = String::new();
    let paths: std::collections::BTreeSet<&PathBuf> = ours.keys().chain(theirs.keys()).collect();
    let mut count = 0;
    for path in paths {
        if ours.get(path) != theirs.get(path) {
            count += 1;
            if count <= 10 {
                writeln!(
                    differences,
                    "{}\n  ovl:       {:?}\n  reference: {:?}",
                    path.display(),
                    ours.get(path),
                    theirs.get(path)
                )
                .unwrap();
            }
        }
    }
    assert!(
        count == 0,
        "{what}: {count} of {} paths differ:\n{differences}",
        ours.len()
    );
}

/// podman's storage in a sandbox, unmounted when dropped.
struct Podman<'a>(&'a Sandbox);

impl Podman<'_> {
    fn run(&self, args: &[&str]) -> String {
        let (storage, run) = (self.0.path("podman"), self.0.path("pr"));
        let global = [
            "--root",
            storage.to_str().unwrap(),
            "--runroot",
            run.to_str().unwrap(),
        ];
        String::from_utf8(command("podman", global.iter().chain(args)).stdout)
            .unwrap()
            .trim()
            .to_owned()
    }
}

/// What podman shows of an archive's (only) image.
fn by_podman(sandbox: &Sandbox, archive: &Path) -> BTreeMap<PathBuf, String> {
    let podman = Podman(sandbox);
    podman.run(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
    let id = podman.run(&["images", "--quiet"]);
    let root = podman.run(&["image", "mount", &id]);
    let tree = tree(Path::new(&root));
    podman.run(&["image", "unmount", "--all"]);
    tree
}

fn by_ovl(sandbox: &Sandbox, archive: &Path) -> BTreeMap<PathBuf, String> {
    let mnt = sandbox.mkdir("mnt");
    let id = sandbox.run(["import".as_ref(), archive.as_os_str()]);
    sandbox.run(["mount", "--read-only", id.trim(), "mnt"]);
    let tree = tree(&mnt);
    sandbox.run(["umount", "mnt"]);
    tree
}

#[test]
fn a_small_image_of_hard_cases_is_what_podman_shows() {
    require_mounting();
    for archive in [
        "buildah.docker.tar",
        "podman.oci.tar",
        "skopeo-zstd.oci.tar",
    ] {
        let sandbox = Sandbox::new();
        let archive = images("small").join(archive);
        assert_same(
            archive.to_str().unwrap(),
            &by_ovl(&sandbox, &archive),
            &by_podman(&sandbox, &archive),
        );
    }
}

#[test]
fn the_five_layer_image_is_what_podman_shows() {
    require_mounting();
    let sandbox = Sandbox::new();
    let archive = images("five").join("v1.docker.tar");
    let mut ours = by_ovl(&sandbox, &archive);
    assert!(ours.len() > 10_000, "{} paths", ours.len());
    // The one file from before 1970: podman moves such times to 0.
    let old = ours
        .get_mut(Path::new("etc/app.conf"))
        .expect("a file of the configuration layer");
    assert!(old.contains(" -2.000000000 "), "{old}");
    *old = old.replace(" -2.000000000 ", " 0.000000000 ");
    assert_same("v1.docker.tar", &ours, &by_podman(&sandbox, &archive));
}

#[test]
fn tars_of_a_root_file_system_are_what_tar_unpacks() {
    require_mounting();
    let names = [
        "gnu",
        "pax",
        "xattrs",
        "sparse-0.0",
        "sparse-0.1",
        "sparse-gnu",
        "ustar",
    ];
    for name in names {
        let sandbox = Sandbox::new();
        let archive = images("small").join(format!("rootfs.{name}.tar"));
        let unpacked = sandbox.mkdir("unpacked");
        let (to, from) = (unpacked.to_str().unwrap(), archive.to_str().unwrap());
        command(
            "tar",
            [
                "--numeric-owner",
                "--xattrs",
                "--xattrs-include=*",
                "--acls",
                "-xpf",
                from,
                "-C",
                to,
            ],
        );
        assert_same(name, &by_ovl(&sandbox, &archive), &tree(&unpacked));
    }
}

/// Changes of every kind to the small image; run by its own busybox.
const CHANGES: &str = "
    cd /
    # A link from a moved directory to an unchanged file elsewhere becomes a file of its own in a layer.
    rm /odd/links/deep
    mv /odd/links /odd/renamed                       # a directory of the image under another name
    mv /odd/names/'two words' /odd/words
    echo more >> /odd/renamed/second                 # a file with several names in the image
    ln /odd/renamed/second /odd/another
    ln /bin/busybox /usr/bin/tool                    # a new name of an unchanged file
    rm -r /etc/motd && echo file > /etc/motd         # a directory becomes a file
    rm /home && mkdir -p /home/user && chmod 2750 /home/user
    rm -r /etc/old.d && mkdir /etc/old.d && echo again > /etc/old.d/new
    rm -r /odd/kinds && mkdir /odd/kinds && mknod /odd/kinds/null c 1 3 && mknod /odd/kinds/pipe p
    chmod 4711 /bin/busybox
    chown 1234:4321 /odd/moved && touch -d '1999-12-31 23:59:59' /odd/moved
    dd if=/etc/passwd of=/odd/holes/middle bs=1 seek=500000 conv=notrunc 2> /odd/log; rm /odd/log
    mkdir -p /deep/er/and/deeper && ln -s deeper /deep/er/and/link
";

/// A commit keeps what the mount showed: seen through the new image, and by podman through its export.
#[test]
fn a_committed_image_is_what_the_mount_showed() {
    require_mounting();
    let sandbox = Sandbox::new();
    let (mnt, second) = (sandbox.mkdir("mnt"), sandbox.mkdir("second"));
    sandbox.run([
        "import".as_ref(),
        images("small").join("podman.oci.tar").as_os_str(),
    ]);
    sandbox.run(["mount", "localhost/small:1", "upper", "mnt"]);
    command(
        "chroot",
        [mnt.to_str().unwrap(), "/bin/sh", "-euc", CHANGES],
    );
    // Mounted again, it shows the times that the upper has; until then those of cached writes are the kernel's own.
    sandbox.run(["umount", "mnt"]);
    sandbox.run(["mount", "localhost/small:1", "upper", "mnt"]);
    let shown = tree(&mnt);
    sandbox.run(["commit", "mnt", "changed"]);
    sandbox.run(["mount", "--read-only", "changed", "second"]);
    assert_same("the new image", &tree(&second), &shown);
    sandbox.run(["export", "changed", "oci-archive:changed.tar"]);
    assert_same(
        "its export",
        &shown,
        &by_podman(&sandbox, &sandbox.path("changed.tar")),
    );
}

/// A mount that is not of one image is committed whole.
#[test]
fn directories_are_committed_whole() {
    require_mounting();
    let sandbox = Sandbox::new();
    let (lower, mnt) = (sandbox.mkdir("lower"), sandbox.mkdir("mnt"));
    let archive = images("small").join("rootfs.xattrs.tar");
    let (to, from) = (lower.to_str().unwrap(), archive.to_str().unwrap());
    command(
        "tar",
        [
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--acls",
            "-xpf",
            from,
            "-C",
            to,
        ],
    );
    sandbox.run(["mount", "./lower", "upper", "mnt"]);
    std::fs::remove_dir_all(mnt.join("kinds")).unwrap();
    // With a time of our own: that of a write still held back is the kernel's until it is flushed.
    std::fs::write(mnt.join("added"), "new").unwrap();
    std::fs::File::open(mnt.join("added"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    let shown = tree(&mnt);
    sandbox.run(["commit", "mnt", "whole"]);
    sandbox.run(["umount", "mnt"]);
    sandbox.run(["mount", "--read-only", "whole", "mnt"]);
    assert_same("the new image", &tree(&mnt), &shown);
}

/// Reading at random places, over holes and past the end, gives what reading from front to back gives.
#[test]
fn random_reads_of_a_stored_file_are_right() {
    require_mounting();
    let sandbox = Sandbox::new();
    let mnt = sandbox.mkdir("mnt");
    let id = sandbox.run([
        "import".as_ref(),
        images("small").join("rootfs.xattrs.tar").as_os_str(),
    ]);
    sandbox.run(["mount", "--read-only", id.trim(), "mnt"]);
    for name in ["holes/many", "holes/middle", "holes/all"] {
        let whole = std::fs::read(mnt.join(name)).unwrap();
        let mut file = std::fs::File::open(mnt.join(name)).unwrap();
        let mut seed = 1_u64;
        for _ in 0..500 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (seed >> 20) as usize % (whole.len() + 5000);
            let mut piece = vec![1; (seed >> 8) as usize % 9000];
            file.seek(SeekFrom::Start(at as u64)).unwrap();
            let mut got = 0;
            while got < piece.len() {
                match file.read(&mut piece[got..]).unwrap() {
                    0 => break,
                    n => got += n,
                }
            }
            let want = &whole[at.min(whole.len())..(at + piece.len()).min(whole.len())];
            assert!(
                piece[..got] == *want,
                "{name}: {} bytes at {at}",
                want.len()
            );
        }
    }
}
