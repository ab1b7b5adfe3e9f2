//! lsattr and chattr: inode flags, asked for and set by ioctl (linux/fs.h).

use rustix::io::Errno;

use crate::overlay::{NodeId, Overlay, Result};

// The numbers of the first two tell a long, the data is an int.
const GET_FLAGS: u32 = 0x8008_6601;
const SET_FLAGS: u32 = 0x4008_6602;
/// Asked by the kernel, too, before it passes on any of those that set.
const GET_XATTR: u32 = 0x801c_581f;
const SET_XATTR: u32 = 0x401c_5820;

/// What is sent back for ioctl `cmd` with `data`; ENOTTY for all that we do not know.
pub fn answer(engine: &Overlay, node: NodeId, cmd: u32, data: &[u8]) -> Result<Vec<u8>> {
    match cmd {
        GET_FLAGS => Ok(engine.flags(node)?.to_ne_bytes().to_vec()),
        GET_XATTR => Ok(engine.fsxattr(node)?.to_vec()),
        SET_FLAGS => {
            let flags = data.first_chunk().ok_or(Errno::INVAL)?;
            engine.set_flags(node, u32::from_ne_bytes(*flags))?;
            Ok(Vec::new())
        }
        SET_XATTR => {
            engine.set_fsxattr(node, data.first_chunk().ok_or(Errno::INVAL)?)?;
            Ok(Vec::new())
        }
        _ => Err(Errno::NOTTY),
    }
}
