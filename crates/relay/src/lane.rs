//! The page lane: blocking work on a thread of its own.
//!
//! Not `spawn_blocking`: a runtime waits at its end for such work, and a lane may hang in a read from a pipe that
//! nobody will ever write to. A lane that nobody waits for any more ends with its next failing write, or with us.

use std::{io, thread};

use tokio::sync::oneshot;

use crate::{BoxError, Error, Result};

/// The step in which bytes are moved, which is that of `cp`.
///
/// Measured between files (512 MiB, in random order, 12 rounds, a busy machine), medians of processor time: 64 and
/// 128 KiB took 0.2 s, 256 KiB 0.4 s, 1 MiB 1.1 s, where the best round of each took 0.13 to 0.23 s. So larger steps
/// gain nothing, and cost much at times; perhaps because the page cache then asks for memory in larger pieces.
pub(crate) const STEP: usize = 128 << 10;

/// A running lane.
pub(crate) struct Lane<T>(oneshot::Receiver<std::result::Result<T, BoxError>>);

/// Starts a lane.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> std::result::Result<T, BoxError> + Send + 'static,
) -> Result<Lane<T>> {
    let (sender, receiver) = oneshot::channel();
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(move || drop(sender.send(work()))).map_err(Error::system("starting a thread"))?;
    Ok(Lane(receiver))
}

impl<T> Lane<T> {
    /// What the work came to. A panic in it is an error here.
    pub(crate) async fn result(self) -> std::result::Result<T, BoxError> {
        self.0.await.unwrap_or_else(|_| Err(io::Error::other("the page lane panicked").into()))
    }
}
