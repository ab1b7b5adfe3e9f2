//! Commit: changes as a new layer on top of an image.
//!
//! The layer is written as a tar (see [`super::LayerTarWriter`]) straight into the same ingest that imports use, so that
//! what is in the store is what an export of it would give. No change means no layer, only a line in the history.

use std::io;

use serde_json::{Map, Value, json};

use crate::meta::Timestamp;
use crate::store::{self, Digest, ImageRecord, NewImage, Store};

use super::documents::{ConfigView, OCI_MANIFEST};
use super::ingest::{self, Expected, LayerFacts};
use super::layer_tar::LayerTarWriter;
use super::limits::Limits;
use super::platform::Platform;
use super::pump::{self, pump};
use super::record::plain_manifest;
use super::reference::Reference;
use super::timestamp;
use super::{Error, Result};

#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    pub names: Vec<Reference>,
    /// Move names that point to other images; without it that is a conflict.
    pub replace_names: bool,
    pub author: Option<String>,
    pub message: Option<String>,
    /// What the history says made the layer; default "ovl commit".
    pub created_by: Option<String>,
    /// Default: now. Give it to get the same image from the same changes.
    pub created: Option<Timestamp>,
    pub changes: ConfigChanges,
    /// Of an image without parent; default: the host's.
    pub platform: Option<Platform>,
    pub limits: Limits,
}

/// Changes of the image's run configuration; what is `None` or empty stays as the parent has it.
#[derive(Clone, Debug, Default)]
pub struct ConfigChanges {
    /// Sets or replaces variables.
    pub env: Vec<(String, String)>,
    pub cmd: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub labels: Vec<(String, String)>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    /// Such as `80/tcp`.
    pub exposed: Vec<String>,
    pub volumes: Vec<String>,
    pub stop_signal: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedImage {
    pub manifest: Digest,
    /// The image ID.
    pub config: Digest,
    /// Diff ID of the new layer; `None` if nothing had changed.
    pub layer: Option<Digest>,
    pub names: Vec<String>,
}

/// Makes an image of `parent` and the changes that `entries` writes, in the order it writes them.
///
/// # Errors
/// Those of `entries` ([`Error::Changes`]) and of the store. Nothing is recorded then.
pub fn commit(
    store: &Store,
    parent: Option<&ImageRecord>,
    entries: impl FnOnce(&mut LayerTarWriter<'_>) -> io::Result<()>,
    options: &CommitOptions,
) -> Result<CommittedImage> {
    let parent_layers = parent
        .map(|parent| parent.layers.clone())
        .unwrap_or_default();
    let _lease = store.lease(&parent_layers, "commit")?;
    let names: Vec<String> = options.names.iter().map(Reference::to_string).collect();
    let base = match parent {
        Some(parent) => {
            let bytes = store.document(&parent.config)?;
            let missing =
                || store::Error::Corrupt(format!("configuration {} is missing", parent.config));
            parse_config(&parent.config.to_string(), &bytes.ok_or_else(missing)?)?
        }
        None => scratch_config(options.platform.as_ref()),
    };
    let layer = write_layer(store, &parent_layers, entries, &options.limits)?;
    let mut layers = parent_layers;
    layers.extend(layer.map(|facts| facts.diff_id));
    let config = new_config(base, &layers, layer.is_some(), options);
    let config = Value::from(config).to_string().into_bytes();
    let manifest = plain_manifest(store, &config, &layers)?;
    let (manifest_digest, config_digest) = (Digest::of(&manifest), Digest::of(&config));
    for name in &names {
        let present = store
            .resolve_name(name)?
            .filter(|present| *present != manifest_digest);
        if let Some(present) = present.filter(|_| !options.replace_names) {
            return Err(Error::Conflict {
                name: name.clone(),
                present,
                new: manifest_digest,
            });
        }
    }
    store.put_image(&NewImage {
        manifest: &manifest,
        manifest_media_type: OCI_MANIFEST,
        config: &config,
        layers: &layers,
        names: &names,
    })?;
    Ok(CommittedImage {
        manifest: manifest_digest,
        config: config_digest,
        layer: layer.map(|facts| facts.diff_id),
        names,
    })
}

/// Runs `entries` against an ingest; `None` if it wrote nothing.
fn write_layer(
    store: &Store,
    lowers: &[Digest],
    entries: impl FnOnce(&mut LayerTarWriter<'_>) -> io::Result<()>,
    limits: &Limits,
) -> Result<Option<LayerFacts>> {
    let (mut to, from) = pump();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let layer = ingest::ingest(
                store,
                "the new layer",
                from,
                Expected::default(),
                limits,
                &|_| (),
                None,
            )?;
            match layer.facts.entries {
                0 => Ok(None),
                _ => layer.publish(store, lowers).map(Some),
            }
        });
        let written = (|| {
            let mut tar = LayerTarWriter::new(&mut to);
            entries(&mut tar)?;
            tar.finish()?;
            to.finish()
        })();
        let read = reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match written {
            Ok(()) => read,
            // The ingest stopped first, and knows why.
            Err(error) if pump::is_reader_gone(&error) => match read {
                Err(reason) => Err(reason),
                Ok(_) => Err(Error::Changes(error)),
            },
            Err(error) => Err(Error::Changes(error)),
        }
    })
}

fn parse_config(name: &str, bytes: &[u8]) -> Result<Map<String, Value>> {
    // Whatever the parent's configuration says beyond what we know is kept.
    ConfigView::parse(name, bytes)?;
    serde_json::from_slice(bytes).map_err(|error| Error::document(name, error))
}

fn scratch_config(platform: Option<&Platform>) -> Map<String, Value> {
    let host = Platform::host();
    let platform = platform.unwrap_or(&host);
    let mut config = Map::new();
    config.insert(
        "architecture".to_owned(),
        platform.architecture.clone().into(),
    );
    config.insert("os".to_owned(), platform.os.clone().into());
    if let Some(variant) = &platform.variant {
        config.insert("variant".to_owned(), variant.clone().into());
    }
    config
}

fn new_config(
    mut config: Map<String, Value>,
    layers: &[Digest],
    has_layer: bool,
    options: &CommitOptions,
) -> Map<String, Value> {
    let created = timestamp::rfc3339(options.created.unwrap_or_else(Timestamp::now));
    config.insert("created".to_owned(), created.clone().into());
    if let Some(author) = &options.author {
        config.insert("author".to_owned(), author.clone().into());
    }
    // Docker's memories of the build container that made the parent.
    config.remove("container");
    config.remove("container_config");
    let diff_ids: Vec<String> = layers.iter().map(Digest::to_string).collect();
    config.insert(
        "rootfs".to_owned(),
        json!({ "type": "layers", "diff_ids": diff_ids }),
    );
    let history = config.remove("history").unwrap_or_default();
    let parent_layers = layers.len() - usize::from(has_layer);
    let history = new_history(history, parent_layers, &created, has_layer, options);
    config.insert("history".to_owned(), history.into());
    let mut run = match config.remove("config") {
        Some(Value::Object(run)) => run,
        _ => Map::new(),
    };
    apply(&mut run, &options.changes);
    config.insert("config".to_owned(), run.into());
    config
}

/// The parent's history and one more line. Lines that are missing for the parent's layers are made up, because readers
/// match lines to layers by counting.
fn new_history(
    parent: Value,
    parent_layers: usize,
    created: &str,
    has_layer: bool,
    options: &CommitOptions,
) -> Vec<Value> {
    let mut history = match parent {
        Value::Array(lines) => lines,
        _ => Vec::new(),
    };
    let is_layer = |line: &&Value| !line["empty_layer"].as_bool().unwrap_or(false);
    let told = history.iter().filter(is_layer).count();
    history.extend((told..parent_layers).map(|_| json!({ "created_by": "unknown" })));
    let created_by = options.created_by.as_deref().unwrap_or("ovl commit");
    let mut line = json!({ "created": created, "created_by": created_by });
    if let Some(author) = &options.author {
        line["author"] = author.clone().into();
    }
    if let Some(message) = &options.message {
        line["comment"] = message.clone().into();
    }
    if !has_layer {
        line["empty_layer"] = true.into();
    }
    history.push(line);
    history
}

fn apply(run: &mut Map<String, Value>, changes: &ConfigChanges) {
    if !changes.env.is_empty() {
        let mut env: Vec<String> = strings(run.get("Env"));
        for (key, value) in &changes.env {
            let prefix = format!("{key}=");
            let line = format!("{prefix}{value}");
            match env.iter_mut().find(|have| have.starts_with(&prefix)) {
                Some(have) => *have = line,
                None => env.push(line),
            }
        }
        run.insert("Env".to_owned(), env.into());
    }
    for (key, list) in [("Cmd", &changes.cmd), ("Entrypoint", &changes.entrypoint)] {
        if let Some(list) = list {
            run.insert(key.to_owned(), list.clone().into());
        }
    }
    for (key, word) in [
        ("WorkingDir", &changes.workdir),
        ("User", &changes.user),
        ("StopSignal", &changes.stop_signal),
    ] {
        if let Some(word) = word {
            run.insert(key.to_owned(), word.clone().into());
        }
    }
    for (key, names) in [
        ("ExposedPorts", &changes.exposed),
        ("Volumes", &changes.volumes),
    ] {
        let pairs = names.iter().map(|name| (name.clone(), json!({})));
        extend(run, key, pairs.collect());
    }
    let labels = changes
        .labels
        .iter()
        .map(|(key, value)| (key.clone(), value.clone().into()));
    extend(run, "Labels", labels.collect());
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let list = value
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    list.iter()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

/// Adds to an object field, making it if it is not there.
fn extend(run: &mut Map<String, Value>, key: &str, pairs: Map<String, Value>) {
    if pairs.is_empty() {
        return;
    }
    let mut object = match run.remove(key) {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    };
    object.extend(pairs);
    run.insert(key.to_owned(), object.into());
}
