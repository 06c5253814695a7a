//! Being told to stop.

use tokio::signal::unix::{SignalKind, signal};

use crate::{Error, Result};

/// Waits until this process is told to stop, and says by which signal.
///
/// QEMU runs in a process group of its own, so a terminal's Ctrl-C reaches us alone. Wait for this beside the work,
/// in a `select!`: the work is then dropped, and with it QEMU ends and unfinished outputs are removed.
pub async fn interrupted() -> Result<&'static str> {
    let listen = |kind| signal(kind).map_err(Error::system("listening for signals"));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    })
}
