//! What of the lowers a node shows: for readers that compare merged trees without reading them.

use super::engine::Overlay;
use super::{NodeId, Result};
use crate::layer::ObjectKey;

/// An object of one lower layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Position of the layer in the stack of lowers, 0 on top.
    pub layer: usize,
    /// The object in it.
    pub key: ObjectKey,
}

impl Overlay {
    /// The lower objects behind a node, topmost first: all the directories that are merged to one, or the one file. Of
    /// what is in the upper they are only what was there before.
    pub fn sources(&self, node: NodeId) -> Result<Vec<Source>> {
        let node = self.table.get(node)?;
        let state = node.state();
        let of = |lower: &super::node::LowerRef| Source {
            layer: lower.layer.into(),
            key: lower.node.key,
        };
        Ok(state.lowers.iter().map(of).collect())
    }
}
