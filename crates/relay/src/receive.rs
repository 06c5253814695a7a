//! The receiving end of an `xl migrate`: it answers as Xen's own `xl migrate-receive` does, with a QEMU behind it.
//!
//! Source: Xen `tools/xl/xl.h`, `tools/xl/xl_migrate.c` (4.14 to 4.20 agree); `formats/xen/xl.md`.
//!
//! ```text
//! we                                                           sender
//! Sender::open  BANNER ----------------------------------->
//!               <------------------- configuration, pages, state, END    (into a stopped QEMU)
//! hand_over     READY ------------------------------------>              renames its domain
//!               <---------------------------------- PERMISSION_TO_GO     the guest is ours
//!               REPORT 0 --------------------------------->              destroys its domain
//!               REPORT 1, PERMISSION_TO_GO --------------->              takes it back
//! ```
//!
//! Before PERMISSION_TO_GO every failure ends our copy and closes the pipes, and the sender resumes its own. Behind it
//! the guest is given back only if it certainly has not run here. Each step is in the [`journal`](crate::journal)
//! before it is taken.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    path::Path,
    time::Duration,
};

use hyperferry_translate::{refusal::Policy, source::Source};
use hyperferry_vm_model::Vm;
use hyperferry_xen_stream::xl::PERMISSION_TO_GO;
use tokio::time::{Instant, sleep};

use crate::{
    BoxError, Error, Result,
    journal::{Entry, Step},
    landing::Loaded,
    lane,
    progress::Phase,
};

/// What a receiver says first, without a NUL.
pub const BANNER: &[u8; 54] = b"xl migration receiver ready, send binary domain data.\n";

/// What it says once it holds the guest.
pub const READY: &[u8; 34] = b"domain received, ready to unpause\0";

/// What it says before the byte that tells how it went.
pub const REPORT: &[u8; 39] = b"my copy unpause results are as follows\0";

/// How long a QEMU that was killed may take to be gone; a guest of many GiB takes a while to unmap.
const GONE_TIMEOUT: Duration = Duration::from_secs(30);

/// The sender of a guest, at the other end of two pipes.
#[derive(Debug)]
pub struct Sender {
    input: File,
    output: File,
}

/// A guest that is ours now.
#[derive(Debug)]
pub struct Received {
    /// QEMU's process id. It lives on without us.
    pid: Option<u32>,
    /// From the sender's permission to QEMU's word that the guest runs.
    took: Duration,
    /// Whether the sender was told. If not, it keeps its own copy stopped, under another name.
    reported: Result<()>,
}

impl Received {
    /// QEMU's process id. It lives on without us.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// From the sender's permission to QEMU's word that the guest runs.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Whether the sender was told. If not, it keeps its own copy, stopped and under another name.
    pub fn reported(&self) -> std::result::Result<(), &Error> {
        self.reported.as_ref().copied()
    }
}

impl Sender {
    /// A sender at the other end of these.
    pub fn new(input: File, output: File) -> Self {
        Self { input, output }
    }

    /// The sender at the other end of standard input and output.
    pub fn standard() -> Result<Self> {
        let input =
            io::stdin().as_fd().try_clone_to_owned().map_err(Error::system("opening standard input"))?;
        let output =
            io::stdout().as_fd().try_clone_to_owned().map_err(Error::system("opening standard output"))?;
        Ok(Self::new(input.into(), output.into()))
    }

    /// Asks for the guest, and reads what comes before its memory. Blocks.
    ///
    /// Refused here, the sender has not sent a page.
    pub fn open(&mut self, policy: Policy) -> Result<Source<File>> {
        self.say("asking for the guest", BANNER)?;
        let input = self.input.try_clone().map_err(Error::system("reading from the sender"))?;
        Ok(Source::open(input, policy)?.live())
    }

    /// Tells the sender that its guest is loaded, and lets it run once the sender has given it away.
    ///
    /// The guest stands still meanwhile. What is kept of `vm` for its way home is written while the sender has the word.
    ///
    /// Not to be dropped before it is done: what the sender knows by then cannot be taken back.
    pub async fn hand_over(
        mut self,
        mut loaded: Loaded,
        vm: &Vm,
        entry: &mut Entry,
        paused: bool,
    ) -> Result<Received> {
        let pid = loaded.qemu().id();
        loaded.progress().enter(Phase::HandOver);
        let cleared = async {
            entry.note(Step::Ready { pid })?;
            self.say("telling the sender that its guest is loaded", READY)?;
            if let Err(error) = entry.keep_home(vm) {
                tracing::warn!(%error, "the guest will not go back to Xen as it came");
            }
            self.permission().await
        };
        if let Err(error) = cleared.await {
            drop(loaded);
            gone(pid).await?;
            failed(entry, &error);
            return Err(error);
        }
        let began = Instant::now();
        let resumed = run(loaded, entry, paused).await;
        let took = began.elapsed();
        match resumed {
            Ok(pid) => {
                if let Err(error) = entry.note(Step::Running { paused }) {
                    tracing::warn!(%error, "the guest runs, and the journal does not say so");
                }
                let reported = self.report(0);
                Ok(Received { pid, took, reported })
            }
            Err(error @ Error::Unconfirmed(_)) => {
                gone(pid).await?;
                if let Err(error) = entry.note(Step::Unknown { why: error.to_string() }) {
                    tracing::warn!(%error, "the journal ends with `go`");
                }
                // Neither 0 nor "have it back" is true: the sender keeps its copy stopped until somebody decides.
                Err(error)
            }
            Err(error) => {
                gone(pid).await?;
                failed(entry, &error);
                self.report(1)?;
                self.say("giving the guest back", PERMISSION_TO_GO)?;
                Err(error)
            }
        }
    }

    /// Waits for the sender to give the guest away, however long that takes: until then it is the sender's.
    async fn permission(&mut self) -> Result<()> {
        const DOING: &str = "waiting for the sender to give its guest away";
        let mut input = self.input.try_clone().map_err(Error::system(DOING))?;
        let answer = lane::spawn("permission", move || {
            let mut found = Vec::new();
            (&mut input).take(PERMISSION_TO_GO.len() as u64).read_to_end(&mut found)?;
            Ok::<_, BoxError>(found)
        })?;
        let found = answer.result().await.map_err(Error::Stream)?;
        if found == PERMISSION_TO_GO {
            return Ok(());
        }
        let why = if found.is_empty() {
            "it went away instead".to_owned()
        } else {
            format!("it said \"{}\" instead", found.escape_ascii())
        };
        Err(Error::System { doing: DOING, source: io::Error::other(why) })
    }

    fn report(&mut self, status: u8) -> Result<()> {
        const DOING: &str = "telling the sender how it went";
        self.say(DOING, REPORT)?;
        self.say(DOING, &[status])
    }

    fn say(&mut self, doing: &'static str, words: &[u8]) -> Result<()> {
        self.output.write_all(words).and_then(|()| self.output.flush()).map_err(Error::system(doing))
    }
}

/// Lets the guest run, and QEMU live on without us.
async fn run(mut loaded: Loaded, entry: &mut Entry, paused: bool) -> Result<Option<u32>> {
    // A QEMU that died while the sender made up its mind has not run anything: the guest can go back.
    loaded.qemu().run_state("waiting for the sender").await?;
    entry.note(Step::Go)?;
    if paused {
        return Ok(loaded.release());
    }
    Ok(loaded.resume().await?.release())
}

/// Notes that our copy is gone.
pub fn failed(entry: &mut Entry, error: &impl std::fmt::Display) {
    if let Err(error) = entry.note(Step::Failed { why: error.to_string() }) {
        tracing::warn!(%error, "the journal does not say that our copy is gone");
    }
}

/// Waits until a QEMU that was killed is gone: only then may another copy run.
async fn gone(pid: Option<u32>) -> Result<()> {
    let Some(pid) = pid else { return Ok(()) };
    let process = format!("/proc/{pid}");
    let deadline = Instant::now() + GONE_TIMEOUT;
    while Path::new(&process).exists() {
        if Instant::now() > deadline {
            let why = format!("process {pid} is still there after {} s", GONE_TIMEOUT.as_secs());
            return Err(Error::System { doing: "ending our copy", source: io::Error::other(why) });
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
