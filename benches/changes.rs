//! Rows about names made, moved and removed, and about what an overlay must copy up before it changes it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Result;

use super::command::{command, run};
use super::corpus::{BIG, CHANGES};
use super::drivers;
use super::groups::Group;
use super::rows::{Case, Row, row, time};
use super::session::Span;

pub const ROWS: &[Row] = &[
    row(
        Group::Changes,
        &[
            time("create", "create"),
            time("rename", "rename"),
            time("unlink", "unlink"),
        ],
        create_rename_unlink,
    ),
    row(
        Group::Changes,
        &[time("lower.unlink", "unlink lower files")],
        |case| change_lower(case, "lower.unlink", drivers::unlink),
    ),
    row(
        Group::Changes,
        &[time("lower.chmod", "chmod lower files")],
        |case| change_lower(case, "lower.chmod", drivers::chmod),
    ),
    row(
        Group::Changes,
        &[time("lower.append", "append to lower files")],
        |case| change_lower(case, "lower.append", drivers::append),
    ),
    row(
        Group::Changes,
        &[time(
            "copyup",
            "one byte written to the big lower file, fsync",
        )],
        copy_up,
    ),
    row(
        Group::Changes,
        &[time(
            "copyup.wait",
            "longest wait for another file meanwhile",
        )],
        copy_up_beside,
    ),
];

fn create_rename_unlink(case: &mut Case<'_>) -> Result<()> {
    let paths = drivers::names(&case.session.scratch()?, case.sizes.creates)?;
    case.session.arena.settle()?;
    case.timed("create", || drivers::create(&paths))?;
    let (renamed, span) = case.session.timed(|| drivers::rename(&paths))?;
    case.found("rename", span);
    case.timed("unlink", || drivers::unlink(&renamed))
}

fn change_lower(
    case: &mut Case<'_>,
    measure: &'static str,
    change: fn(&[PathBuf]) -> Result<()>,
) -> Result<()> {
    let paths = drivers::files_below(&case.session.changeable(CHANGES)?)?;
    case.timed(measure, || change(&paths))
}

/// What changes the first byte of the big lower file. On the plain file system, where there is nothing to copy up, the
/// file is copied first.
fn change_big(case: &Case<'_>) -> Result<impl Fn() -> Result<()> + Send + 'static> {
    let file = case.session.lower(BIG);
    drivers::warm(&file)?;
    let copy = match case.session.is_base() {
        true => Some(case.session.scratch()?.join("copy")),
        false => None,
    };
    Ok(move || match &copy {
        None => drivers::change_one_byte(&file),
        Some(copy) => {
            run(command("cp", ["--reflink=never"]).arg(&file).arg(copy))?;
            drivers::change_one_byte(copy)
        }
    })
}

fn copy_up(case: &mut Case<'_>) -> Result<()> {
    let change = change_big(case)?;
    case.timed("copyup", change)
}

/// Opens and reads small files for as long as the copy takes; the slowest one counts.
fn copy_up_beside(case: &mut Case<'_>) -> Result<()> {
    let change = change_big(case)?;
    let paths = case.small(case.sizes.opens);
    let over = AtomicBool::new(false);
    let mut longest = 0.0_f64;
    let (_, span) = case.session.timed(|| {
        thread::scope(|scope| {
            let copying = scope.spawn(|| {
                let result = change();
                over.store(true, Ordering::Release);
                result
            });
            let mut reading = Ok(());
            // One file at least, should the copy be over at once.
            for path in paths.iter().cycle() {
                let asked = Instant::now();
                reading = drivers::read(std::slice::from_ref(path));
                longest = longest.max(asked.elapsed().as_secs_f64());
                if over.load(Ordering::Acquire) || reading.is_err() {
                    break;
                }
            }
            copying.join().expect("the copying thread does not panic")?;
            reading
        })
    })?;
    case.found(
        "copyup.wait",
        Span {
            seconds: longest,
            ..span
        },
    );
    Ok(())
}
