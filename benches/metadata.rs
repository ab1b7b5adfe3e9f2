//! Rows about many small files that are only looked at.

use std::fs;

use anyhow::Result;

use super::command::{command, drain};
use super::corpus::BIG_DIRECTORY;
use super::drivers;
use super::groups::Group;
use super::rows::{Case, Row, row, time};

pub const ROWS: &[Row] = &[
    row(
        Group::Metadata,
        &[
            time("find.cold", "find, cold"),
            time("find.warm", "find, warm"),
        ],
        find,
    ),
    row(
        Group::Metadata,
        &[
            time("stat.cold", "stat, cold"),
            time("stat.warm", "stat, warm"),
        ],
        stat,
    ),
    row(
        Group::Metadata,
        &[
            time("open.cold", "open+read+close, lower, cold"),
            time("open.warm", "open+read+close, lower, warm"),
        ],
        open_lower,
    ),
    row(
        Group::Metadata,
        &[
            time("open.upper.cold", "open+read+close, upper, cold"),
            time("open.upper.warm", "open+read+close, upper, warm"),
        ],
        open_upper,
    ),
    row(
        Group::Metadata,
        &[
            time("readdir.cold", "readdir of a big directory, cold"),
            time("readdir.warm", "readdir of a big directory, repeated"),
        ],
        readdir,
    ),
];

fn find(case: &mut Case<'_>) -> Result<()> {
    let root = case.session.lower("");
    case.cold_and_warm("find.cold", "find.warm", || {
        drain(&mut command("find", [&root])).map(drop)
    })
}

fn stat(case: &mut Case<'_>) -> Result<()> {
    let paths = case.small(case.sizes.stats);
    case.cold_and_warm("stat.cold", "stat.warm", || drivers::stat(&paths))
}

fn open_lower(case: &mut Case<'_>) -> Result<()> {
    let paths = case.small(case.sizes.opens);
    case.cold_and_warm("open.cold", "open.warm", || drivers::read(&paths))
}

fn open_upper(case: &mut Case<'_>) -> Result<()> {
    let paths = drivers::names(&case.session.scratch()?, case.sizes.opens)?;
    for path in &paths {
        fs::write(path, [b'u'; 2000])?;
    }
    case.session.remount()?;
    case.cold_and_warm("open.upper.cold", "open.upper.warm", || {
        drivers::read(&paths)
    })
}

fn readdir(case: &mut Case<'_>) -> Result<()> {
    let directory = case.session.lower(BIG_DIRECTORY);
    let entries = case.sizes.big_directory;
    case.cold_and_warm("readdir.cold", "readdir.warm", || {
        let found = drivers::entries(&directory)?;
        anyhow::ensure!(found == entries, "{found} entries of {entries} are listed");
        Ok(())
    })
}
