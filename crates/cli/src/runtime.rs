//! Asynchronous work, until it is done or we are told to stop.

use std::future::Future;

use hyperferry_relay::interrupted;
use tokio::runtime::{Builder, Runtime};

use crate::exit::{Error, Result};

/// Runs a command's asynchronous part.
///
/// What is still blocked at the end (a page lane that reads from a pipe) is left to the end of the process.
pub(crate) fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime: Runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::Host(format!("starting the runtime: {error}")))?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// Does the work unless a signal comes first. The work is then dropped: QEMU ends, unfinished outputs vanish.
pub(crate) async fn unless_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        // In this order: we listen before the work begins.
        biased;
        signal = interrupted() => Err(Error::Interrupted(signal?)),
        result = work => result,
    }
}
