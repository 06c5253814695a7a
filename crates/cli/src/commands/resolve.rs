//! `hyperferry resolve`: which copy of a guest may run, from the journal and the QEMUs of this host.
//!
//! A guest that came in has its QEMU's monitor beside its file; the QEMU of one that left listens where it always did.

mod left;

use std::{collections::VecDeque, path::PathBuf, time::SystemTime};

use clap::Args;
use hyperferry_relay::{
    journal::{Account, Journal, Step},
    qmp,
};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::{
    exit::{self, Result},
    output, runtime,
};

/// Where the journal is unless somebody says otherwise.
pub(crate) const JOURNAL: &str = "/var/lib/hyperferry";

/// Arguments of `resolve`.
#[derive(Args, Debug)]
pub(crate) struct Resolve {
    /// The journal's directory
    #[arg(value_name = "DIR", default_value = JOURNAL)]
    pub(crate) journal: PathBuf,
}

/// Says it for every guest that came in.
pub(super) fn run(arguments: &Resolve) -> Result<u8> {
    let journal = Journal::open(&arguments.journal)?;
    let text = runtime::run(async {
        end_leftovers(&journal).await?;
        let mut text = String::new();
        let mut accounts = VecDeque::from(journal.accounts()?);
        while let Some(mut account) = accounts.pop_front() {
            if account.leaves() {
                text.push_str(&left::resolve(&mut account).await?);
                continue;
            }
            let state = ask(&account).await;
            let verdict = if state.as_deref() != Some("running") && left_since(&account, &accounts) {
                "  it was here, and was sent on since then: see below".to_owned()
            } else {
                verdict(&account, state.as_deref())
            };
            text.push_str(&format!("{}\n{verdict}\n", heading(&account)));
        }
        Ok(text)
    })?;
    output::print(&text)?;
    Ok(exit::OK)
}

/// Ends every QEMU that must never run and that nobody looks after any more.
pub(super) async fn end_leftovers(journal: &Journal) -> Result<()> {
    for mut account in journal.accounts()? {
        let done = matches!(account.steps.last(), Some((_, Step::Failed { .. } | Step::Unknown { .. })));
        if account.active || account.may_have_run() || done || account.leaves() {
            continue;
        }
        let path = account.monitor();
        if let Ok(mut qemu) = connect(&path).await
            && let Err(error) = qemu.execute("quit", json!({})).await
        {
            tracing::debug!(%error, "quit");
        }
        if connect(&path).await.is_ok() {
            eprintln!("warning: a half-made copy did not end; its QEMU listens at {}", path.display());
            continue;
        }
        let why = "the process that took it in was gone before the sender gave it away".to_owned();
        if account.close(Step::Failed { why })? {
            eprintln!("note [leftover]: {}: its half-made copy is ended", heading(&account));
        }
    }
    Ok(())
}

async fn connect(path: &std::path::Path) -> qmp::Result<qmp::Client> {
    qmp::Client::handshake(UnixStream::connect(path).await?).await
}

/// The state of an account's QEMU, or nothing if it is gone.
async fn ask(account: &Account) -> Option<String> {
    let mut qemu = connect(&account.monitor()).await.ok()?;
    let status = qemu.execute("query-status", json!({})).await.ok()?;
    status.get("status").and_then(Value::as_str).map(str::to_owned)
}

/// Whether one of the later moves took a guest away again.
fn left_since<'a>(account: &Account, later: impl IntoIterator<Item = &'a Account>) -> bool {
    let uuid = account.uuid();
    uuid.is_some() && later.into_iter().any(|other| other.leaves() && other.uuid() == uuid)
}

fn heading(account: &Account) -> String {
    let (began, guest, uuid, other) = match account.steps.first() {
        Some((began, Step::Begin { guest, uuid, from })) => {
            let from = from.as_ref().map_or_else(String::new, |from| format!(" from {from}"));
            (began, guest, uuid, from)
        }
        Some((began, Step::Leave { guest, uuid, to, .. })) => {
            (began, guest, uuid, format!(" by `{}`", to.join(" ")))
        }
        _ => return account.path.display().to_string(),
    };
    let uuid = uuid.as_ref().map_or_else(String::new, |uuid| format!(" ({uuid})"));
    let ago = SystemTime::now().duration_since(*began).unwrap_or_default().as_secs();
    format!("{guest}{uuid}{other}, {ago} s ago")
}

/// Which copy may run, and how to make it so.
fn verdict(account: &Account, state: Option<&str>) -> String {
    let (guest, host) = match account.steps.first() {
        Some((_, Step::Begin { guest, from, .. })) => (guest.as_str(), from.as_deref().unwrap_or("SOURCE")),
        _ => ("GUEST", "SOURCE"),
    };
    let aside = format!("{guest}--migratedaway");
    // It is suspended, not paused: only `xl resume` (Xen 4.20) or the end of a checkpoint lets it go on.
    let take_back =
        format!("xl rename {aside} {guest} && {{ xl resume {guest} || xl save -c {guest} /dev/null; }}");
    let monitor = account.monitor();
    let monitor = monitor.display();
    let last = account.steps.last().map(|(_, step)| step);
    match (last, state) {
        _ if account.active => "  under way: wait for it".to_owned(),
        (Some(Step::Failed { why }), _) => format!(
            "  at the source: ours is gone and never ran ({why})\n  \
             to be sure: ssh {host} xl list; if only {aside} is there: \
             ssh {host} '{take_back}'"
        ),
        (Some(Step::Running { .. } | Step::Go), Some("running")) => format!(
            "  here: it runs, QMP {monitor}\n  \
             the source's copy must not: ssh {host} xl destroy {aside} (an error says that it is gone, as it should be)"
        ),
        (Some(Step::Running { .. }), Some(state)) => {
            format!("  here: QEMU is in state {state}, QMP {monitor}")
        }
        (Some(Step::Running { .. }), None) => format!(
            "  nowhere: it ran here, and its QEMU has ended\n  \
             start it anew; a copy at the source ({aside}) is from before that and must not run on the same disks"
        ),
        (Some(Step::Go), Some(state)) => format!(
            "  here: the sender has given it to us, and it has not run yet (QEMU is in state {state}), QMP {monitor}\n  \
             if ssh {host} xl list shows a running {guest}, that is the one: send `quit` to the QMP\n  \
             else: ssh {host} xl destroy {aside}, and send `cont` to the QMP"
        ),
        _ => format!(
            "  unknown: it was told to run here, and may have run for a moment; its QEMU is gone\n  \
             if its disks have not changed since: \
             ssh {host} '{take_back}'; else start it anew"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn verdict_of(steps: &[Step], active: bool, state: Option<&str>) -> String {
        let begin = Step::Begin { guest: "web".to_owned(), uuid: None, from: Some("192.0.2.1".to_owned()) };
        let steps = std::iter::once(&begin).chain(steps);
        let steps = steps.map(|step| (UNIX_EPOCH, step.clone())).collect();
        verdict(&Account { path: "/j/1.journal".into(), steps, active }, state)
    }

    #[test]
    fn a_guest_that_was_sent_on_is_not_called_lost() {
        let uuid = |uuid: &str| Some(uuid.to_owned());
        let begin = |uuid| Step::Begin { guest: "web".to_owned(), uuid, from: None };
        let leave = |uuid| Step::Leave {
            guest: "web".to_owned(),
            uuid,
            to: vec!["xl".to_owned()],
            monitor: "/run/web.qmp".into(),
            pid: None,
        };
        let account =
            |step| Account { path: "/j/1.journal".into(), steps: vec![(UNIX_EPOCH, step)], active: false };
        let came = account(begin(uuid("1")));
        assert!(left_since(&came, &[account(begin(uuid("1"))), account(leave(uuid("1")))]));
        assert!(!left_since(&came, &[account(begin(uuid("1"))), account(leave(uuid("2")))]));
        assert!(!left_since(&account(begin(None)), &[account(leave(None))]));
    }

    #[test]
    fn every_end_names_one_copy() {
        let why = || "x".to_owned();
        let running = Step::Running { paused: false };
        for (steps, active, state, begins) in [
            (vec![Step::Loading], true, None, "  under way"),
            (vec![Step::Failed { why: why() }], false, None, "  at the source"),
            (vec![Step::Go, Step::Failed { why: why() }], false, None, "  at the source"),
            (vec![Step::Go], false, Some("paused"), "  here: the sender has given"),
            (vec![Step::Go], false, Some("running"), "  here: it runs"),
            (vec![Step::Go], false, None, "  unknown"),
            (vec![Step::Go, Step::Unknown { why: why() }], false, None, "  unknown"),
            (vec![Step::Go, running.clone()], false, Some("running"), "  here: it runs"),
            (vec![Step::Go, running], false, None, "  nowhere"),
        ] {
            let verdict = verdict_of(&steps, active, state);
            assert!(verdict.starts_with(begins), "{steps:?}: {verdict}");
        }
        assert!(
            verdict_of(&[Step::Go], false, Some("paused"))
                .contains("ssh 192.0.2.1 xl destroy web--migratedaway")
        );
    }
}
