//! `ovl version`: what this program is.

use clap::Args;
use serde::Serialize;

use super::output::{self, Format};

/// Print the version
#[derive(Args)]
pub struct Version {
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
struct Answer {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
}

impl Version {
    pub fn run(self) -> anyhow::Result<()> {
        let answer = Answer {
            version: env!("CARGO_PKG_VERSION"),
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
        };
        match self.format {
            Format::Table => output::line(&format!(
                "ovl {} ({}/{})",
                answer.version, answer.os, answer.arch
            )),
            Format::Json => output::json(&answer),
        }
    }
}
