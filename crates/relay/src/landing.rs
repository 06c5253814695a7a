//! A stream lands in a QEMU that waits for it, and the guest runs on.
//!
//! ```text
//! Waiting --load(stream)--> Loaded --resume()--> Running --follow()--> Outcome
//!    |                        |                     |
//!    +-- dropped: killed -----+---------------------+-- release(): lives on without us
//! ```
//!
//! QEMU is started with `-S -incoming defer`, so nothing but our `cont` lets the guest run: up to
//! [`Loaded::resume`] the source owns the guest, from then on this QEMU does. The stream goes into a socket pair
//! whose other end QEMU got over QMP, so there is no address that anyone else could connect to.
//!
//! Source: QEMU 7.2 and 10.0, `migration/migration.c`: a QEMU that cannot load what it is given says why on its
//! standard error and exits (10.0 could be told to stay; it need not be). One that can calls its migration
//! `completed` only after its run state has left `inmigrate`.

use std::{
    io::Write,
    os::{fd::AsFd, unix::net::UnixStream},
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{
    BoxError, Error, Result, lane,
    metered::MeteredWriter,
    progress::{Phase, Progress},
    qemu::{CommandLine, Launch, Process},
    qmp::Version,
};

/// How long QEMU may take to load what it has received in full.
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// How long QEMU may take from `cont` to a running guest.
const RESUME_TIMEOUT: Duration = Duration::from_secs(60);

const WAITING: &str = "getting ready for the stream";
const LOADING: &str = "loading the stream";
const RESUMING: &str = "starting the guest";
const RUNNING: &str = "running the guest";

/// Rounds of the announcement of a guest that runs: 2.5 s in all.
const ANNOUNCE_ROUNDS: u32 = 8;

/// A QEMU that waits for a stream.
#[derive(Debug)]
pub struct Waiting {
    qemu: Process,
    progress: Progress,
}

impl Waiting {
    /// Starts QEMU and lets it wait.
    pub async fn start(launch: &Launch, progress: Progress) -> Result<Self> {
        let line = CommandLine::parse(launch.arguments())?;
        for (name, why) in [
            ("incoming", "where the stream comes from is for us to say; leave it out"),
            ("loadvm", "the state comes from the stream; leave it out"),
            ("daemonize", "would take QEMU out of our hands; leave it out"),
            ("preconfig", "would keep QEMU from waiting for a stream; leave it out"),
        ] {
            if line.has(name) {
                return Err(Error::option(&format!("-{name}"), why));
            }
        }
        progress.enter(Phase::Launch);
        let mut arguments = launch.arguments().to_vec();
        arguments.extend(["-incoming".to_owned(), "defer".to_owned()]);
        let mut qemu = Process::start(&launch.with_arguments(arguments)).await?;
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        qemu.execute(WAITING, "migrate-set-capabilities", events).await?;
        Ok(Self { qemu, progress })
    }

    /// QEMU's version.
    pub fn version(&self) -> &Version {
        self.qemu.version()
    }

    /// QEMU's process id.
    pub fn id(&self) -> Option<u32> {
        self.qemu.id()
    }

    /// The QEMU, for commands of the caller's own.
    pub fn qemu(&mut self) -> &mut Process {
        &mut self.qemu
    }

    /// Lets `produce` write the stream into QEMU and waits until QEMU has loaded it. The guest does not run yet.
    ///
    /// `produce` runs on a thread of its own and may block. If it fails, its error comes back as [`Error::Stream`];
    /// if QEMU does, QEMU's own words do, whatever `produce` made of its broken pipe.
    pub async fn load<T, E>(
        mut self,
        produce: impl FnOnce(&mut dyn Write) -> std::result::Result<T, E> + Send + 'static,
    ) -> Result<(Loaded, T)>
    where
        T: Send + 'static,
        E: Into<BoxError>,
    {
        let (ours, theirs) = UnixStream::pair().map_err(Error::system("making a socket pair"))?;
        self.qemu.send_fd(WAITING, "hyperferry", theirs.as_fd()).await?;
        drop(theirs);
        self.qemu.execute(WAITING, "migrate-incoming", json!({ "uri": "fd:hyperferry" })).await?;
        self.progress.enter(Phase::Stream);

        // Ours to the end: a producer that fails must not end the stream before it could say why.
        let held = ours.try_clone().map_err(Error::system("holding the stream"))?;
        let broken = Arc::new(AtomicBool::new(false));
        let mut out = MeteredWriter::new(ours, self.progress.clone(), Arc::clone(&broken));
        let lane = lane::spawn("stream", move || {
            let made = produce(&mut out).map_err(Into::into)?;
            out.flush()?;
            Ok(made)
        })?;
        let made = tokio::select! {
            made = lane.result() => made,
            // A producer may be waiting for its own source, and would not notice a QEMU that is gone.
            error = refusal(&mut self.qemu) => return Err(error),
        };
        drop(held);
        let made = match made {
            Ok(made) => made,
            Err(_) if broken.load(Ordering::Acquire) => {
                return Err(timeout(LOAD_TIMEOUT, refusal(&mut self.qemu))
                    .await
                    .unwrap_or_else(|_| self.qemu.slow(LOADING, LOAD_TIMEOUT)));
            }
            Err(error) => return Err(Error::Stream(error)),
        };
        self.progress.enter(Phase::Load);
        completed(&mut self.qemu).await?;
        Ok((Loaded { qemu: self.qemu, progress: self.progress }, made))
    }
}

/// A QEMU that holds the guest, stopped.
#[derive(Debug)]
pub struct Loaded {
    qemu: Process,
    progress: Progress,
}

impl Loaded {
    /// Lets the guest run. From here on this QEMU owns it.
    ///
    /// An [`Error::Unconfirmed`] says that the guest may have run before this QEMU was killed.
    pub async fn resume(mut self) -> Result<Running> {
        self.progress.enter(Phase::Resume);
        let began = Instant::now();
        let answer = self.qemu.execute(RESUMING, "cont", json!({})).await;
        match answer {
            Ok(_) => {}
            // Refused: the guest did not run.
            Err(error @ Error::Qmp(crate::qmp::Error::Refused { .. })) => return Err(error),
            Err(error) => return Err(Error::Unconfirmed(Box::new(error))),
        }
        let deadline = began + RESUME_TIMEOUT;
        loop {
            let state = self.qemu.run_state(RESUMING).await;
            match state.map_err(|error| Error::Unconfirmed(Box::new(error)))?.as_str() {
                "running" => break,
                _ if Instant::now() > deadline => {
                    let slow = self.qemu.slow(RESUMING, RESUME_TIMEOUT);
                    return Err(Error::Unconfirmed(Box::new(slow)));
                }
                _ => sleep(Duration::from_millis(5)).await,
            }
        }
        let started_in = began.elapsed();
        self.progress.enter(Phase::Running);
        announce(&mut self.qemu).await;
        Ok(Running { qemu: self.qemu, progress: self.progress, started_in, reason: None })
    }

    /// Lets QEMU live on without us, its guest stopped, and says its process id.
    pub fn release(self) -> Option<u32> {
        self.progress.enter(Phase::Done);
        self.qemu.release()
    }

    /// The QEMU, for commands of the caller's own.
    pub fn qemu(&mut self) -> &mut Process {
        &mut self.qemu
    }

    /// Where its progress is reported.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }
}

/// A QEMU that runs the guest. Dropping it ends the guest; [`Running::release`] lets it go.
#[derive(Debug)]
pub struct Running {
    qemu: Process,
    progress: Progress,
    started_in: Duration,
    /// Why QEMU is about to end, once it has said so.
    reason: Option<String>,
}

/// How following a guest came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// QEMU ended: the guest shut down, or QEMU was told to.
    Ended {
        /// How QEMU ended.
        status: ExitStatus,
        /// QEMU's reason, such as `guest-shutdown` or `host-signal`.
        reason: Option<String>,
        /// The end of what QEMU wrote to its standard error.
        stderr: String,
    },
    /// The time was over and the guest still runs.
    StillRunning,
}

impl Running {
    /// From `cont` to QEMU's word that the guest runs.
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// QEMU's process id.
    pub fn id(&self) -> Option<u32> {
        self.qemu.id()
    }

    /// The QEMU, for commands of the caller's own.
    pub fn qemu(&mut self) -> &mut Process {
        &mut self.qemu
    }

    /// Stays until QEMU ends, or until the time is over. May be dropped and called again.
    pub async fn follow(&mut self, limit: Option<Duration>) -> Result<Outcome> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            let event = tokio::select! {
                event = self.qemu.next_event(RUNNING) => event,
                () = until(deadline) => return Ok(Outcome::StillRunning),
            };
            match event {
                Ok(event) if event.name == "SHUTDOWN" => {
                    self.reason = event.data.get("reason").and_then(Value::as_str).map(str::to_owned);
                }
                Ok(_) => {}
                Err(Error::Ended { status, stderr, .. }) => {
                    self.progress.enter(Phase::Done);
                    return Ok(Outcome::Ended { status, reason: self.reason.take(), stderr });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets QEMU and its guest live on without us, and says its process id.
    pub fn release(self) -> Option<u32> {
        self.progress.enter(Phase::Done);
        self.qemu.release()
    }

    /// Ends QEMU and the guest.
    pub async fn quit(self) -> Result<()> {
        self.progress.enter(Phase::Done);
        self.qemu.quit().await
    }
}

/// Lets the network know where the guest is now: a frame from each of its cards' addresses, several times.
///
/// QEMU announces a guest that came in by itself when it has loaded it (`process_incoming_migration_bh`), but nothing
/// leaves a stopped machine (`qemu_can_send_packet`): those frames wait, and all go out in the moment of `cont`. A
/// switch or a bridge port that is not ready in that moment would know nothing.
async fn announce(qemu: &mut Process) {
    let pace = json!({ "initial": 50, "max": 1000, "rounds": ANNOUNCE_ROUNDS, "step": 100 });
    if let Err(error) = qemu.execute(RUNNING, "announce-self", pace).await {
        tracing::warn!(%error, "the network was not told where the guest is; its own frames will tell");
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits for QEMU to give up on the stream, and says why. Never returns while it goes on.
async fn refusal(qemu: &mut Process) -> Error {
    loop {
        match qemu.next_event(LOADING).await {
            Ok(event) if event.name == "MIGRATION" => {
                if event.data.get("status").and_then(Value::as_str) == Some("failed") {
                    return failed(qemu).await;
                }
            }
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

/// QEMU said that it failed, and is about to end: its words on the way out are the reason.
async fn failed(qemu: &mut Process) -> Error {
    let ending = async {
        loop {
            if let Err(error) = qemu.next_event(LOADING).await {
                return error;
            }
        }
    };
    match timeout(Duration::from_secs(2), ending).await {
        Ok(error) => error,
        Err(_) => {
            let desc = "the migration failed".to_owned();
            Error::Migration { doing: LOADING, desc, stderr: qemu.stderr() }
        }
    }
}

/// Waits until QEMU has loaded all it was given.
async fn completed(qemu: &mut Process) -> Result<()> {
    let deadline = Instant::now() + LOAD_TIMEOUT;
    loop {
        let answer = qemu.execute(LOADING, "query-migrate", json!({})).await?;
        match answer.get("status").and_then(Value::as_str).unwrap_or_default() {
            "completed" => return Ok(()),
            "failed" => return Err(failed(qemu).await),
            _ if Instant::now() > deadline => return Err(qemu.slow(LOADING, LOAD_TIMEOUT)),
            _ => sleep(Duration::from_millis(2)).await,
        }
    }
}
