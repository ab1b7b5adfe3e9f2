//! Compressed blobs kept so that they come back: as recipes where that is small, else as they are.
//!
//! A blob is a run of segments, each a part in the store. Form of a part: one byte kind, varint number of plain bytes (of
//! the layer's tar) the segment stands for, then
//! - kind 0: the bytes themselves, from here on or of a gzip header or trailer;
//! - kind 1: a unit of a DEFLATE stream of Go's encoder ([`unit`]);
//! - kind 2: a stretch of a DEFLATE stream of zlib or one like it: the corrections of the crate preflate-rs. A `first` mark
//!   (byte 1, else 0) says that a stream begins.
//!
//! Kinds 1 and 2 give bits; what is left of a byte goes on in the next segment of that stream, or is dropped if bytes as
//! they are follow, which then begin with that byte.
//!
//! A gzip blob is decompressed once ([`gunzip`]): its plain bytes go to the layer, how it is made to a thread that keeps it
//! ([`keep`]), which leaves its units to a few more ([`makers`]).
//!
//! Invariants: every segment is made again and compared when it is kept; a blob made again is hashed, and what does not
//! hash to its name is an error. Memory is a few units, whatever the blob's size.

mod apart;
mod bits;
mod codes;
mod deflate;
mod gunzip;
mod inflate;
mod makers;
mod model;
mod unit;

mod keep;
mod rebuild;
mod tee;

pub use apart::apart_and_together;
pub use keep::KeepCompressed;
pub use rebuild::rebuild;
pub use tee::{Keeper, Keeping, KeptBlob};

/// The number of this form in the store's `blob.method`.
pub const METHOD: u32 = 1;

const AS_IT_IS: u8 = 0;
const UNIT: u8 = 1;
const PREFLATE: u8 = 2;
