//! Builds and installs that find their own earlier work in the lower and go on from there: cargo looks at times and
//! hard-links its results, pip replaces directories by renames.

mod common;

use std::fs;
use std::path::Path;
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
