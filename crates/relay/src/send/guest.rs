//! The source of a move: a QEMU that somebody else started, and that runs on whatever becomes of us.
//!
//! Source: QEMU 7.2 and 10.0, `migration/migration.c`, `migration/fd.c`, `qapi/migration.json`.
//!
//! QEMU calls an outgoing migration completed as soon as it has written the last byte, unless its `return-path`
//! capability is on: then it stands still until the other end of the socket says SHUT (`MIG_RP_MSG_SHUT`), and a
//! socket that closes instead fails the migration and lets the guest run on. We are that other end. So up to
//! [`Guest::let_go`] the end of our process, by whatever means, is all it takes to have the source back.
//!
//! Behind it the guest is in the run state `postmigrate`, which nothing but a `cont` leaves.

use std::{
    io::{self, Write},
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    Error, Result,
    qmp::{self, Event, Version},
};

/// How long QEMU may take to call a migration completed once it was told so, or to run again once it was not.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a migration may go on after its socket was closed before it is cancelled.
const CANCEL_AFTER: Duration = Duration::from_secs(2);

/// The name of our descriptor in QEMU.
const DESCRIPTOR: &str = "hyperferry";

/// What a destination says on the return path when it has all it needs: `MIG_RP_MSG_SHUT`, four bytes, no error.
const SHUT: [u8; 8] = [0, 1, 0, 4, 0, 0, 0, 0];

/// Capabilities of a migration that would change what is in the stream, or need a destination that is QEMU.
const UNWANTED: &[&str] = &[
    "background-snapshot",
    "block",
    "compress",
    "dirty-bitmaps",
    "mapped-ram",
    "multifd",
    "postcopy-preempt",
    "postcopy-ram",
    "pause-before-switchover",
    "rdma-pin-all",
    "release-ram",
    "switchover-ack",
    "validate-uuid",
    "x-colo",
    "x-ignore-shared",
    "xbzrle",
    "zero-copy-send",
];

/// Parameters that we change.
const PARAMETERS: &[&str] = &["max-bandwidth", "downtime-limit", "tls-creds"];

/// The most that `downtime-limit` takes, milliseconds: the next round is the last one.
const NOW: u64 = 2_000_000;

/// How the pages are to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Most bytes a second; none is as fast as it goes.
    pub bandwidth: Option<u64>,
    /// QEMU stops the guest for the last pages when it believes that they take no longer than this, milliseconds.
    pub downtime_ms: u64,
    /// After so many rounds it stops the guest in any case.
    pub rounds: u64,
    /// The guest is stopped before its first page. Only then does the end of our process not let it run on.
    pub still: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { bandwidth: None, downtime_ms: 300, rounds: 10, still: false }
    }
}

/// A QEMU that runs a guest, and our connection to its monitor.
#[derive(Debug)]
pub struct Guest {
    qmp: qmp::Client,
    monitor: PathBuf,
    pid: Option<u32>,
    /// Whether it ran when we came.
    ran: bool,
    /// What to put back once it is ours no more: capabilities and parameters.
    before: Option<(Vec<Value>, Map<String, Value>)>,
    /// Our end of the migration. Closed, it gives the guest back.
    stream: Option<UnixStream>,
    rounds: u64,
    stopped: Option<Instant>,
}

impl Guest {
    /// Connects to a QEMU's monitor.
    pub async fn attach(monitor: &Path) -> Result<Self> {
        let failed =
            |source| Error::File { path: monitor.to_owned(), doing: "connecting to QEMU's monitor", source };
        let monitor_path = std::path::absolute(monitor).map_err(failed)?;
        let socket = tokio::net::UnixStream::connect(monitor).await.map_err(failed)?;
        let pid = socket.peer_cred().ok().and_then(|peer| peer.pid()).and_then(|pid| u32::try_from(pid).ok());
        let qmp = qmp::Client::handshake(socket).await.map_err(|error| match error {
            // A monitor serves one client at a time and lets the others wait.
            qmp::Error::Timeout { .. } => {
                failed(io::Error::other(format!("{error}; is somebody else connected to it?")))
            }
            error => error.into(),
        })?;
        let mut guest = Self {
            qmp,
            monitor: monitor_path,
            pid,
            ran: false,
            before: None,
            stream: None,
            rounds: u64::MAX,
            stopped: None,
        };
        guest.ran = guest.run_state().await? == "running";
        Ok(guest)
    }

    /// Where its monitor listens.
    pub fn monitor(&self) -> &Path {
        &self.monitor
    }

    /// The process that listens there.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// QEMU's version.
    pub fn version(&self) -> &Version {
        self.qmp.version()
    }

    /// Whether it ran when we came.
    pub fn ran(&self) -> bool {
        self.ran
    }

    /// Since when it has stood still for the last pages.
    pub fn stopped(&self) -> Option<Instant> {
        self.stopped
    }

    /// Executes a command.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        Ok(self.qmp.execute(command, arguments).await?)
    }

    /// The run state: `running`, `paused`, `postmigrate`, …
    pub async fn run_state(&mut self) -> Result<String> {
        let status = self.execute("query-status", json!({})).await?;
        Ok(text(&status, "status"))
    }

    /// Lets QEMU send the guest, and gives a second handle to our end.
    pub(super) async fn migrate(&mut self, pace: &Pace) -> Result<UnixStream> {
        let status = self.migration().await?;
        if under_way(&status) {
            return Err(Error::Guest(format!("a migration is under way already ({status})")));
        }
        self.prepare(pace).await?;
        if pace.still {
            self.execute("stop", json!({})).await?;
        }
        let (ours, theirs) = UnixStream::pair().map_err(Error::system("making a socket pair"))?;
        let ours_too = ours.try_clone().map_err(Error::system("holding the stream"))?;
        self.qmp.send_fd(DESCRIPTOR, theirs.as_fd()).await?;
        drop(theirs);
        self.rounds = pace.rounds;
        self.stream = Some(ours);
        self.execute("migrate", json!({ "uri": format!("fd:{DESCRIPTOR}") })).await?;
        Ok(ours_too)
    }

    /// A plain stream, as fast as it goes, with a return path.
    async fn prepare(&mut self, pace: &Pace) -> Result<()> {
        let known = self.execute("query-migrate-capabilities", json!({})).await?;
        let known = known.as_array().map(Vec::as_slice).unwrap_or_default();
        let wanted = |name: &str| match name {
            "events" | "return-path" => Some(true),
            name if UNWANTED.contains(&name) => Some(false),
            _ => None,
        };
        let changed = known.iter().filter_map(|capability| {
            let name = capability.get("capability")?.as_str()?;
            let state = capability.get("state")?.as_bool()?;
            wanted(name).filter(|wanted| *wanted != state).map(|wanted| (name, state, wanted))
        });
        let changed: Vec<_> = changed.collect();
        let list = |pick: fn(&(&str, bool, bool)) -> bool| -> Vec<Value> {
            let one = |change| json!({ "capability": change_name(change), "state": pick(change) });
            changed.iter().map(one).collect()
        };
        let parameters = self.qmp.execute("query-migrate-parameters", json!({})).await?;
        let parameters = PARAMETERS.iter().filter_map(|name| {
            Some(((*name).to_owned(), parameters.get(*name).filter(|value| !value.is_null())?.clone()))
        });
        let parameters: Map<_, _> = parameters.collect();
        let secured = parameters.contains_key("tls-creds");
        let mut settings = json!({
            "max-bandwidth": pace.bandwidth.unwrap_or(1 << 40),
            "downtime-limit": pace.downtime_ms.min(NOW),
        });
        if let Some(settings) = settings.as_object_mut().filter(|_| secured) {
            settings.insert("tls-creds".to_owned(), json!(""));
        }
        let (new, old) = (list(|change| change.2), list(|change| change.1));
        self.before = Some((old, parameters));
        self.execute("migrate-set-capabilities", json!({ "capabilities": new })).await?;
        self.execute("migrate-set-parameters", settings).await?;
        Ok(())
    }

    /// Waits for QEMU to give up on the migration, and says why. Never returns while it goes on.
    ///
    /// A guest that dirties its memory faster than it can be sent is stopped after as many rounds as were asked for.
    pub(super) async fn watch(&mut self) -> Error {
        loop {
            let event = match self.qmp.next_event().await {
                Ok(event) => event,
                Err(error) => return gone(error),
            };
            if let Err(error) = self.heard(&event).await {
                return error;
            }
        }
    }

    async fn heard(&mut self, event: &Event) -> Result<()> {
        match event.name.as_str() {
            "STOP" => self.stopped = Some(Instant::now()),
            "RESUME" => self.stopped = None,
            "MIGRATION" if matches!(text(&event.data, "status").as_str(), "failed" | "cancelled") => {
                return Err(self.failure().await);
            }
            "MIGRATION_PASS" => {
                let pass = event.data.get("pass").and_then(Value::as_u64).unwrap_or(0);
                tracing::info!(pass, "a round of pages");
                if pass > self.rounds {
                    self.rounds = u64::MAX;
                    self.execute("migrate-set-parameters", json!({ "downtime-limit": NOW })).await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether its process is gone, and the guest had stood still to its end: then what was sent is all there is of it.
    pub(super) fn is_dead(&self) -> bool {
        let Some(pid) = self.pid.filter(|_| self.stopped.is_some()) else { return false };
        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => is_exiting(&stat),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Why a migration failed, in QEMU's words.
    pub(super) async fn failure(&mut self) -> Error {
        match self.execute("query-migrate", json!({})).await {
            Ok(answer) => {
                let (status, why) = (text(&answer, "status"), text(&answer, "error-desc"));
                let why = if why.is_empty() { "no reason given".to_owned() } else { why };
                Error::Guest(format!("its migration is {status}: {why}"))
            }
            Err(Error::Qmp(error)) => gone(error),
            Err(error) => error,
        }
    }

    /// Says that the destination has all it needs. Behind this the guest stands still until a `cont`.
    pub(super) async fn let_go(&mut self) -> Result<()> {
        let Some(stream) = &mut self.stream else {
            return Err(Error::Guest("no migration is under way".to_owned()));
        };
        stream.write_all(&SHUT).map_err(Error::system("ending the migration"))?;
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            let status = self.migration().await?;
            match (status.as_str(), self.run_state().await?.as_str()) {
                ("completed", "postmigrate") => break,
                ("completed", "running") => {
                    return Err(Error::Guest("somebody let the guest run on".to_owned()));
                }
                (status, _) if !under_way(status) && status != "completed" => {
                    return Err(self.failure().await);
                }
                (status, state) if Instant::now() > deadline => {
                    return Err(Error::Guest(format!("its migration does not end: {status}, {state}")));
                }
                _ => sleep(Duration::from_millis(2)).await,
            }
        }
        self.stream = None;
        Ok(())
    }

    /// Has the guest back: it runs when this returns, if it ran when we came.
    pub(super) async fn back(&mut self) -> Result<()> {
        self.close();
        let began = Instant::now();
        let mut cancelled = false;
        loop {
            let status = self.migration().await?;
            if under_way(&status) {
                if began.elapsed() > SETTLE_TIMEOUT {
                    return Err(Error::Guest(format!("its migration does not end: {status}")));
                }
                if began.elapsed() > CANCEL_AFTER && !cancelled {
                    cancelled = true;
                    self.execute("migrate_cancel", json!({})).await?;
                }
                sleep(Duration::from_millis(10)).await;
                continue;
            }
            match self.run_state().await?.as_str() {
                "running" => break,
                _ if !self.ran => break,
                state if began.elapsed() > SETTLE_TIMEOUT => {
                    return Err(Error::Guest(format!("it does not go on: it is in state {state}")));
                }
                // A migration that failed lets the guest run a moment later.
                "finish-migrate" => sleep(Duration::from_millis(10)).await,
                _ => {
                    self.execute("cont", json!({})).await?;
                }
            }
        }
        self.put_back().await;
        Ok(())
    }

    /// Ends QEMU, whose guest runs elsewhere.
    pub(super) async fn quit(&mut self) -> Result<()> {
        match self.qmp.execute("quit", json!({})).await {
            // It may be gone before it has answered.
            Ok(_) | Err(qmp::Error::Closed { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Closes our end of the migration, in every thread that holds it.
    fn close(&mut self) {
        if let Some(stream) = self.stream.take()
            && let Err(error) = stream.shutdown(Shutdown::Both)
        {
            tracing::debug!(%error, "closing the migration");
        }
    }

    /// The settings of whoever manages this QEMU.
    async fn put_back(&mut self) {
        let Some((capabilities, parameters)) = self.before.take() else { return };
        for (command, arguments) in [
            ("migrate-set-capabilities", json!({ "capabilities": capabilities })),
            ("migrate-set-parameters", Value::Object(parameters)),
        ] {
            if let Err(error) = self.execute(command, arguments).await {
                tracing::warn!(%error, "the migration's settings are not what they were");
            }
        }
    }

    async fn migration(&mut self) -> Result<String> {
        let answer = self.qmp.execute("query-migrate", json!({})).await.map_err(gone)?;
        Ok(text(&answer, "status"))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.close();
    }
}

fn change_name<'a>(change: &(&'a str, bool, bool)) -> &'a str {
    change.0
}

/// A connection that closed is a QEMU that ended.
fn gone(error: qmp::Error) -> Error {
    match error {
        qmp::Error::Closed { .. } => Error::Guest("it has ended".to_owned()),
        error => error.into(),
    }
}

/// Whether a process is at its end, by `/proc/PID/stat` (proc_pid_stat(5)): it closes its sockets some time before it is
/// gone, and is there still until somebody has waited for it.
fn is_exiting(stat: &str) -> bool {
    /// `PF_EXITING` (Linux 6.12, include/linux/sched.h).
    const EXITING: u32 = 4;
    // The name may have anything in it. Behind it: state, five numbers, flags.
    let flags = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(6)?.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0)
}

fn under_way(status: &str) -> bool {
    !matches!(status, "" | "none" | "completed" | "failed" | "cancelled")
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_at_its_end_before_it_is_gone() {
        let stat = |state: char, flags: u32| format!("7 (a) b) {state} 1 7 7 0 -1 {flags} 1051 0 0");
        assert!(!is_exiting(&stat('S', 0x40_0100)) && !is_exiting(&stat('R', 0x40_0040)));
        assert!(is_exiting(&stat('R', 0x40_0104)), "between the end of its sockets and its own");
        assert!(is_exiting(&stat('Z', 0x40_804c)), "nobody has waited for it");
        assert!(!is_exiting("7 (a"));
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert!(!is_exiting(&own));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let of_child = format!("/proc/{}/stat", child.id());
        while !is_exiting(&std::fs::read_to_string(&of_child).unwrap()) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
