//! Progress on stderr.

use clap::ValueEnum;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Bars on a terminal, else nothing
    Auto,
    /// One line per finished layer
    Plain,
    /// One JSON object per line
    Json,
    None,
}
