//! What ovl is built from: every crate's licence, where it comes from, that none comes in two versions unless we know why, and
//! where unsafe code is. `make audit` asks cargo-deny, which knows published vulnerabilities besides.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Licences that ask for no more than their text beside what is passed on.
const FREE: [&str; 9] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Others, each with what it means for us; `deny.toml` has the same.
const OTHERS: [(&str, &str); 1] = [
    // Comes with preflate-rs, which gives back compressed layers bit for bit. Whoever passes on a program that it is linked
    // into must let its user link another version: with our source, which is open, one can.
    ("cabac", "LGPL-3.0-or-later"),
];

/// Crates in several versions, all of them used only by compile-time macros of others.
const SEVERAL: [&str; 1] = ["syn"];

/// The packages built for Linux on this processor, tests included.
fn packages() -> Vec<Value> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version", "1"])
        .args(["--filter-platform", &target])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    all["packages"].as_array().expect("a list").clone()
}

fn text<'a>(package: &'a Value, key: &str) -> &'a str {
    package[key].as_str().unwrap_or_default()
}

/// Is one of the alternatives of an SPDX expression free in all its parts? Of parentheses the crates here have those around
/// alternatives that are followed by AND.
fn is_free(expression: &str) -> bool {
    if let Some((alternatives, rest)) = expression
        .strip_prefix('(')
        .and_then(|inner| inner.split_once(") AND "))
    {
        return is_free(alternatives) && is_free(rest);
    }
    let alternatives = expression.replace('/', " OR ");
    let mut alternatives = alternatives.split(" OR ");
    alternatives.any(|one| one.split(" AND ").all(|part| FREE.contains(&part.trim())))
}

#[test]
fn licences_are_read_as_meant() {
    for (expression, free) in [
        ("MIT", true),
        ("MIT/Apache-2.0", true),
        ("GPL-2.0-only OR MIT", true),
        ("GPL-2.0-only AND MIT", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND GPL-3.0-only", false),
        ("LGPL-3.0-or-later", false),
        ("", false),
    ] {
        assert_eq!(is_free(expression), free, "{expression}");
    }
}

#[test]
fn every_licence_lets_us_pass_ovl_on() {
    let packages = packages();
    let mut used = BTreeSet::new();
    for package in &packages {
        let (name, licence) = (text(package, "name"), text(package, "license"));
        if OTHERS.contains(&(name, licence)) {
            used.insert(name.to_owned());
            continue;
        }
        assert!(is_free(licence), "{name}: {licence:?}");
    }
    for (name, _) in OTHERS {
        assert!(
            used.contains(name),
            "{name} is not used any more: take it off the list"
        );
    }
}

#[test]
fn crates_come_from_the_registry_once_each() {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages() {
        let name = text(&package, "name");
        let source = text(&package, "source");
        let ours = name == env!("CARGO_PKG_NAME") && package["source"].is_null();
        assert!(
            ours || source.starts_with("registry+"),
            "{name} comes from {source:?}"
        );
        let list = versions.entry(name.to_owned()).or_default();
        list.push(text(&package, "version").to_owned());
    }
    versions.retain(|_, list| list.len() > 1);
    let several: Vec<_> = versions.keys().map(String::as_str).collect();
    assert_eq!(several, SEVERAL, "{versions:?}");
}

/// The compiler refuses unsafe code (`unsafe_code` in `Cargo.toml`) but where a file allows it, and clippy refuses it without a
/// comment that says why it is sound; here is where that is, and how much.
#[test]
fn unsafe_code_is_in_one_room() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut count = 0;
    let mut ahead = vec![src.clone()];
    while let Some(dir) = ahead.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                ahead.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let inside = path.strip_prefix(&src).unwrap();
            let room = inside == Path::new("sys.rs") || inside.starts_with("sys");
            assert!(
                room || !text.contains("allow(unsafe_code"),
                "{} allows itself unsafe code",
                inside.display()
            );
            if room {
                let code = text.lines().map(str::trim_start);
                let code = code.filter(|line| !line.starts_with("//"));
                count += code
                    .map(|line| line.matches("unsafe {").count())
                    .sum::<usize>();
            }
        }
    }
    // Not a bound but a reason to look: more of it is to be asked for in a review.
    println!("{count} unsafe blocks in sys");
    assert!(count > 0);
}
