//! Rows in which real programs do what they do all day.

use std::fs::{self, File};

use anyhow::{Context, Result};

use super::command::{command, drain, output, run};
use super::corpus::{CRATE, DEBIAN, git};
use super::drivers;
use super::groups::Group;
use super::rows::{Case, Row, row, time};

pub const ROWS: &[Row] = &[
    row(
        Group::Programs,
        &[
            time("tar.cold", "tar of a Debian root, cold"),
            time("tar.warm", "tar of a Debian root, warm"),
        ],
        tar,
    ),
    row(
        Group::Programs,
        &[time("unpack", "unpack a Debian root")],
        unpack,
    ),
    row(
        Group::Programs,
        &[
            time("clone", "git clone"),
            time("status", "git status, warm"),
        ],
        clone,
    ),
    row(
        Group::Programs,
        &[time("sqlite", "SQLite transactions")],
        sqlite,
    ),
    row(Group::Programs, &[time("cargo", "cargo build")], cargo),
    row(Group::Programs, &[time("dpkg", "dpkg --install")], dpkg),
];

fn tar(case: &mut Case<'_>) -> Result<()> {
    let root = case.session.lower(DEBIAN);
    case.cold_and_warm("tar.cold", "tar.warm", || {
        drain(command("tar", ["-cf", "-", "-C"]).arg(&root).arg(".")).map(drop)
    })
}

fn unpack(case: &mut Case<'_>) -> Result<()> {
    let to = case.session.scratch()?;
    drivers::warm(&case.corpus.archive)?;
    let archive = &case.corpus.archive;
    case.timed("unpack", || {
        run(command("tar", ["-xpf"]).arg(archive).arg("-C").arg(&to))
    })
}

fn clone(case: &mut Case<'_>) -> Result<()> {
    let to = case.session.scratch()?.join("clone");
    let repository = &case.corpus.repository;
    case.timed("clone", || {
        run(git()
            .args(["clone", "-q", "--no-local"])
            .arg(repository)
            .arg(&to))
    })?;
    let status = || {
        let said = output(git().arg("-C").arg(&to).args(["status", "--porcelain"]))?;
        anyhow::ensure!(said.is_empty(), "git sees changes in a new clone: {said}");
        Ok(())
    };
    // The first one may have to write the index anew, for files as old as itself.
    status()?;
    case.warm("status", status)
}

/// Each transaction is a row, and as many syncs as SQLite finds needful.
fn sqlite(case: &mut Case<'_>) -> Result<()> {
    let database = case.session.scratch()?.join("data.db");
    let mut script = String::from("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT);\n");
    for number in 0..case.sizes.transactions {
        script += &format!("BEGIN; INSERT INTO t (v) VALUES ('value {number}'); COMMIT;\n");
    }
    script += "SELECT count(*) FROM t;\n";
    let file = case.session.arena.path().join("script.sql");
    fs::write(&file, script)?;
    let wanted = case.sizes.transactions.to_string();
    case.timed("sqlite", || {
        let mut sqlite = command("sqlite3", ["-batch", "-bail", "-init", "/dev/null"]);
        let said = output(sqlite.arg(&database).stdin(File::open(&file)?))?;
        anyhow::ensure!(said.trim() == wanted, "SQLite counts {said:?}");
        Ok(())
    })
}

/// A crate without dependencies, in the lower tree, built in place.
fn cargo(case: &mut Case<'_>) -> Result<()> {
    let at = case.session.changeable(CRATE)?;
    case.timed("cargo", || {
        let mut cargo = command("cargo", ["build", "--quiet", "--offline"]);
        cargo.current_dir(&at);
        // Cargo started us, and said things that are not for this one.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let said = (text.starts_with("CARGO") && text != "CARGO_HOME")
                || (text.starts_with("RUST") && !text.starts_with("RUSTUP"));
            if said {
                cargo.env_remove(&name);
            }
        }
        run(&mut cargo)
    })?;
    run(&mut command(at.join("target/debug/benchmark"), [""; 0])).context("what cargo built")
}

/// A package of small files into the Debian root, with that root's database of packages.
fn dpkg(case: &mut Case<'_>) -> Result<()> {
    let root = case.session.changeable(DEBIAN)?;
    let package = &case.corpus.package;
    case.timed("dpkg", || {
        let mut dpkg = command("dpkg", ["--root"]);
        dpkg.arg(&root).args(["--force-depends", "--install"]);
        run(dpkg.arg(package).env("LC_ALL", "C.UTF-8").env(
            "PATH",
            // dpkg wants ldconfig and its like, which are not in every PATH.
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ))
    })
}
