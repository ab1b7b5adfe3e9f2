//! What is asked of a container: the words of `ovl run` and `ovl exec`, understood.

use std::path::PathBuf;

use super::config::ImageConfig;
use super::spec::Net;
use super::volume::Volume;
use crate::mount::{Merge, ResolveImage};
use crate::store::Digest;

/// A container to be made and run.
#[derive(Clone, Debug)]
pub struct Request {
    /// The image in the caller's words, which `resolve_image` understands.
    pub image: String,
    pub manifest: Digest,
    /// Digest of the configuration.
    pub image_id: Digest,
    pub config: ImageConfig,
    pub store_root: PathBuf,
    pub resolve_image: ResolveImage,
    /// Words after the image.
    pub command: Vec<String>,
    /// In place of the image's; empty: none.
    pub entrypoint: Option<Vec<String>>,
    pub name: Option<String>,
    /// `NAME=VALUE`, or `NAME` for the caller's value.
    pub env: Vec<String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    pub volumes: Vec<Volume>,
    pub net: Net,
    /// The caller's stdin is the container's.
    pub interactive: bool,
    pub tty: bool,
    pub detach: bool,
    /// The container goes when its command ends.
    pub remove: bool,
    /// Uppers of overlays over host directories stay.
    pub keep: bool,
    pub read_only: bool,
    /// Who merges the image and what the container changes.
    pub merge: Merge,
    /// A program's path or name; `None`: the first known one in PATH.
    pub runtime: Option<PathBuf>,
}

/// A command to be run in a running container.
#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    /// The container's name, or (the beginning of) its ID.
    pub container: String,
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    pub interactive: bool,
    pub tty: bool,
}
