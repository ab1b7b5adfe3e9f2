//! `ovl tag`, `ovl untag` and `ovl rmi`: names of images, and the images that lose their last.

use std::str::FromStr;

use clap::Args;
use ovl::image::Reference;
use ovl::store::ImageRecord;

use super::Context;
use super::error::Failure;
use super::find::{Found, familiar_names};
use super::output;

/// Give an image another name
#[derive(Args)]
pub struct Tag {
    /// A name or an ID
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The new name; it is taken from the image that has it
    #[arg(value_name = "NAME")]
    name: String,
}

impl Tag {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let name = new_name(&self.name)?;
        let found = context.find(&self.image)?;
        found
            .store
            .set_name(&name.to_string(), &found.record.manifest)?;
        Ok(())
    }
}

/// A name to give: one with a digest names an image that is what it is, so it cannot be given.
pub fn new_name(text: &str) -> anyhow::Result<Reference> {
    let name = Reference::from_str(text)?;
    if name.digest().is_some() {
        return Err(Failure::usage(format!(
            "{text}: a name with a digest cannot be given to an image; leave the @… away"
        )));
    }
    Ok(name)
}

/// Take a name from an image and keep the image
#[derive(Args)]
pub struct Untag {
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Untag {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        for text in &self.names {
            let name = Reference::from_str(text)?;
            let gone = match context.existing_store()? {
                Some(store) => store.remove_name(&name.to_string())?,
                None => false,
            };
            if !gone {
                return Err(Failure::not_found(format!(
                    "no image is named {text}; see: ovl images"
                )));
            }
            output::line(&format!("Untagged: {}", name.familiar()))?;
        }
        Ok(())
    }
}

/// Remove images
///
/// By name, the name goes, and the image with its last name. By ID, the image goes. `ovl gc` gives back the space.
#[derive(Args)]
pub struct Rmi {
    /// Names or IDs
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Remove by ID although it has several names; do not mind images that are not there
    #[arg(short, long)]
    force: bool,
}

impl Rmi {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        for words in &self.images {
            match context.find(words) {
                Ok(found) => self.remove(context, words, &found)?,
                Err(error) if self.force && super::error::exit_code(&error) == 4 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn remove(&self, context: &Context, words: &str, found: &Found) -> anyhow::Result<()> {
        let Found {
            store,
            record,
            name,
        } = found;
        let named = name.as_ref().filter(|name| name.digest().is_none());
        let going = match named {
            Some(name) => vec![name.familiar()],
            None => familiar_names(record),
        };
        if named.is_none() && going.len() > 1 && !self.force {
            let all = going.join(", ");
            return Err(Failure::conflict(format!(
                "{words} has {} names ({all}); remove those, or use --force",
                going.len()
            )));
        }
        if let Some(name) = named
            && record.names.len() > 1
        {
            store.remove_name(&name.to_string())?;
        } else {
            self.check_unused(context, words, record)?;
            store.remove_image(&record.manifest)?;
        }
        for name in &going {
            output::line(&format!("Untagged: {name}"))?;
        }
        if named.is_none() || record.names.len() <= 1 {
            output::line(&format!("Deleted: {}", record.config))?;
        }
        Ok(())
    }

    /// What a container changed means nothing without its image.
    fn check_unused(
        &self,
        context: &Context,
        words: &str,
        record: &ImageRecord,
    ) -> anyhow::Result<()> {
        match ovl::run::user_of(&context.root, &record.config)? {
            Some(user) if !self.force => Err(Failure::conflict(format!(
                "{words} is the image of container {user}: remove that first (ovl rm {user}), or use --force"
            ))),
            _ => Ok(()),
        }
    }
}
