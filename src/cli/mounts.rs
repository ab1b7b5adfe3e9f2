//! `ovl mounts` and `ovl umount`: the live mounts, and their end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use ovl::fuse::{Io, Transport};
use ovl::meta::Timestamp;
use ovl::mount::{self, How, Merge, Record, RecordedLower, RunDir};
use serde::Serialize;

use super::error::Failure;
use super::output::{self, Format, Table};
use super::time::{ago, rfc3339};

/// Where the list of live mounts is.
pub fn run_dir() -> anyhow::Result<RunDir> {
    RunDir::find().context("finding a directory for run state; OVL_RUN can name one")
}

/// List what is mounted
#[derive(Args)]
pub struct Mounts {
    /// Print mount points only
    #[arg(short, long)]
    quiet: bool,
    /// table or json
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    mount_point: String,
    /// Topmost first.
    lowers: Vec<String>,
    upper: Option<String>,
    workdir: Option<String>,
    read_only: bool,
    /// `fuse` or `kernel`.
    merge: Merge,
    /// `device` or `io_uring`; `null`: nobody is asked.
    transport: Option<Transport>,
    /// `cached` or `passthrough`; `null`: nobody is asked.
    io: Option<Io>,
    options: Vec<String>,
    /// `null`: the kernel does it all.
    pid: Option<u32>,
    /// Its process has died: what was not changed cannot be read.
    broken: bool,
    /// Requests that a bug of ovl's ended, each with EIO and a line in the log.
    panics: u64,
    started: String,
    log: Option<String>,
}

impl From<&Record> for Row {
    fn from(record: &Record) -> Self {
        let path = |path: &Option<mount::EscapedPath>| {
            path.as_ref().map(|path| path.0.display().to_string())
        };
        Self {
            id: record.id.clone(),
            mount_point: record.mount_point.0.display().to_string(),
            lowers: record.lowers.iter().map(lower).collect(),
            upper: path(&record.upper),
            workdir: path(&record.work),
            read_only: record.read_only,
            merge: record.merge,
            transport: (!record.daemon.is_nobody()).then_some(record.transport),
            io: (!record.daemon.is_nobody()).then_some(record.io),
            options: record.options.clone(),
            pid: (!record.daemon.is_nobody()).then_some(record.daemon.pid),
            broken: record.is_broken(),
            panics: record.panics,
            started: rfc3339(Timestamp::new(record.started, 0)),
            log: path(&record.log),
        }
    }
}

fn lower(lower: &RecordedLower) -> String {
    match lower {
        RecordedLower::Dir(path) => path.0.display().to_string(),
        RecordedLower::Image { reference, .. } => reference.clone(),
    }
}

impl Mounts {
    pub fn run(self) -> anyhow::Result<()> {
        let records = mount::list(&run_dir()?).context("reading the list of mounts")?;
        let rows: Vec<Row> = records.iter().map(Row::from).collect();
        if self.quiet {
            return output::stdout(|out| {
                rows.iter()
                    .try_for_each(|row| writeln!(out, "{}", row.mount_point))
            });
        }
        if self.format == Format::Json {
            return output::json(&rows);
        }
        let mut table = Table::new(&[
            "ID",
            "MOUNT POINT",
            "LOWER",
            "UPPER",
            "MERGE",
            "PID",
            "MOUNTED",
        ]);
        for (row, record) in rows.into_iter().zip(&records) {
            let age = ago(Timestamp::new(record.started, 0), Timestamp::now());
            let pid = match row.pid {
                None => "-".to_owned(),
                Some(pid) if row.broken => format!("{pid} (died)"),
                Some(pid) if row.panics > 0 => format!("{pid} (bugs: {})", row.panics),
                Some(pid) => pid.to_string(),
            };
            let merge = match row.merge {
                Merge::Kernel => "kernel",
                Merge::Fuse | Merge::Auto => "fuse",
            };
            let by = match (row.transport, row.io) {
                (Some(Transport::IoUring), Some(Io::Passthrough)) => " (io_uring, passthrough)",
                (Some(Transport::IoUring), _) => " (io_uring)",
                (_, Some(Io::Passthrough)) => " (passthrough)",
                _ => "",
            };
            let upper = row.upper.unwrap_or_else(|| "<read-only>".to_owned());
            table.row(vec![
                row.id,
                row.mount_point,
                row.lowers.join(":"),
                upper,
                format!("{merge}{by}"),
                pid,
                age,
            ]);
        }
        table.print()
    }
}

/// Unmount
#[derive(Args)]
pub struct Umount {
    /// Mount points, or IDs from `ovl mounts`
    #[arg(required_unless_present = "all", value_name = "MOUNTPOINT")]
    mounts: Vec<PathBuf>,
    /// Unmount everything that `ovl mounts` lists
    #[arg(short, long, conflicts_with = "mounts")]
    all: bool,
    /// Detach at once, even while in use; the mount ends when its last user does
    #[arg(short, long)]
    lazy: bool,
    /// Seconds to wait until the upper directory is at rest
    #[arg(long, value_name = "SECONDS", default_value_t = How::default().timeout.as_secs())]
    timeout: u64,
}

impl Umount {
    pub fn run(self) -> anyhow::Result<()> {
        let run = run_dir()?;
        let how = How {
            lazy: self.lazy,
            timeout: Duration::from_secs(self.timeout),
        };
        if self.all {
            // The latest first: it may lie inside an earlier one.
            for record in mount::list(&run)
                .context("reading the list of mounts")?
                .iter()
                .rev()
            {
                mount::unmount(&run, Path::new(&record.id), how)?;
            }
            return Ok(());
        }
        for name in &self.mounts {
            mount::unmount(&run, name, how)?;
        }
        Ok(())
    }
}

/// The live mount that a word of the command line names.
pub fn find(name: &Path) -> anyhow::Result<Record> {
    let found = match mount::find(&run_dir()?, name) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        found => found.with_context(|| format!("looking for a mount at {}", name.display()))?,
    };
    found.ok_or_else(|| {
        Failure::not_found(format!(
            "{} is no mount of ovl; see: ovl mounts",
            name.display()
        ))
    })
}
