//! ovl: a copy-on-write overlay filesystem and container image store.
//!
//! The rooms, from the ground up; arrows point down only:
//!
//! | room | holds |
//! |---|---|
//! | [`meta`], [`sys`] | the vocabulary of files, and what std, rustix and sha2 lack: system calls, SHA-256 of two streams at once |
//! | [`store`] | the content-addressed store (the only room that names `rusqlite`; `sys` replaces one call of SQLite's) |
//! | [`image`] | OCI and Docker formats, import, export, commit; uses `store` |
//! | [`layer`] | what a layer is: host directories and stored layers; uses `store` |
//! | [`overlay`] | the merge engine, no FUSE in it; uses `layer` |
//! | [`view`] | looking into images: paths, listings, differences; uses `overlay` |
//! | [`fuse`] | kernel requests to engine calls and back (the only room that names `fuser`) |
//! | [`mount`] | mount(2), daemon, registry of live mounts; uses everything above |
//! | [`run`] | containers: a bundle over a mount, driven through runc or crun; uses `mount` and `store` |
//!
//! `docs/architecture.md` has the picture.

pub mod fuse;
pub mod image;
pub mod layer;
pub mod meta;
pub mod mount;
pub mod overlay;
pub mod run;
pub mod store;
pub mod sys;
pub mod view;
