//! `ovl commit`: a mount's changes as a new image.

use std::path::PathBuf;

use clap::Args;
use ovl::image::{CommitOptions, Reference};
use ovl::meta::Timestamp;
use ovl::mount::RecordedLower;
use ovl::store::ImageRecord;

use super::entries::LayerFrom;
use super::error::Failure;
use super::live::Live;
use super::tag::new_name;
use super::{Context, change, output};

/// Make an image of a mount or a container
///
/// What was changed becomes a layer on top of the mounted image. A mount with directories below, or several images, becomes an
/// image of one layer with everything in it. The mount stays as it is. Prints the new image's ID. With SOURCE_DATE_EPOCH set,
/// the same changes give the same image.
#[derive(Args)]
pub struct Commit {
    /// A mount point, an ID from `ovl mounts`, or a container
    #[arg(value_name = "MOUNTPOINT")]
    mount: PathBuf,
    /// Name of the new image
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Take NAME from the image that has it
    #[arg(long)]
    replace: bool,
    /// Who made it
    #[arg(short, long, value_name = "WHO")]
    author: Option<String>,
    /// What was done, for the history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Change the configuration as a Dockerfile would: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
}

impl Commit {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let options = self.options()?;
        let live = Live::open(context, &self.mount)?;
        let store = context.store()?;
        let parent = parent(&live, &store)?;
        let image = ovl::image::commit(
            &store,
            parent.as_ref(),
            |out| {
                let layer = LayerFrom::new(&live.engine, out);
                if parent.is_some() {
                    layer.changes()
                } else {
                    layer.whole()
                }
            },
            &options,
        )?;
        output::line(&image.config.to_string())
    }

    fn options(&self) -> anyhow::Result<CommitOptions> {
        Ok(CommitOptions {
            names: self
                .name
                .iter()
                .map(|name| new_name(name))
                .collect::<anyhow::Result<Vec<Reference>>>()?,
            replace_names: self.replace,
            author: self.author.clone(),
            message: self.message.clone(),
            created: created()?,
            changes: change::parse(&self.change)?,
            ..CommitOptions::default()
        })
    }
}

/// The image that the mount is of, if it is of one and nothing else.
fn parent(live: &Live, store: &ovl::store::Store) -> anyhow::Result<Option<ImageRecord>> {
    let [
        RecordedLower::Image {
            reference,
            manifest,
            ..
        },
    ] = live.record.lowers.as_slice()
    else {
        return Ok(None);
    };
    let gone = || {
        Failure::not_found(format!(
            "the mounted image {reference} ({manifest}) was removed from the store meanwhile"
        ))
    };
    Ok(Some(store.image(&manifest.parse()?)?.ok_or_else(gone)?))
}

/// The time that reproducible builds ask for.
fn created() -> anyhow::Result<Option<Timestamp>> {
    let Some(value) = std::env::var_os("SOURCE_DATE_EPOCH") else {
        return Ok(None);
    };
    let seconds = value.to_str().and_then(|text| text.parse().ok());
    let wrong = || {
        Failure::usage(format!(
            "SOURCE_DATE_EPOCH is {}, not a number of seconds",
            value.display()
        ))
    };
    Ok(Some(Timestamp::new(seconds.ok_or_else(wrong)?, 0)))
}
