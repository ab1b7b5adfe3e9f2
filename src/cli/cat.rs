//! `ovl cat`: files of an image, without mounting it.

use std::ffi::OsString;

use clap::Args;
use ovl::meta::FileKind;
use ovl::view;

use super::Context;
use super::error::stdout_error;
use super::output;

/// Write files of an image to standard output
///
/// Symlinks are followed inside the image, never on this machine. Each chunk is proven before it is written.
#[derive(Args)]
pub struct Cat {
    /// A name or an ID
    #[arg(value_name = "IMAGE")]
    image: OsString,
    /// Files in the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

impl Cat {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let view = context.view(&self.image, "cat")?;
        let files = self.paths.iter().map(|path| view.find(path));
        let files = files.collect::<view::Result<Vec<_>>>()?;
        // A mistake in the last word is said before the first file is written.
        for file in files
            .iter()
            .filter(|file| file.attr.kind != FileKind::Regular)
        {
            return Err(view::Error::NotRegular {
                path: file.path.clone(),
                kind: file.attr.kind,
            }
            .into());
        }
        output::raw(|out| {
            files
                .iter()
                .try_for_each(|file| match view.copy(file, out) {
                    Err(view::Error::Output(error)) => Err(stdout_error(error)),
                    copied => Ok(copied?),
                })
        })
    }
}
