//! `ovl ps`: the containers there are.

use std::collections::BTreeMap;

use clap::Args;
use ovl::meta::Timestamp;
use ovl::run::{self, Container, Containers, State};
use serde::Serialize;

use super::output::{self, Format, Table};
use super::time::{ago, rfc3339};
use super::{Context, mounts};

/// List containers
///
/// Puts away, too, what was left behind by containers whose `ovl run` was killed.
#[derive(Args)]
pub struct Ps {
    /// Also those that have ended
    #[arg(short, long)]
    all: bool,
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
    /// Print whole commands
    #[arg(long)]
    no_trunc: bool,
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
struct Row<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    name: &'a str,
    image: &'a str,
    #[serde(rename = "ImageID")]
    image_id: &'a str,
    command: &'a [String],
    created: String,
    state: State,
    exit_code: Option<i32>,
    pid: Option<u32>,
    labels: &'a BTreeMap<String, String>,
    log: String,
}

impl Ps {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let containers = Containers::new(&context.root, &mounts::run_dir()?);
        let mut all = run::list(&containers)?;
        all.retain(|container| self.all || container.state() == State::Running);
        if self.quiet {
            return output::stdout(|out| all.iter().try_for_each(|c| writeln!(out, "{}", c.id)));
        }
        if self.format == Format::Json {
            let row = |c| Row::of(&containers, c);
            return output::json(&all.iter().map(row).collect::<Vec<_>>());
        }
        let mut table = Table::new(&[
            "CONTAINER ID",
            "IMAGE",
            "COMMAND",
            "CREATED",
            "STATUS",
            "NAMES",
        ]);
        let now = Timestamp::now();
        for container in &all {
            table.row(vec![
                container.id.clone(),
                container.image.clone(),
                command(container, self.no_trunc),
                ago(Timestamp::new(container.created, 0), now),
                status(container, now),
                container.name.clone(),
            ]);
        }
        table.print()
    }
}

impl<'a> Row<'a> {
    fn of(containers: &Containers, container: &'a Container) -> Self {
        let running = container.state() == State::Running;
        Self {
            id: &container.id,
            name: &container.name,
            image: &container.image,
            image_id: &container.image_id,
            command: &container.command,
            created: rfc3339(Timestamp::new(container.created, 0)),
            state: container.state(),
            exit_code: container.exit_code,
            pid: container
                .init
                .as_ref()
                .filter(|_| running)
                .map(|init| init.pid),
            labels: &container.labels,
            log: containers.log(&container.id).display().to_string(),
        }
    }
}

/// As Docker shows it: in quotes, 20 characters at most.
fn command(container: &Container, whole: bool) -> String {
    let text = container.command.join(" ");
    if whole || text.chars().count() <= 20 {
        return format!("\"{text}\"");
    }
    format!("\"{}…\"", text.chars().take(19).collect::<String>())
}

fn status(container: &Container, now: Timestamp) -> String {
    let since = |seconds| ago(Timestamp::new(seconds, 0), now);
    match (container.state(), container.finished, container.exit_code) {
        (State::Created, _, _) => "Created".into(),
        (State::Running, _, _) => {
            let age = since(container.created);
            format!("Up {}", age.strip_suffix(" ago").unwrap_or(&age))
        }
        (State::Exited, Some(end), Some(code)) => format!("Exited ({code}) {}", since(end)),
        (State::Exited, end, _) => format!("Exited {}", since(end.unwrap_or(container.created))),
    }
}
