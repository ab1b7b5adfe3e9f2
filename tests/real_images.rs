//! Images in and out, made by buildah, podman, skopeo, umoci, GNU tar and bsdtar: layers come back bit for bit, others
//! take what we export, nothing is stored twice, and memory stays small whatever the image.

mod common;
mod real_support;

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::daemon_of;
use common::{Sandbox, busybox, command, images, require_mounting};
use ovl::store::{Digest, Store};
use real_support::{layers_by_others, memory, sha256_of_pipe};
use sha2::Digest as _;

#[derive(Default)]
struct Hashing(sha2::Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stored layer's tar hashes to `layer`, which others computed from the original.
fn assert_comes_back(store: &Store, layer: &Digest, from: &Path) {
    let mut hash = Hashing::default();
    store
        .write_layer_tar(layer, &mut hash)
        .unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    let hex: String = hash
        .0
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(hex, layer.hex(), "{}", from.display());
}

fn inspect(sandbox: &Sandbox, image: &str) -> Vec<Digest> {
    let answer: serde_json::Value = serde_json::from_str(&sandbox.run(["inspect", image])).unwrap();
    let layers = answer[0]["RootFS"]["Layers"].as_array().unwrap();
    layers
        .iter()
        .map(|layer| layer.as_str().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn images_of_every_program_come_back_bit_for_bit() {
    let small = images("small");
    let archives = [
        busybox(),
        small.join("buildah.docker.tar"),
        small.join("podman.docker.tar"),
        small.join("podman.oci.tar"),
        small.join("podman.oci"),
        small.join("podman-two.docker.tar"),
        small.join("skopeo.oci"),
        small.join("skopeo-zstd.oci.tar"),
        small.join("umoci.oci"),
    ];
    for archive in archives {
        let sandbox = Sandbox::new();
        let expected = layers_by_others(&archive);
        let ids = sandbox.run(["import".as_ref(), archive.as_os_str(), "--quiet".as_ref()]);
        let ids: Vec<&str> = ids.lines().collect();
        assert_eq!(ids.len(), expected.len(), "{}", archive.display());
        let store = Store::open(&sandbox.root()).unwrap();
        for (id, layers) in ids.into_iter().zip(&expected) {
            assert_eq!(&inspect(&sandbox, id), layers, "{}", archive.display());
            for layer in layers {
                assert_comes_back(&store, layer, &archive);
            }
            // And in an archive that skopeo reads.
            for (target, compress) in [
                ("docker-archive:out.docker.tar", "none"),
                ("oci-archive:out.oci.tar", "gzip"),
            ] {
                sandbox.run(["export", "--compress", compress, id, target]);
                let (transport, file) = target.split_once(':').unwrap();
                let file = sandbox.path(file);
                let read = format!("{transport}:{}", file.display());
                let copy = format!("dir:{}", sandbox.path("copy").display());
                command("skopeo", ["copy", "--quiet", &read, &copy]);
                assert_eq!(
                    layers_by_others(&file),
                    std::slice::from_ref(layers),
                    "{} to {target}",
                    archive.display()
                );
            }
        }
    }
}

#[test]
fn tars_of_every_program_come_back_bit_for_bit() {
    let mut archives = vec![images("base").join("base.tar")];
    let small = std::fs::read_dir(images("small"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    archives.extend(small.filter(|path| {
        path.file_name()
            .unwrap()
            .as_encoded_bytes()
            .starts_with(b"rootfs.")
    }));
    assert!(archives.len() > 10, "{archives:?}");
    for archive in archives {
        let program = match archive.extension().and_then(OsStr::to_str) {
            Some("gz") => "gzip -dc \"$1\"",
            Some("zst") => "zstd -dc \"$1\"",
            _ => "cat \"$1\"",
        };
        let expected = sha256_of_pipe(program, &[&archive]);
        let sandbox = Sandbox::new();
        let id = sandbox.run(["import".as_ref(), archive.as_os_str(), "--quiet".as_ref()]);
        assert_eq!(
            inspect(&sandbox, id.trim()),
            [expected],
            "{}",
            archive.display()
        );
        assert_comes_back(&Store::open(&sandbox.root()).unwrap(), &expected, &archive);
    }
}

/// Imports an archive; the most memory it took, in KiB. (What /proc says last before the end; it only grows.)
fn import_watched(sandbox: &Sandbox, archive: &Path) -> u64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ovl"))
        .args(["import".as_ref(), archive.as_os_str(), "--quiet".as_ref()])
        .env("OVL_ROOT", sandbox.root())
        .stdout(Stdio::null())
        .spawn()
        .expect("ovl runs");
    let mut most = 0;
    let status = loop {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        });
        most = most.max(peak.unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert!(status.success(), "{}: {status}", archive.display());
    most
}

/// Bytes the store takes, with what waits in SQLite's log in its place.
fn on_disk(sandbox: &Sandbox) -> u64 {
    let database = sandbox.root().join("store.db");
    command(
        "sqlite3",
        [
            database.as_os_str(),
            "PRAGMA wal_checkpoint(TRUNCATE)".as_ref(),
        ],
    );
    let files = std::fs::read_dir(sandbox.root())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap());
    files
        .map(|meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)
        .sum()
}

fn layers_in_store(sandbox: &Sandbox) -> u64 {
    let df: serde_json::Value =
        serde_json::from_str(&sandbox.run(["df", "--format", "json"])).unwrap();
    df["Layers"].as_u64().unwrap()
}

/// podman's own idea of an archive's diff IDs, which it checks while it unpacks.
fn loaded_by_podman(sandbox: &Sandbox, archive: &Path) -> Vec<Digest> {
    let (storage, run) = (sandbox.path("podman"), sandbox.path("pr"));
    let podman = |args: &[&OsStr]| {
        let global = [
            "--root".as_ref(),
            storage.as_os_str(),
            "--runroot".as_ref(),
            run.as_os_str(),
        ];
        String::from_utf8(command("podman", global.iter().chain(args)).stdout).unwrap()
    };
    podman(&[
        "load".as_ref(),
        "--quiet".as_ref(),
        "--input".as_ref(),
        archive.as_os_str(),
    ]);
    let id = podman(&["images".as_ref(), "--quiet".as_ref()]);
    let format = "{{range .RootFS.Layers}}{{println .}}{{end}}";
    let layers = podman(&[
        "image".as_ref(),
        "inspect".as_ref(),
        "--format".as_ref(),
        format.as_ref(),
        id.trim().as_ref(),
    ]);
    podman(&["rmi".as_ref(), "--all".as_ref(), "--force".as_ref()]);
    layers
        .split_whitespace()
        .map(|layer| layer.parse().unwrap())
        .collect()
}

#[test]
fn the_five_layer_image_in_two_versions() {
    require_mounting();
    let (sandbox, five) = (Sandbox::new(), images("five"));

    // The first as a docker-archive, plain; the second as an oci-archive, with gzip.
    let (first, second) = (five.join("v1.docker.tar"), five.join("v2.oci.tar"));
    let memory_of_first = import_watched(&sandbox, &first);
    let one = on_disk(&sandbox);
    let memory_of_second = import_watched(&sandbox, &second);
    let both = on_disk(&sandbox);
    for memory in [memory_of_first, memory_of_second] {
        assert!(
            (1..256 * 1024).contains(&memory),
            "an import took {memory} KiB of memory"
        );
    }
    assert!(
        both * 10 < one * 11,
        "one version takes {one} bytes, both {both}"
    );

    // Their base layer is one, and other archives of the same images bring nothing new but documents, and what gives the
    // compressed layers back.
    assert_eq!(layers_in_store(&sandbox), 9);
    for again in ["v1.oci.tar", "v2.docker.tar"] {
        sandbox.run([
            "import".as_ref(),
            five.join(again).as_os_str(),
            "--quiet".as_ref(),
        ]);
    }
    assert_eq!(layers_in_store(&sandbox), 9);
    let growth = on_disk(&sandbox).saturating_sub(both);
    assert!(
        growth * 100 < both,
        "documents and recipes alone took {growth} bytes"
    );

    let store = Store::open(&sandbox.root()).unwrap();
    for (archive, name) in [(&first, "localhost/five:1"), (&second, "localhost/five:2")] {
        let layers = layers_by_others(archive).remove(0);
        assert_eq!(layers.len(), 5);
        assert_eq!(inspect(&sandbox, name), layers, "{name}");
        layers
            .iter()
            .for_each(|layer| assert_comes_back(&store, layer, archive));
    }
    for (name, target) in [
        ("localhost/five:1", "oci-archive:out.tar"),
        ("localhost/five:2", "docker-archive:out.tar"),
    ] {
        sandbox.run(["export", name, target]);
        assert_eq!(
            loaded_by_podman(&sandbox, &sandbox.path("out.tar")),
            inspect(&sandbox, name),
            "{name} as {target}"
        );
    }
    drop(store);

    sandbox.mkdir("mnt");
    sandbox.run(["mount", "localhost/five:1", "upper", "mnt"]);
    let resident = memory(daemon_of(&sandbox), "VmRSS");
    assert!(
        resident < 20 * 1024,
        "an idle mount takes {resident} KiB of memory"
    );
    eprintln!(
        "import: {memory_of_first} and {memory_of_second} KiB; on disk: {one} and {both}; idle mount: {resident} KiB"
    );
}
