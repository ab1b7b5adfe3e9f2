//! SEEK_DATA and SEEK_HOLE, on a thread of their own.
//!
//! Under write-back the kernel passes these on without first writing its dirty pages out, so the engine would call a
//! hole what a program has just written (`cp` of such a file would lose it). Telling the kernel to drop the inode's
//! cached pages makes it write the dirty ones first, and that call returns only when those WRITEs are answered: it
//! would wait for ever on a thread that serves requests once all of them did it.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel as mpsc_channel};

use fuser::{INodeNo, Notifier};
use rustix::io::Errno;

use super::Counters;
use super::answers::{Answer, Code, guarded};
use crate::overlay::{NodeId, Overlay};

/// Takes the answer to whoever asked.
pub type Reply = Box<dyn FnOnce(Answer<i64>) + Send>;

/// One LSEEK waiting for its answer.
pub struct Request {
    pub node: NodeId,
    pub offset: u64,
    pub whence: u32,
    pub reply: Reply,
}

/// The thread to be.
pub struct Seeker(Receiver<Request>);

pub fn channel() -> (Sender<Request>, Seeker) {
    let (sender, receiver) = mpsc_channel();
    (sender, Seeker(receiver))
}

impl Seeker {
    /// Runs until every sender is gone. Without a notifier (no write-back) the engine is simply asked.
    pub fn start(
        self,
        engine: Arc<Overlay>,
        notifier: Option<Notifier>,
        counters: Arc<Counters>,
    ) -> io::Result<()> {
        std::thread::Builder::new()
            .name("ovl-seek".into())
            .spawn(move || {
                for request in self.0 {
                    let found = serve(&engine, notifier.as_ref(), &counters, &request);
                    (request.reply)(found);
                }
            })?;
        Ok(())
    }
}

fn serve(
    engine: &Overlay,
    notifier: Option<&Notifier>,
    counters: &Counters,
    request: &Request,
) -> Answer<i64> {
    let node = request.node;
    if let Some(notifier) = notifier
        && let Err(error) = notifier.inval_inode(INodeNo(node.0), 0, 0)
    {
        tracing::debug!(node = node.0, %error, "dirty pages could not be written before a seek");
        return Err(Code::EIO);
    }
    let found = guarded(counters, "lseek", || {
        engine.lseek(node, request.offset, request.whence)
    })?;
    i64::try_from(found).map_err(|_| Errno::OVERFLOW.into())
}
