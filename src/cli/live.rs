//! A second engine over a mount's layers, to look at what the mount, or the container it is or was of, changed.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use ovl::layer::{DirLayer, Layer, StoredLayer};
use ovl::mount::{Record, RecordedLower};
use ovl::overlay::{Options, Overlay, Stack, UpperDirs};
use ovl::run::{self, Container, Containers, State};
use ovl::store::{Digest, Store};

use super::error::Failure;
use super::{Context, mounts};

/// A mount's layers opened for looking.
pub struct Live {
    pub record: Record,
    pub engine: Overlay,
}

impl Live {
    /// Opens the mount that `name` means (a mount point or an ID), or what a container of that name has or had mounted. What
    /// programs wrote there is in its upper afterwards.
    pub fn open(context: &Context, name: &Path) -> anyhow::Result<Self> {
        let record = match (mounts::find(name), name.to_str()) {
            (Err(no_mount), Some(words)) => {
                let containers = Containers::new(&context.root, &mounts::run_dir()?);
                let container = containers.find(words)?.ok_or_else(|| {
                    no_mount.context(format!("{words} is neither a mount nor a container"))
                })?;
                return Self::of_container(container);
            }
            (found, _) => found?,
        };
        flush(&record.mount_point.0)?;
        Self::over(record, name)
    }

    fn of_container(container: Container) -> anyhow::Result<Self> {
        run::enter_for(&container)?;
        let never = || Failure::conflict(format!("container {} never started", container.name));
        let record = container.mount.clone().ok_or_else(never)?;
        if container.state() == State::Running {
            flush(&record.mount_point.0)?;
        }
        Self::over(record, Path::new(&container.name))
    }

    fn over(record: Record, name: &Path) -> anyhow::Result<Self> {
        let lowers = lowers(&record)?;
        let (Some(upper), Some(work)) = (&record.upper, &record.work) else {
            return Err(Failure::usage(format!(
                "{} is mounted read-only: nothing can have changed",
                name.display()
            )));
        };
        let upper = Some(UpperDirs {
            upper: upper.0.clone(),
            work: work.0.clone(),
        });
        let options = Options {
            inspect: true,
            volatile: false,
            ..record.engine.clone()
        };
        let engine = Overlay::new(Stack { lowers, upper }, &options)?;
        Ok(Self { record, engine })
    }
}

impl Live {
    /// An engine over the mount's lowers alone: what was there before. `None` if there is nothing below the upper.
    pub fn before(&self) -> anyhow::Result<Option<Overlay>> {
        let lowers = lowers(&self.record)?;
        if lowers.is_empty() {
            return Ok(None);
        }
        let stack = Stack {
            lowers,
            upper: None,
        };
        Ok(Some(Overlay::new(stack, &self.record.engine)?))
    }
}

/// Has the kernel write to the mount's daemon, and the daemon to its upper, what they hold back.
fn flush(mount_point: &Path) -> anyhow::Result<()> {
    let flushed = std::fs::File::open(mount_point).and_then(|root| Ok(rustix::fs::syncfs(&root)?));
    flushed.with_context(|| format!("flushing {}", mount_point.display()))
}

/// The lowers of a mount, topmost first.
fn lowers(record: &Record) -> anyhow::Result<Vec<Arc<dyn Layer>>> {
    let mut layers: Vec<Arc<dyn Layer>> = Vec::new();
    for lower in &record.lowers {
        match lower {
            RecordedLower::Dir(path) => {
                let layer = DirLayer::open_with(&path.0, record.engine.permissions)
                    .with_context(|| format!("opening lower {}", path.0.display()))?;
                layers.push(Arc::new(layer));
            }
            RecordedLower::Image {
                reference,
                layers: diff_ids,
                ..
            } => {
                let root = &record.store_root.0;
                let no_store =
                    || Failure::not_found(format!("no store in {} any more", root.display()));
                let store = Store::open_existing(root)?.ok_or_else(no_store)?;
                for diff_id in diff_ids.iter().rev() {
                    let diff_id: Digest = diff_id.parse()?;
                    let layer = store
                        .open_layer(&diff_id)
                        .with_context(|| format!("opening image {reference}"))?;
                    layers.push(Arc::new(StoredLayer::new(layer)));
                }
            }
        }
    }
    Ok(layers)
}
