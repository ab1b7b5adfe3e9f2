//! How a long job on a store gets on, for whoever wants to show it.

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something else is done now: `total` units of it, which are bytes or things.
    Phase {
        name: &'static str,
        total: u64,
        bytes: bool,
    },
    /// So many units more are done.
    Advance(u64),
}
