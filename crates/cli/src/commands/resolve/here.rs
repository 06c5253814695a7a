//! What the QEMUs of this host say, and what they are told.
//!
//! A guest that came in has its QEMU's monitor beside its file; the QEMU of one that left listens where it always did.

use std::{io::ErrorKind, path::PathBuf, time::Duration};

use hyperferry_relay::{
    journal::{Account, Journal, Step},
    qmp,
};
use serde_json::{Value, json};
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};

use super::decide::Here;
use crate::exit::Result;

/// How long a QEMU may take to answer: its monitor talks to one at a time, and somebody else may be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether a QEMU has ended that was told to, and how long after another.
const ENDS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// The run state of a QEMU whose migration is completed.
const SENT: &str = "postmigrate";

/// What is known of the QEMU of a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Qemu {
    /// It has ended, or another one listens in its place.
    Gone,
    /// It may be there, and does not answer.
    Silent(String),
    /// Its run state.
    State(String),
}

impl Qemu {
    /// Asks the QEMU of a move.
    pub(super) async fn ask(account: &Account) -> Self {
        let answer = async {
            let mut qemu = connect(account).await?;
            let Some(qemu) = qemu.as_mut() else { return Ok(Self::Gone) };
            let status = qemu.execute("query-status", json!({})).await?;
            let state = status.get("status").and_then(Value::as_str).unwrap_or("unknown");
            Ok(Self::State(state.to_owned()))
        };
        match timeout(PATIENCE, answer).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) if is_gone(&error) => Self::Gone,
            Ok(Err(error)) => Self::Silent(error.to_string()),
            Err(_) => Self::Silent(format!("no answer in {} s", PATIENCE.as_secs())),
        }
    }

    /// Whether it ends, once it was told to.
    async fn ends(account: &Account) -> bool {
        for _ in 0..ENDS {
            if Self::ask(account).await == Self::Gone {
                return true;
            }
            sleep(PAUSE).await;
        }
        false
    }

    /// Tells it something.
    pub(super) async fn tell(account: &Account, command: &str) {
        let told = async {
            match connect(account).await? {
                Some(mut qemu) => qemu.execute(command, json!({})).await.map(drop),
                None => Ok(()),
            }
        };
        match timeout(PATIENCE, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, command, "a QEMU was told"),
            Err(_) => tracing::debug!(command, "a QEMU was told, and did not answer"),
        }
    }

    /// The copy that it has.
    pub(super) fn copy(&self, account: &Account) -> Here {
        match self {
            Self::Gone => Here::Gone,
            Self::Silent(_) => Here::Silent,
            // One that sleeps wakes by itself.
            Self::State(state) if state == "running" || state == "suspended" => Here::Runs,
            Self::State(state) if state == SENT && !account.leaves() => Here::Sent,
            Self::State(_) => Here::Stopped,
        }
    }

    /// Its run state, where it has told one.
    pub(super) fn state(&self) -> Option<&str> {
        match self {
            Self::State(state) => Some(state),
            _ => None,
        }
    }
}

/// Where the QEMU of a move listens.
pub(super) fn monitor(account: &Account) -> PathBuf {
    match account.steps.first() {
        Some((_, Step::Leave { monitor, .. })) => monitor.clone(),
        _ => account.monitor(),
    }
}

/// The QEMU of a move, unless another one listens there now.
async fn connect(account: &Account) -> qmp::Result<Option<qmp::Client>> {
    let mut qemu = qmp::Client::handshake(UnixStream::connect(monitor(account)).await?).await?;
    if let Some((_, Step::Leave { uuid: Some(uuid), .. })) = account.steps.first() {
        let answer = qemu.execute("query-uuid", json!({})).await?;
        if answer.get("UUID").and_then(Value::as_str) != Some(uuid) {
            return Ok(None);
        }
    }
    Ok(Some(qemu))
}

/// Nobody listens. Whatever else fails, a QEMU may be there.
fn is_gone(error: &qmp::Error) -> bool {
    match error {
        qmp::Error::Io(error) => matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused),
        _ => false,
    }
}

/// Ends every QEMU that must never run and that nobody looks after any more.
pub(in crate::commands) async fn end_leftovers(journal: &Journal) -> Result<()> {
    for mut account in journal.accounts()? {
        let done = matches!(account.steps.last(), Some((_, Step::Failed { .. } | Step::Unknown { .. })));
        if account.active || account.may_have_run() || done || account.leaves() {
            continue;
        }
        Qemu::tell(&account, "quit").await;
        if !Qemu::ends(&account).await {
            say!(
                "warning: a half-made copy did not end; its QEMU listens at {}",
                account.monitor().display()
            );
            continue;
        }
        let why = "the process that took it in was gone before the sender gave it away".to_owned();
        if account.close(Step::Failed { why })? {
            say!("note [leftover]: {}: its half-made copy is ended", super::heading(&account));
        }
    }
    Ok(())
}

/// A guest that was to leave, whose process is gone and has not said "go": its QEMU is told to go on, if nobody else
/// would.
pub(super) async fn back(account: &mut Account, mut found: Qemu, may: bool) -> Result<Qemu> {
    let stands = match account.steps.last() {
        Some((_, Step::Ready { .. })) => found.state() == Some(SENT),
        Some((_, Step::Sending { still: true })) => matches!(found.state(), Some("paused" | SENT)),
        Some((_, Step::Sending { .. } | Step::Leave { .. })) => false,
        _ => return Ok(found),
    };
    if stands && may {
        Qemu::tell(account, "cont").await;
        found = Qemu::ask(account).await;
    }
    if found.state() == Some("running") {
        let why = "the process that sent it was gone before the destination was told to run it".to_owned();
        account.close(Step::Failed { why })?;
    }
    Ok(found)
}
