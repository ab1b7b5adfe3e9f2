//! Builds and installs that find their own earlier work in the lower and go on from there: cargo looks at times and
//! hard-links its results, pip and npm replace directories by renames.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Sandbox, require_mounting};

fn run(command: &mut Command) -> String {
    let out = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {text}");
    text
}

fn cargo(dir: &Path, verb: &str) -> String {
    let mut command = Command::new(env!("CARGO"));
    // The project of this test, not the one that it is part of.
    for (name, _) in std::env::vars() {
        if name.starts_with("CARGO_") && name != "CARGO_HOME" {
            command.env_remove(name);
        }
    }
    run(command
        .args([verb, "--offline", "--verbose"])
        .current_dir(dir))
}

#[test]
fn cargo_goes_on_from_what_the_lower_has() {
    require_mounting();
    let sandbox = Sandbox::new();
    sandbox.mkdir("lower/src");
    sandbox.mkdir("lower/helper/src");
    sandbox.write(
        "lower/Cargo.toml",
        "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\
         [dependencies]\nhelper = { path = \"helper\" }\n[workspace]\n",
    );
    sandbox.write(
        "lower/helper/Cargo.toml",
        "[package]\nname = \"helper\"\nversion = \"0.1.0\"\nedition = \"2021\"\n",
    );
    sandbox.write(
        "lower/helper/src/lib.rs",
        "pub fn word() -> &'static str { \"helped\" }\n",
    );
    sandbox.write(
        "lower/src/main.rs",
        "fn main() { println!(\"{} once\", helper::word()); }\n",
    );
    sandbox.mkdir("mnt");
    // The earlier state is made through a mount too: cargo remembers absolute paths.
    sandbox.run(["mount", "lower", "first", "mnt"]);
    let mnt = sandbox.path("mnt");
    cargo(&mnt, "build");
    sandbox.run(["umount", "mnt"]);
    sandbox.run(["mount", "first:lower", "second", "mnt"]);
    let again = cargo(&mnt, "build");
    assert!(
        again.contains("Fresh helper") && again.contains("Fresh app"),
        "nothing changed: {again}"
    );
    fs::write(
        mnt.join("src/main.rs"),
        "fn main() { println!(\"{} twice\", helper::word()); }\n",
    )
    .unwrap();
    let changed = cargo(&mnt, "build");
    assert!(
        changed.contains("Fresh helper") && changed.contains("Dirty app"),
        "{changed}"
    );
    assert_eq!(
        run(&mut Command::new(mnt.join("target/debug/app"))),
        "helped twice\n"
    );
    cargo(&mnt, "clean");
    assert!(!mnt.join("target").exists());
    cargo(&mnt, "build");
    sandbox.run(["umount", "mnt"]);
    sandbox.run(["mount", "first:lower", "second", "mnt"]);
    assert_eq!(
        run(&mut Command::new(mnt.join("target/debug/app"))),
        "helped twice\n"
    );
    sandbox.run(["umount", "mnt"]);
}

/// A wheel is a zip file with a list of what is in it.
const MAKE_WHEELS: &str = r#"
import zipfile
for version in ("1.0", "2.0"):
    with zipfile.ZipFile(f"thing-{version}-py3-none-any.whl", "w") as wheel:
        files = {f"thing/part{i}.py": f"VERSION = '{version}'\n" for i in range(200)}
        files["thing/__init__.py"] = f"VERSION = '{version}'\n"
        if version == "1.0":
            files["thing/only_in_one.py"] = ""
        info = f"thing-{version}.dist-info"
        files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n"
        files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
        for name, text in files.items():
            wheel.writestr(name, text)
"#;

#[test]
fn pip_upgrades_what_the_lower_has() {
    require_mounting();
    let sandbox = Sandbox::new();
    let lower = sandbox.mkdir("lower");
    sandbox.mkdir("mnt");
    run(Command::new("python3")
        .args(["-c", MAKE_WHEELS])
        .current_dir(&lower));
    let pip = |dir: &Path, wheel: &str| {
        let target = dir.join("site");
        run(Command::new("python3")
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-index",
                "--no-deps",
                "--upgrade",
                "--target",
            ])
            .arg(&target)
            .arg(dir.join(wheel))
            .env("PIP_ROOT_USER_ACTION", "ignore")
            .env("PIP_DISABLE_PIP_VERSION_CHECK", "1"));
        let code = "import thing, thing.part7, os; print(thing.VERSION, thing.part7.VERSION, len(os.listdir(thing.__path__[0])))";
        run(Command::new("python3")
            .args(["-c", code])
            .env("PYTHONPATH", &target)
            .env("PYTHONDONTWRITEBYTECODE", "1"))
    };
    let first = pip(&lower, "thing-1.0-py3-none-any.whl");
    assert!(first.starts_with("1.0 1.0 "), "{first}");
    sandbox.run(["mount", "lower", "upper", "mnt"]);
    let mnt = sandbox.path("mnt");
    let second = pip(&mnt, "thing-2.0-py3-none-any.whl");
    assert!(second.starts_with("2.0 2.0 "), "{second}");
    assert!(!mnt.join("site/thing/only_in_one.py").exists());
    assert!(
        lower.join("site/thing/only_in_one.py").exists(),
        "the lower is as it was"
    );
    sandbox.run(["umount", "mnt"]);
}

/// Packages as npm packs them, and two states of a program that needs them: `old.json` and `new.json`.
const MAKE_PACKAGES: &str = r##"
import io, json, tarfile
def pack(name, version, files):
    manifest = {"name": name, "version": version, "main": "index.js", "bin": {name.split("/")[-1]: "cli.js"}}
    all = {"package.json": json.dumps(manifest), "index.js": f"exports.version = '{version}'\n",
           "cli.js": f"#!/usr/bin/env node\nconsole.log('{version}')\n", **files}
    path = f"packs/{name.replace('@', '').replace('/', '-')}-{version}.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for file, text in all.items():
            entry = tarfile.TarInfo("package/" + file)
            entry.size, entry.mode = len(text), 0o755 if file == "cli.js" else 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return {name: "file:../" + path}
many = lambda word, n: {f"lib/{i % 7}/part{i}.js": f"module.exports = '{word} {i}'\n" for i in range(n)}
same = pack("same", "1.0.0", many("same", 50))
old = {**same, **pack("grows", "1.0.0", {**many("old", 100), "only-old.js": ""}), **pack("goes", "1.0.0", many("goes", 40)),
       **pack("@of/scoped", "1.0.0", {"lib": "a file"})}
new = {**same, **pack("grows", "2.0.0", many("new", 150)), **pack("comes", "1.0.0", {}),
       **pack("@of/scoped", "1.1.0", many("a directory", 20))}
for state, needs in ("old", old), ("new", new):
    with open(f"{state}.json", "w") as out:
        json.dump({"name": "program", "version": "1.0.0", "dependencies": needs}, out)
"##;

/// Everything below a directory but times: mode with type, content or target.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let entries = walkdir::WalkDir::new(dir).into_iter().map(|e| e.unwrap());
    entries
        .map(|entry| {
            let meta = entry.path().symlink_metadata().unwrap();
            let what = if meta.is_symlink() {
                let target = fs::read_link(entry.path()).unwrap();
                target.into_os_string().into_encoded_bytes()
            } else if meta.is_file() {
                fs::read(entry.path()).unwrap()
            } else {
                Vec::new()
            };
            let path = entry.path().strip_prefix(dir).unwrap().to_owned();
            (path, (meta.mode(), what))
        })
        .collect()
}

/// Names that differ, both ways.
fn differing(one: &Path, two: &Path) -> Vec<PathBuf> {
    let (one, two) = (tree(one), tree(two));
    let all: BTreeSet<_> = one.keys().chain(two.keys()).collect();
    let differ = all
        .into_iter()
        .filter(|path| one.get(*path) != two.get(*path));
    differ.cloned().collect()
}

#[test]
fn npm_upgrades_what_the_lower_has() {
    require_mounting();
    let sandbox = Sandbox::new();
    let (lower, mnt) = (sandbox.mkdir("lower"), sandbox.mkdir("mnt"));
    for dir in ["packs", "program"] {
        fs::create_dir(lower.join(dir)).unwrap();
    }
    run(Command::new("python3")
        .args(["-c", MAKE_PACKAGES])
        .current_dir(&lower));
    let npm = |base: &Path, verb: &str, state: &str| {
        let program = base.join("program");
        fs::copy(
            base.join(format!("{state}.json")),
            program.join("package.json"),
        )
        .unwrap();
        run(Command::new("npm")
            .args([
                verb,
                "--offline",
                "--no-audit",
                "--no-fund",
                "--no-update-notifier",
            ])
            .env("npm_config_cache", sandbox.path("cache"))
            .env("HOME", sandbox.path("home"))
            .current_dir(&program));
    };
    let version = |base: &Path| {
        let code = "const v = p => require(p).version; console.log(v('grows'), v('@of/scoped'))";
        let program = base.join("program");
        let said = run(Command::new("node")
            .args(["-e", code])
            .current_dir(&program));
        said + &run(&mut Command::new(program.join("node_modules/.bin/grows")))
    };
    npm(&lower, "install", "old");
    assert_eq!(version(&lower), "1.0.0 1.0.0\n1.0.0\n");
    let before = tree(&lower);
    let plain = sandbox.path("plain");
    run(Command::new("cp").arg("-a").arg(&lower).arg(&plain));
    let mount = || sandbox.run(["mount", "lower", "upper", "mnt"]);
    mount();
    for (verb, state, versions) in [
        ("install", "new", "2.0.0 1.1.0\n2.0.0\n"),
        // Everything removed and installed anew.
        ("ci", "new", "2.0.0 1.1.0\n2.0.0\n"),
        ("install", "old", "1.0.0 1.0.0\n1.0.0\n"),
    ] {
        for base in [&plain, &mnt] {
            npm(base, verb, state);
            assert_eq!(version(base), versions, "npm {verb} in {}", base.display());
        }
        let same: [PathBuf; 0] = [];
        assert_eq!(differing(&mnt, &plain), same, "after npm {verb} of {state}");
        sandbox.run(["umount", "mnt"]);
        mount();
        assert_eq!(differing(&mnt, &plain), same, "after a new mount");
    }
    sandbox.run(["umount", "mnt"]);
    assert!(tree(&lower) == before, "the lower is as it was");
}
