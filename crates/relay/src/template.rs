//! The destination's dialect, learnt from the destination.
//!
//! QEMU's device sections have no lengths, and their layout follows version, machine and devices. So the very
//! program that will load the stream is started once with the same command line and no guest, migrates what it
//! has (devices after reset, firmware, empty memory) to us, and quits.
//!
//! That run takes nothing of the user's: [`without_backends`] exchanges the host side of every disk, network,
//! character device and memory file, and keeps the guest side, which alone decides what a stream looks like.
//!
//! Source: `docs/devel/migration.rst` and `qemu-options.hx` of QEMU 7.2 and 10.0. 7.2 has no `file:` address;
//! `fd:` with a descriptor passed over QMP works in both and needs neither a shell nor a name in a file system.

mod offline;
mod size;

use std::{
    io::{self, Read},
    os::{fd::AsFd, unix::net::UnixStream},
    time::Duration,
};

pub use offline::without_backends;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    BoxError, Error, Result, lane,
    progress::{Phase, Progress},
    qemu::{Launch, Process},
    qmp::Version,
};

/// The most that [`capture`] keeps. A template holds the firmware, video memory and 9 bytes for each empty page, so
/// this is enough for guests of 28 GiB; [`capture_with`] keeps nothing and has no limit.
pub const LIMIT: u64 = 64 << 20;

/// How long QEMU may take to call a migration done once its stream has ended.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(60);

const DOING: &str = "writing a template";

/// What a destination QEMU writes when it has no guest.
#[derive(Clone, Debug)]
pub struct Template<T = Vec<u8>> {
    /// The stream, or what the reader made of it.
    pub content: T,
    /// Who wrote it.
    pub version: Version,
}

/// Captures a template as bytes, at most [`LIMIT`] of them.
pub async fn capture(launch: &Launch, progress: &Progress) -> Result<Template> {
    capture_with(launch, progress, |stream| {
        let mut bytes = Vec::new();
        stream.take(LIMIT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LIMIT {
            return Err(io::Error::other(format!("the template is longer than {LIMIT} bytes")));
        }
        Ok(bytes)
    })
    .await
}

/// Hands a template to a reader as it is written; `read` runs on a thread of its own and may block.
pub async fn capture_with<T, E>(
    launch: &Launch,
    progress: &Progress,
    read: impl FnOnce(&mut dyn Read) -> std::result::Result<T, E> + Send + 'static,
) -> Result<Template<T>>
where
    T: Send + 'static,
    E: Into<BoxError>,
{
    progress.enter(Phase::Template);
    let offline = launch.with_arguments(without_backends(launch.arguments())?);
    let mut qemu = Process::start(&offline).await?;
    let (ours, theirs) = UnixStream::pair().map_err(Error::system("making a socket pair"))?;
    qemu.send_fd(DOING, "hyperferry", theirs.as_fd()).await?;
    drop(theirs);
    // QEMU paces a migration at 1 Gbit/s unless told otherwise.
    qemu.execute(DOING, "migrate-set-parameters", json!({ "max-bandwidth": 1_u64 << 40 })).await?;
    qemu.execute(DOING, "migrate", json!({ "uri": "fd:hyperferry" })).await?;
    let counter = progress.clone();
    let lane = lane::spawn("template", move || {
        let mut metered = Metered { inner: &ours, progress: counter, ended: false };
        let content = read(&mut io::BufReader::with_capacity(lane::STEP, &mut metered)).map_err(Into::into);
        let ended = metered.ended;
        if content.is_ok() {
            // QEMU must be able to finish, whatever the reader left over.
            io::copy(&mut metered, &mut io::sink())?;
        }
        Ok((content, ended))
    })?;
    // A QEMU that dies ends its stream, so this cannot hang on it.
    let content = match lane.result().await.map_err(Error::Stream)? {
        (Ok(content), _) => content,
        // The stream ended too early for the reader: if QEMU says that it failed, that is why.
        (Err(error), true) => {
            completed(&mut qemu).await?;
            return Err(Error::Stream(error));
        }
        (Err(error), false) => return Err(Error::Stream(error)),
    };
    completed(&mut qemu).await?;
    let version = qemu.version().clone();
    qemu.quit().await?;
    Ok(Template { content, version })
}

/// Waits until QEMU says how its migration went.
async fn completed(qemu: &mut Process) -> Result<()> {
    let deadline = Instant::now() + COMPLETION_TIMEOUT;
    loop {
        let answer = qemu.execute(DOING, "query-migrate", json!({})).await?;
        let word = |key| answer.get(key).and_then(Value::as_str).unwrap_or_default();
        match word("status") {
            "completed" => return Ok(()),
            "failed" | "cancelled" => {
                let desc = match word("error-desc") {
                    "" => "no reason given".to_owned(),
                    desc => desc.to_owned(),
                };
                return Err(Error::Migration { doing: DOING, desc, stderr: qemu.stderr() });
            }
            _ if Instant::now() > deadline => return Err(qemu.slow(DOING, COMPLETION_TIMEOUT)),
            _ => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Counts what is read.
struct Metered<R> {
    inner: R,
    progress: Progress,
    /// Whether the end was seen.
    ended: bool,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.add(count as u64);
        self.ended |= count == 0 && !buffer.is_empty();
        Ok(count)
    }
}
