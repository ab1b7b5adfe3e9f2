//! `ovl images`: the list of images, one line for each name.

use std::str::FromStr;

use clap::Args;
use ovl::image::Reference;
use ovl::meta::Timestamp;
use ovl::store::{ImageRecord, Store};
use serde::Serialize;

use super::Context;
use super::error::{Failure, one_line};
use super::find::{configuration, created, damaged_words, familiar_names, not_listed};
use super::output::{self, Format, Table, id, size};
use super::time::{ago, rfc3339};

/// List images
#[derive(Args)]
pub struct Images {
    /// Only images of this name: `alpine`, `alpine:3`, `*/team/*`
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print IDs only
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten IDs
    #[arg(long)]
    no_trunc: bool,
    /// Show the digests of manifests
    #[arg(long)]
    digests: bool,
    /// Only images that match: reference=PATTERN, label=KEY[=VALUE], dangling=true|false; all of several
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,
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

#[derive(Clone)]
enum Filter {
    Reference(String),
    Label(String, Option<String>),
    Dangling(bool),
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("want KEY=VALUE")?;
        match (key, value) {
            ("reference", pattern) => Ok(Self::Reference(pattern.to_owned())),
            ("label", label) => Ok(match label.split_once('=') {
                Some((key, value)) => Self::Label(key.to_owned(), Some(value.to_owned())),
                None => Self::Label(label.to_owned(), None),
            }),
            ("dangling", "true" | "1") => Ok(Self::Dangling(true)),
            ("dangling", "false" | "0") => Ok(Self::Dangling(false)),
            ("dangling", _) => Err("dangling is true or false".to_owned()),
            _ => Err(format!(
                "no filter {key}; there are reference, label and dangling"
            )),
        }
    }
}

/// One line: an image under one of its names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    repository: String,
    tag: String,
    digest: String,
    #[serde(rename = "ID")]
    id: String,
    created_at: String,
    size: u64,
    #[serde(skip)]
    age: String,
    #[serde(skip)]
    short_id: String,
}

const NONE: &str = "<none>";

/// An image's configuration; `None` where somebody removed the image, and its documents with it, since it was listed.
fn configuration_now(
    store: &Store,
    record: &ImageRecord,
) -> anyhow::Result<Option<serde_json::Value>> {
    configuration(store, record)
        .map(Some)
        .or_else(|error| match store.image(&record.manifest) {
            Ok(None) => Ok(None),
            // Removed and imported again between the two looks; or damaged, which the second tells too.
            Ok(Some(_)) => configuration(store, record).map(Some),
            Err(_) => Err(error),
        })
}

impl Images {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let (mut rows, mut bad) = (Vec::new(), Vec::new());
        if let Some(store) = context.existing_store()? {
            // One that is damaged must not hide the others.
            let (records, damaged) = store.list_images()?;
            bad.extend(damaged.iter().map(damaged_words));
            for record in records {
                match configuration_now(&store, &record) {
                    Ok(Some(configuration)) => self.add_rows(&record, &configuration, &mut rows)?,
                    Ok(None) => {}
                    Err(error) => {
                        let names = match familiar_names(&record).join(", ") {
                            none if none.is_empty() => record.manifest.to_string(),
                            names => names,
                        };
                        bad.push(format!("image {names}: {}", one_line(&error)));
                    }
                }
            }
        }
        self.print(rows)?;
        if bad.is_empty() {
            return Ok(());
        }
        Err(not_listed(bad))
    }

    fn print(self, rows: Vec<Row>) -> anyhow::Result<()> {
        if self.quiet {
            let mut ids: Vec<&str> = rows.iter().map(|row| row.short_id.as_str()).collect();
            let mut seen = std::collections::HashSet::new();
            ids.retain(|id| seen.insert(*id));
            return output::stdout(|out| ids.iter().try_for_each(|id| writeln!(out, "{id}")));
        }
        match self.format {
            Format::Json => output::json(&rows),
            Format::Table => self.table(rows).print(),
        }
    }

    fn add_rows(
        &self,
        record: &ImageRecord,
        configuration: &serde_json::Value,
        rows: &mut Vec<Row>,
    ) -> anyhow::Result<()> {
        if !self
            .filter
            .iter()
            .all(|filter| filter.admits_image(record, configuration))
        {
            return Ok(());
        }
        let made = created(configuration, record);
        let row = |repository: &str, tag: &str| Row {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            digest: record.manifest.to_string(),
            id: record.config.to_string(),
            created_at: rfc3339(made),
            size: record.size,
            age: ago(made, Timestamp::now()),
            short_id: id(&record.config, self.no_trunc),
        };
        let patterns = self
            .filter
            .iter()
            .filter_map(Filter::reference)
            .chain(self.name.as_deref());
        let patterns: Vec<Pattern> = patterns.map(Pattern::new).collect::<Result<_, _>>()?;
        if record.names.is_empty() && patterns.is_empty() {
            rows.push(row(NONE, NONE));
        }
        for name in &record.names {
            let Ok(reference) = Reference::from_str(name) else {
                continue;
            };
            let (repository, tag) = (
                reference.familiar_repository(),
                reference.tag().unwrap_or(NONE),
            );
            if patterns
                .iter()
                .all(|pattern| pattern.admits(&repository, tag))
            {
                rows.push(row(&repository, tag));
            }
        }
        Ok(())
    }

    fn table(&self, rows: Vec<Row>) -> Table {
        let mut headings = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
        if self.digests {
            headings.insert(2, "DIGEST");
        }
        let mut table = Table::new(&headings);
        for row in rows {
            let mut cells = vec![
                row.repository,
                row.tag,
                row.short_id,
                row.age,
                size(row.size),
            ];
            if self.digests {
                cells.insert(2, row.digest);
            }
            table.row(cells);
        }
        table
    }
}

impl Filter {
    fn reference(&self) -> Option<&str> {
        if let Self::Reference(pattern) = self {
            Some(pattern)
        } else {
            None
        }
    }

    fn admits_image(&self, record: &ImageRecord, configuration: &serde_json::Value) -> bool {
        match self {
            Self::Reference(_) => true,
            Self::Dangling(wanted) => record.names.is_empty() == *wanted,
            Self::Label(key, wanted) => {
                let label = configuration["config"]["Labels"][key].as_str();
                label.is_some_and(|value| wanted.as_deref().is_none_or(|wanted| wanted == value))
            }
        }
    }
}

/// A name with wildcards: within a component `*` is any text and `?` any byte, as in Docker's `reference` filter.
struct Pattern {
    repository: String,
    tag: Option<String>,
}

impl Pattern {
    fn new(text: &str) -> anyhow::Result<Self> {
        if text.is_empty() {
            return Err(Failure::usage(
                "an empty name matches no image; leave it out to list all",
            ));
        }
        let (repository, tag) = match text.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag.to_owned())),
            _ => (text, None),
        };
        // A name in full finds what is listed in short.
        let whole = Reference::from_str(repository)
            .map_or(repository.to_owned(), |r| r.familiar_repository());
        Ok(Self {
            repository: whole,
            tag,
        })
    }

    fn admits(&self, repository: &str, tag: &str) -> bool {
        let own: Vec<&str> = self.repository.split('/').collect();
        let parts: Vec<&str> = repository.split('/').collect();
        own.len() == parts.len()
            && own
                .iter()
                .zip(&parts)
                .all(|(pattern, part)| matches(pattern.as_bytes(), part.as_bytes()))
            && self
                .tag
                .as_deref()
                .is_none_or(|pattern| matches(pattern.as_bytes(), tag.as_bytes()))
    }
}

/// Whether `text` is `pattern` with each `*` standing for any bytes and each `?` for one. Goes back only to the last `*`.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, repository, tag, want) in [
            ("alpine", "alpine", "3", true),
            ("alpine:3", "alpine", "3", true),
            ("alpine:4", "alpine", "3", false),
            ("docker.io/library/alpine", "alpine", "3", true),
            ("al*", "alpine", "3", true),
            ("al*", "alpine/git", "3", false),
            ("*/team/*", "example.org/team/app", "1", true),
            ("localhost:5000/x", "localhost:5000/x", "1", true),
            ("a*b*c", "aXbXbXc", "1", true),
            ("a?c:*.1", "abc", "2.1", true),
            ("a*b", "ac", "1", false),
        ] {
            assert_eq!(
                Pattern::new(pattern).unwrap().admits(repository, tag),
                want,
                "{pattern} {repository}:{tag}"
            );
        }
    }
}
