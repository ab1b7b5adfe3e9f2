//! Bad input and bad places, from the command line to the exit code: one line that names the thing, a store as it was, and
//! nothing left mounted.

mod common;
mod real_support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Sandbox, busybox, command, images, mounts_below, require_mounting};
use real_support::{assert_same, sha256, tree};

/// What a failed command must not change. Layers that were whole when an import failed are no image's, and go with `gc`.
fn store_state(sandbox: &Sandbox) -> (String, serde_json::Value) {
    let images = sandbox.run(["images", "--digests", "--no-trunc"]);
    sandbox.run(["gc"]);
    let df = sandbox.run(["df", "--format", "json"]);
    let df: serde_json::Value = serde_json::from_str(&df).unwrap();
    let layers = ["Images", "Layers", "Raw", "Unique"].map(|field| df[field].clone());
    (images, layers.to_vec().into())
}

/// Runs `ovl import`, which must fail with one of `codes`; its line.
fn refused(sandbox: &Sandbox, codes: &[i32], source: &str) -> String {
    let output = sandbox.ovl(["import", source]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code().unwrap_or(-1);
    assert!(
        codes.contains(&code),
        "import {source}: {:?}: {stderr}",
        output.status
    );
    assert!(
        output.stdout.is_empty()
            && stderr.starts_with("ovl: ")
            && stderr.matches('\n').count() == 1,
        "import {source}: {stderr:?}"
    );
    stderr
}

#[test]
fn archives_cut_short_change_nothing() {
    let small = images("small");
    let sandbox = Sandbox::with_busybox();
    let before = store_state(&sandbox);
    for name in [
        "buildah.docker.tar",
        "podman.oci.tar",
        "skopeo-zstd.oci.tar",
        "rootfs.bsdtar.tar",
        "rootfs.pax.tar.gz",
        "rootfs.gnu.tar.zst",
    ] {
        let whole = fs::read(small.join(name)).unwrap();
        for part in 0..12 {
            let length = whole.len() * part / 12 + part * 7;
            let cut = sandbox.write("cut", &whole[..length]);
            let line = refused(&sandbox, &[1, 5], cut.to_str().unwrap());
            assert!(line.contains("cut"), "{name}, {length} bytes: {line}");
            // The same from a pipe.
            let output = sandbox
                .ovl(["import", "-", "--tag", "x"])
                .write_stdin(&whole[..length])
                .output()
                .unwrap();
            assert!(
                matches!(output.status.code(), Some(1 | 5)),
                "{name}, {length} bytes piped: {output:?}"
            );
        }
        assert_eq!(store_state(&sandbox), before, "{name}");
    }
}

/// Replaces one byte in the middle of a file.
fn spoil(path: &Path) {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.write_all(&[byte[0] ^ 0x10]).unwrap();
}

#[test]
fn bytes_that_do_not_hash_to_their_name_are_an_integrity_error() {
    // Not busybox: layers that are there already are not read again.
    let sandbox = Sandbox::new();
    sandbox.run([
        "import".as_ref(),
        images("small").join("rootfs.gnu.tar").as_os_str(),
    ]);
    let before = store_state(&sandbox);
    let layout = images("small").join("podman.oci");
    let blobs: Vec<PathBuf> = fs::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .map(|blob| blob.unwrap().path())
        .collect();
    assert!(blobs.len() > 5);
    for blob in &blobs {
        let copy = sandbox.path("layout");
        let _ = fs::remove_dir_all(&copy);
        command("cp", ["-r".as_ref(), layout.as_os_str(), copy.as_os_str()]);
        spoil(&copy.join(blob.strip_prefix(&layout).unwrap()));
        let hex = blob.file_name().unwrap().to_str().unwrap();
        let line = refused(&sandbox, &[5], "oci:layout");
        assert!(line.contains(&hex[..12]), "{hex}: {line}");
        assert_eq!(store_state(&sandbox), before, "{hex}");
    }

    // A docker-archive has no digests of layers but in the configuration.
    let unpacked = sandbox.mkdir("unpacked");
    let archive = images("small").join("podman.docker.tar");
    command(
        "tar",
        [
            "-xf".as_ref(),
            archive.as_os_str(),
            "-C".as_ref(),
            unpacked.as_os_str(),
        ],
    );
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(unpacked.join("manifest.json")).unwrap()).unwrap();
    let layers = manifest[0]["Layers"].as_array().unwrap();
    spoil(&unpacked.join(layers[1].as_str().unwrap()));
    command(
        "tar",
        ["-cf", "spoilt.tar", "-C", "unpacked", "."].map(|word| match word {
            "spoilt.tar" => sandbox.path("spoilt.tar").into_os_string(),
            "unpacked" => unpacked.clone().into_os_string(),
            word => word.into(),
        }),
    );
    refused(&sandbox, &[5], "docker-archive:spoilt.tar");
    assert_eq!(store_state(&sandbox), before);
}

fn tmpfs(at: &Path, size: &str) {
    command(
        "mount",
        [
            "-t",
            "tmpfs",
            "-o",
            &format!("size={size},mode=755"),
            "ovl-test",
            at.to_str().unwrap(),
        ],
    );
}

fn resize(at: &Path, size: &str) {
    command(
        "mount",
        ["-o", &format!("remount,size={size}"), at.to_str().unwrap()],
    );
}

#[test]
fn a_full_store_keeps_what_it_has() {
    require_mounting();
    let sandbox = Sandbox::new();
    let place = sandbox.mkdir("store");
    tmpfs(&place, "8m");
    sandbox.run(["import".as_ref(), busybox().as_os_str()]);
    let before = store_state(&sandbox);
    let base = images("base").join("base.tar");
    for _ in 0..2 {
        let line = refused(&sandbox, &[1], base.to_str().unwrap());
        assert!(line.contains("no space left"), "{line}");
        assert_eq!(store_state(&sandbox), before);
    }
    // It can still be mounted, and read to the last byte.
    let mnt = sandbox.mkdir("mnt");
    sandbox.run(["mount", "--read-only", "busybox", "mnt"]);
    assert!(tree(&mnt).len() > 40);
    sandbox.run(["umount", "mnt"]);
    // With more room it goes on as if nothing had been.
    resize(&place, "400m");
    sandbox.run(["import".as_ref(), base.as_os_str(), "--quiet".as_ref()]);
    sandbox.run(["gc"]);
}

fn sha256_of(path: &Path) -> String {
    sha256(File::open(path).unwrap()).unwrap()
}

/// Bytes that do not compress or repeat.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    bytes
}

#[test]
fn a_full_upper_leaves_the_lower_visible() {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    let (small, mnt) = (sandbox.mkdir("small"), sandbox.mkdir("mnt"));
    tmpfs(&small, "1m");
    sandbox.run(["mount", "busybox", "small/upper", "mnt"]);
    let before = tree(&mnt);
    let program = mnt.join("bin/busybox");
    assert!(program.metadata().unwrap().len() > 1 << 20);
    let no_space =
        |error: std::io::Error| assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");

    // Changes that copy up: none fits, none leaves a trace.
    let permissions = program.metadata().unwrap().permissions();
    for _ in 0..3 {
        no_space(fs::set_permissions(&program, permissions.clone()).unwrap_err());
        no_space(fs::hard_link(&program, mnt.join("etc/link")).unwrap_err());
        no_space(fs::rename(&program, mnt.join("etc/moved")).unwrap_err());
        no_space(
            OpenOptions::new()
                .write(true)
                .open(&program)
                .and_then(|file| file.set_len(1_900_000))
                .unwrap_err(),
        );
    }
    assert_same(
        "after copy-ups that did not fit",
        &files_of(&mnt),
        &only_files(before.clone()),
    );
    let nothing_half_done = || {
        let left: Vec<_> = walkdir::WalkDir::new(sandbox.path("small"))
            .into_iter()
            .map(|e| e.unwrap())
            .collect();
        assert!(
            left.iter().all(|entry| entry.file_type().is_dir()),
            "{left:?}"
        );
    };
    nothing_half_done();

    // Bytes written are told of when they are flushed. Until then, and for as long as the kernel keeps the file in memory,
    // it shows its own idea of it; what is on disk is untouched.
    let appended = OpenOptions::new()
        .append(true)
        .open(&program)
        .and_then(|mut file| {
            file.write_all(b"x")?;
            file.sync_all()
        });
    no_space(appended.unwrap_err());
    nothing_half_done();
    sandbox.run(["umount", "mnt"]);
    sandbox.run(["mount", "busybox", "small/upper", "mnt"]);
    assert_same(
        "mounted again",
        &files_of(&mnt),
        &only_files(before.clone()),
    );

    // A new file that does not fit is told of at the latest by fsync; what fits is right.
    let big = File::create(mnt.join("big")).unwrap();
    let filled = (&big)
        .write_all(&noise(3 << 20))
        .and_then(|()| big.sync_all());
    no_space(filled.unwrap_err());
    drop(big);
    fs::remove_file(mnt.join("big")).unwrap();
    // The kernel tells the daemon a moment later that nobody has the file open, which frees the space.
    let free = || rustix::fs::statvfs(&mnt).unwrap().f_bfree;
    for _ in 0..1000 {
        if free() > 100 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(free() > 100, "a removed file keeps its space");
    fs::write(mnt.join("etc/motd"), "fits").unwrap();
    File::open(mnt.join("etc/motd"))
        .unwrap()
        .sync_all()
        .unwrap();
    assert_eq!(
        fs::read_to_string(sandbox.path("small/upper/etc/motd")).unwrap(),
        "fits"
    );

    // With more room the same change works.
    resize(&small, "8m");
    OpenOptions::new()
        .append(true)
        .open(&program)
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let mut wanted = fs::read(&program).unwrap();
    assert_eq!(wanted.pop(), Some(b'x'));
    assert_eq!(
        sha256(&wanted[..]).unwrap(),
        before[Path::new("bin/busybox")].content.clone().unwrap()
    );
    sandbox.run(["umount", "mnt"]);
    assert_ne!(
        sha256_of(&sandbox.path("small/upper/bin/busybox")),
        before[Path::new("bin/busybox")].content.clone().unwrap()
    );
}

/// Files and links only: directories were copied up, which is no harm.
fn only_files(mut tree: real_support::Tree) -> real_support::Tree {
    tree.retain(|_, facts| facts.size.is_some());
    tree
}

fn files_of(root: &Path) -> real_support::Tree {
    only_files(tree(root))
}

#[test]
fn places_where_nothing_can_be_mounted() {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    for dir in ["lower/inside", "mnt", "other", "fixed", "low2", "rest"] {
        sandbox.mkdir(dir);
    }
    sandbox.write("file", "");
    sandbox.write("lower/kept", "kept");
    tmpfs(&sandbox.path("fixed"), "1m");
    fs::create_dir(sandbox.path("fixed/upper")).unwrap();
    command(
        "mount",
        ["-o", "remount,ro", sandbox.path("fixed").to_str().unwrap()],
    );
    sandbox.run(["mount", "busybox", "used", "mnt"]);
    let mounted = mounts_below(&sandbox.path(""));
    assert_eq!(mounted.len(), 2);
    let before = store_state(&sandbox);
    let files = tree(&sandbox.path("lower"));

    for (codes, args, names) in [
        (&[4][..], "mount no/such:image upper other", "no/such:image"),
        (&[4], "mount busybox:2 upper other", "busybox:2"),
        (&[4], "mount UPPER//case upper other", "UPPER//case"),
        (&[4], "mount ./missing upper other", "missing"),
        (&[4], "mount busybox no/upper other", "no"),
        (&[4], "mount busybox upper nowhere", "nowhere"),
        (&[2], "mount busybox upper file", "file"),
        (&[2], "mount busybox file other", "file"),
        (&[75], "mount busybox upper mnt", "mnt"),
        (&[75], "mount busybox used other", "used"),
        (
            &[75],
            "mount busybox upper other --workdir .used.ovl-work",
            ".used.ovl-work",
        ),
        (&[2], "mount ./lower lower/inside other", "lower/inside"),
        (&[2], "mount ./lower lower/new other", "lower/new"),
        (&[2], "mount ./lower/inside lower other", "lower"),
        (&[2], "mount ./lower ./lower other", "lower"),
        (
            &[2],
            "mount ./lower upper other --workdir lower/work",
            "lower/work",
        ),
        (
            &[2],
            "mount busybox upper other --workdir upper/work",
            "upper/work",
        ),
        (&[1], "mount busybox fixed/upper other", "fixed/upper"),
        (&[1], "mount busybox fixed/new other", "fixed/new"),
        (&[2], "mount --read-only busybox", "mount"),
        (&[4], "umount other", "other"),
        (&[4], "commit other x", "other"),
        (&[4], "diff other", "other"),
    ] {
        let words: Vec<&str> = args.split(' ').collect();
        let output = sandbox.ovl(&words).output().unwrap();
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output
                .status
                .code()
                .is_some_and(|code| codes.contains(&code))
                && line.contains(names),
            "ovl {args}: {:?}, wanted {codes:?}: {line}",
            output.status
        );
        assert!(
            line.starts_with("ovl: ")
                && line.matches('\n').count() == 1
                && output.stdout.is_empty(),
            "{line:?}"
        );
        assert_eq!(mounts_below(&sandbox.path("")), mounted, "ovl {args}");
    }
    assert_same("the lower", &tree(&sandbox.path("lower")), &files);
    assert_eq!(store_state(&sandbox), before);
    assert_eq!(fs::read_dir(sandbox.path("other")).unwrap().count(), 0);

    // In use by a program: told who, and unmounted once it is gone.
    let mut user = Command::new("sleep")
        .arg("60")
        .current_dir(sandbox.path("mnt"))
        .spawn()
        .unwrap();
    let line = sandbox.fail(75, ["umount", "mnt"]);
    assert!(
        line.contains(&user.id().to_string()) && line.contains("sleep"),
        "{line}"
    );
    user.kill().unwrap();
    user.wait().unwrap();
    sandbox.run(["umount", "mnt"]);
    assert_eq!(mounts_below(&sandbox.path("mnt")), Vec::<PathBuf>::new());
}

/// A mount namespace made meanwhile has a copy of the mount, which keeps the daemon at work. (It was once said to be used
/// by the daemon itself.)
#[test]
fn a_copy_of_the_mount_in_another_namespace_is_told_of() {
    require_mounting();
    let sandbox = Sandbox::with_busybox();
    let mnt = sandbox.mkdir("mnt");
    sandbox.run(["mount", "busybox", "upper", "mnt"]);
    let daemon = common::daemon_of(&sandbox);
    let mut other = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sleep", "60"])
        .spawn()
        .unwrap();
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    let theirs = PathBuf::from(format!("/proc/{}", other.id()));
    // `sleep` is there once the namespace is complete.
    while fs::read_to_string(theirs.join("comm")).unwrap().trim() != "sleep" {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_ne!(fs::read_link(theirs.join("ns/mnt")).unwrap(), own);

    let line = sandbox.fail(75, ["umount", "--timeout", "1", "mnt"]);
    let namespace = format!(
        "sleep (pid {}, in a mount namespace with a copy of it)",
        other.id()
    );
    assert!(line.contains(&namespace), "{line}");
    assert!(!line.contains("open file"), "{line}");
    assert_eq!(mounts_below(&mnt), Vec::<PathBuf>::new());
    other.kill().unwrap();
    other.wait().unwrap();
    let ended = || !Path::new(&format!("/proc/{daemon}")).exists();
    for _ in 0..1000 {
        if ended() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(ended(), "the daemon goes on without a mount");
}
