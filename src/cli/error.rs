//! From errors to what a person sees and a script tests: one line on stderr and an exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failure |
//! | 2 | wrong usage: an option, a name or a path that cannot be meant |
//! | 3 | conflict: it is there already, or in use by something of ours |
//! | 4 | not found |
//! | 5 | integrity: bytes that do not hash to their name, a damaged store |
//! | 75 | busy: try again later |

use std::fmt;
use std::io;

use ovl::{image, mount, run, store, view};

/// An error with the exit code it stands for, made by the command line itself.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    /// For commands that have exit codes of their own.
    pub fn with_code(code: u8, text: impl Into<String>) -> anyhow::Error {
        Self {
            code,
            text: text.into(),
        }
        .into()
    }

    pub fn usage(text: impl Into<String>) -> anyhow::Error {
        Self {
            code: 2,
            text: text.into(),
        }
        .into()
    }

    pub fn conflict(text: impl Into<String>) -> anyhow::Error {
        Self {
            code: 3,
            text: text.into(),
        }
        .into()
    }

    pub fn damage(text: impl Into<String>) -> anyhow::Error {
        Self {
            code: 5,
            text: text.into(),
        }
        .into()
    }

    pub fn not_found(text: impl Into<String>) -> anyhow::Error {
        Self {
            code: 4,
            text: text.into(),
        }
        .into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// Writing to stdout failed because nobody reads it any more (`ovl images | head -1`).
#[derive(Debug)]
pub struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Names a failure of writing to stdout.
pub fn stdout_error(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        StdoutClosed.into()
    } else {
        anyhow::Error::new(error).context("writing to standard output")
    }
}

/// The exit code of an error: that of the innermost cause that has one.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of).unwrap_or(1)
}

fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(failure.code);
    }
    if let Some(error) = cause.downcast_ref::<image::Error>() {
        return Some(match error {
            image::Error::Store(error) => error.exit_code(),
            error => error.exit_code().try_into().unwrap_or(1),
        });
    }
    if let Some(error) = cause.downcast_ref::<mount::Error>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<view::Error>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<run::Error>() {
        return Some(error.exit_code());
    }
    if cause.is::<image::ReferenceError>() {
        return Some(2);
    }
    cause
        .downcast_ref::<store::Error>()
        .map(store::Error::exit_code)
}

/// The whole chain of causes in one line: causes that their parent's text already tells are left out, control characters
/// (names of files may hold any byte) are escaped.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.contains(text.trim_end_matches('.')) {
            line.push_str(": ");
            line.push_str(&text);
        }
    }
    escape(&line)
}

/// Text with its control characters written as escapes, safe on one line of a terminal.
pub fn escape(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut out, c| {
            if c.is_control() {
                out.extend(c.escape_default())
            } else {
                out.push(c)
            }
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_cause_told_by_its_parent_is_not_told_twice() {
        let inner = io::Error::other("disk on fire");
        let outer = Err::<(), _>(inner)
            .context("reading x: disk on fire")
            .context("import")
            .unwrap_err();
        assert_eq!(one_line(&outer), "import: reading x: disk on fire");
    }

    #[test]
    fn control_characters_cannot_break_the_line() {
        assert_eq!(
            one_line(&anyhow::anyhow!("a\nb\x1b[31mc")),
            "a\\nb\\u{1b}[31mc"
        );
    }

    #[test]
    fn codes_survive_context() {
        let error = Failure::not_found("no image x").context("tagging");
        assert_eq!(
            (exit_code(&error), exit_code(&anyhow::anyhow!("plain"))),
            (4, 1)
        );
    }
}
