//! What goes to stdout: tables in Docker's shape, JSON, sizes. Nothing else in the program writes there.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;

use clap::ValueEnum;
use ovl::store::Digest;
use serde::Serialize;

use super::error::{escape, stdout_error};

/// How a list is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people
    #[default]
    Table,
    /// One JSON document
    Json,
}

/// Gives `write` a buffered stdout. A reader that went away ends the command quietly.
pub fn stdout(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    write(&mut out)
        .and_then(|()| out.flush())
        .map_err(stdout_error)
}

/// The same for what writes and reads: its own errors stay what they are, those of stdout it names with
/// [`stdout_error`].
pub fn raw(write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = write(&mut out);
    let flushed = out.flush().map_err(stdout_error);
    written.and(flushed)
}

pub fn line(text: &str) -> anyhow::Result<()> {
    stdout(|out| writeln!(out, "{text}"))
}

pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    stdout(|out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        writeln!(out)
    })
}

/// A list written item by item, for lists that may be long: `fill` gets what takes the next item. If it fails before the
/// first, nothing is written.
pub fn json_list<T: Serialize>(
    fill: impl FnOnce(&mut dyn FnMut(&T) -> anyhow::Result<()>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    raw(|out| {
        let mut between = "[\n";
        fill(&mut |item| {
            write!(out, "{between}").map_err(stdout_error)?;
            between = ",\n";
            serde_json::to_writer(&mut *out, item).map_err(|error| stdout_error(error.into()))
        })?;
        let end = if between == "[\n" { "[]" } else { "\n]" };
        writeln!(out, "{end}").map_err(stdout_error)
    })
}

/// A path from the root of an image or a mount as text; bytes that are none become `\xNN`, and `\` is doubled then.
pub fn path(path: &OsStr) -> String {
    format!("/{}", name(path))
}

/// A name as text, likewise.
pub fn name(name: &OsStr) -> String {
    match name.to_str() {
        Some(text) => text.to_owned(),
        None => name.as_bytes().escape_ascii().to_string(),
    }
}

/// How words are set apart on a terminal (ECMA-48, SGR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Plain,
    Red,
    Green,
    Yellow,
    Blue,
    Magenta,
    Cyan,
}

/// Puts colours on words, if they are wanted.
#[derive(Clone, Copy)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// Colours for a terminal on stdout, unless `NO_COLOR` is set or the terminal has none.
    pub fn stdout() -> Self {
        let no = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            on: !no && !dumb && io::stdout().is_terminal(),
        }
    }

    pub fn put(self, colour: Colour, word: &str) -> String {
        let code = match colour {
            Colour::Plain => return word.to_owned(),
            _ if !self.on => return word.to_owned(),
            Colour::Red => 31,
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Blue => 34,
            Colour::Magenta => 35,
            Colour::Cyan => 36,
        };
        format!("\x1b[{code}m{word}\x1b[0m")
    }
}

/// Rows under headings, columns three blanks apart, as Docker prints them.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()],
        }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows
            .push(cells.iter().map(|cell| escape(cell)).collect());
    }

    pub fn print(&self) -> anyhow::Result<()> {
        stdout(|out| self.write(out))
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
        };
        let widths: Vec<usize> = (0..columns)
            .map(|column| width(column).unwrap_or(0))
            .collect();
        for row in &self.rows {
            let line: String = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:width$}   "))
                .collect();
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Bytes in decimal units with at most four digits, as Docker writes sizes: `0B`, `1.46kB`, `605MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    let number = format!("{value:.digits$}");
    let number = if digits > 0 {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        &number
    };
    format!("{number}{}", UNITS[unit])
}

/// `1 layer`, `2 layers`.
pub fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A digest as lists show it: 12 hex digits, or all of it.
pub fn id(digest: &Digest, whole: bool) -> String {
    if whole {
        digest.to_string()
    } else {
        digest.hex()[..12].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_put_only_where_wanted() {
        for (on, colour, want) in [
            (true, Colour::Red, "\x1b[31mx\x1b[0m"),
            (true, Colour::Plain, "x"),
            (false, Colour::Red, "x"),
        ] {
            assert_eq!(Paint { on }.put(colour, "x"), want);
        }
    }

    #[test]
    fn sizes_have_at_most_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1460, "1.46kB"),
            (12_340, "12.3kB"),
            (999_499, "999kB"),
            (999_500, "1MB"),
            (605_400_000, "605MB"),
            (1_000_000_000, "1GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn columns_line_up_and_lines_end_clean() {
        let mut table = Table::new(&["NAME", "ID"]);
        table.row(vec!["a long name".into(), "1".into()]);
        table.row(vec!["ä\n".into(), String::new()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAME          ID\na long name   1\nä\\n\n"
        );
    }
}
