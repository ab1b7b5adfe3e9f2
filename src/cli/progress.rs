//! Progress on stderr: bars on a terminal, or lines for logs and programs. Of an import, a bar for each layer; of a check
//! or a collection, one for the step it is at.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use ovl::image::{ImportProgress, LayerOutcome};
use ovl::store;
use serde_json::json;

use super::error::escape;
use super::output::size;

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

/// Shows the progress of one import, and counts its layers.
pub struct Progress {
    show: Show,
    state: Mutex<State>,
}

enum Show {
    Bars(MultiProgress),
    Plain,
    Json,
    Nothing,
}

impl Show {
    fn new(mode: Mode) -> Self {
        match mode {
            Mode::Auto if std::io::stderr().is_terminal() => Self::Bars(MultiProgress::new()),
            Mode::Auto | Mode::None => Self::Nothing,
            Mode::Plain => Self::Plain,
            Mode::Json => Self::Json,
        }
    }
}

#[derive(Default)]
struct State {
    layers: HashMap<usize, Layer>,
    seen: usize,
    new: usize,
    bytes: u64,
}

/// A layer being read.
struct Layer {
    name: String,
    total: Option<u64>,
    done: u64,
    started: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

/// Least time between two JSON lines of one layer.
const JSON_EVERY: Duration = Duration::from_millis(200);

impl Progress {
    pub fn new(mode: Mode) -> Self {
        Self {
            show: Show::new(mode),
            state: Mutex::default(),
        }
    }

    /// Layers met, how many of them were new, and the bytes of the new ones' tars.
    pub fn counts(&self) -> (usize, usize, u64) {
        let state = self.state();
        (state.seen, state.new, state.bytes)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImportProgress for Progress {
    fn layer_started(&self, index: usize, of: Option<usize>, name: &str, total: Option<u64>) {
        let name = match of {
            Some(of) => format!("{}/{of} {}", index + 1, short(name)),
            None => format!("{} {}", index + 1, short(name)),
        };
        let bar = match &self.show {
            Show::Bars(all) => Some(all.add(bar(total).with_message(escape(&name)))),
            Show::Plain | Show::Json | Show::Nothing => None,
        };
        let now = Instant::now();
        self.state().layers.insert(
            index,
            Layer {
                name,
                total,
                done: 0,
                started: now,
                told: now,
                bar,
            },
        );
    }

    fn layer_bytes(&self, index: usize, bytes: u64) {
        let mut state = self.state();
        let Some(layer) = state.layers.get_mut(&index) else {
            return;
        };
        layer.done += bytes;
        if let Some(bar) = &layer.bar {
            bar.set_position(layer.done);
        } else if matches!(self.show, Show::Json) && layer.told.elapsed() >= JSON_EVERY {
            layer.told = Instant::now();
            tell(
                &json!({ "layer": layer.name, "bytes": layer.done, "total": layer.total })
                    .to_string(),
            );
        }
    }

    fn layer_done(&self, index: usize, outcome: LayerOutcome) {
        let mut state = self.state();
        state.seen += 1;
        let note = match outcome {
            LayerOutcome::Present => "present",
            LayerOutcome::New { tar_size } => {
                state.new += 1;
                state.bytes += tar_size;
                "new"
            }
        };
        let Some(layer) = state.layers.remove(&index) else {
            return;
        };
        let seconds = layer.started.elapsed().as_secs_f64();
        match self.show {
            Show::Bars(_) => {
                if let Some(bar) = layer.bar {
                    bar.set_style(style("{msg}"));
                    bar.finish_with_message(format!("{}  {note}", escape(&layer.name)));
                }
            }
            Show::Plain => tell(&format!(
                "layer {}: {note}, {}, {seconds:.1} s",
                escape(&layer.name),
                size(layer.done)
            )),
            Show::Json => {
                tell(&json!({ "layer": layer.name, "bytes": layer.done, "done": note, "seconds": seconds }).to_string());
            }
            Show::Nothing => {}
        }
    }
}

/// Shows a job of several steps, one at a time: a bar on a terminal, or lines for logs and programs.
pub struct Steps {
    show: Show,
    step: Mutex<Option<Step>>,
}

struct Step {
    name: &'static str,
    total: u64,
    done: u64,
    bytes: bool,
    started: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Steps {
    pub fn new(mode: Mode) -> Self {
        Self {
            show: Show::new(mode),
            step: Mutex::default(),
        }
    }

    pub fn tell(&self, progress: store::Progress) {
        match progress {
            store::Progress::Phase { name, total, bytes } => self.begin(name, total, bytes),
            store::Progress::Advance(units) => self.advance(units),
        }
    }

    fn begin(&self, name: &'static str, total: u64, bytes: bool) {
        self.end();
        let bar = match &self.show {
            Show::Bars(all) => {
                let bar = if bytes {
                    bar(Some(total))
                } else {
                    counter(total)
                };
                Some(all.add(bar.with_message(name)))
            }
            Show::Plain | Show::Json | Show::Nothing => None,
        };
        let now = Instant::now();
        *self.lock() = Some(Step {
            name,
            total,
            done: 0,
            bytes,
            started: now,
            told: now,
            bar,
        });
    }

    fn advance(&self, units: u64) {
        let mut step = self.lock();
        let Some(step) = step.as_mut() else { return };
        step.done += units;
        if let Some(bar) = &step.bar {
            bar.set_position(step.done);
        } else if matches!(self.show, Show::Json) && step.told.elapsed() >= JSON_EVERY {
            step.told = Instant::now();
            tell(&json!({ "step": step.name, "done": step.done, "total": step.total }).to_string());
        }
    }

    /// The last step is done.
    pub fn end(&self) {
        let Some(step) = self.lock().take() else {
            return;
        };
        if let Some(bar) = step.bar {
            bar.finish_and_clear();
        }
        let seconds = step.started.elapsed().as_secs_f64();
        match self.show {
            Show::Plain => {
                let done = if step.bytes { size(step.done) } else { step.done.to_string() };
                tell(&format!("{}: {done}, {seconds:.1} s", step.name));
            }
            Show::Json => tell(
                &json!({ "step": step.name, "done": step.done, "total": step.total, "seconds": seconds }).to_string(),
            ),
            Show::Bars(_) | Show::Nothing => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Step>> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A layer's name without what all have in common: its digest's first digits, or its file's name.
fn short(name: &str) -> &str {
    let name = name.rsplit([' ', '/', ':']).next().unwrap_or(name);
    let digest = name.len() >= 64 && name.as_bytes()[..64].iter().all(u8::is_ascii_hexdigit);
    if digest { &name[..12] } else { name }
}

fn bar(total: Option<u64>) -> ProgressBar {
    const KNOWN: &str = "{msg:20!} {bar:30} {decimal_bytes:>10} of {decimal_total_bytes:<10} {decimal_bytes_per_sec:>12} {eta:>4}";
    const UNKNOWN: &str =
        "{msg:20!} {spinner} {decimal_bytes:>10} {decimal_bytes_per_sec:>12} {elapsed:>4}";
    match total {
        Some(total) => ProgressBar::new(total).with_style(style(KNOWN).progress_chars("#> ")),
        None => ProgressBar::new_spinner().with_style(style(UNKNOWN)),
    }
}

fn counter(total: u64) -> ProgressBar {
    const COUNTED: &str = "{msg:20!} {bar:30} {pos:>10} of {len:<10} {eta:>4}";
    ProgressBar::new(total).with_style(style(COUNTED).progress_chars("#> "))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Progress that nobody can read is no reason to fail.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
