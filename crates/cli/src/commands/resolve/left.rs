//! Guests that left: which copy may run, by the journal and the QEMU that they left.
//!
//! A move that was abandoned behind `ready` and before `go` may have stopped its QEMU, and has certainly started
//! nothing elsewhere: that QEMU is told to go on. What happened behind `go` only the destination knows.

use hyperferry_relay::journal::{Account, Step};
use serde_json::json;

use super::{connect, heading};
use crate::{
    commands::send::leftover::{self, before_xl},
    exit::Result,
};

/// The run state of a QEMU whose migration is completed.
const STOPPED: &str = "postmigrate";

/// Says it for one guest.
pub(super) async fn resolve(account: &mut Account) -> Result<String> {
    let state = ask(account).await;
    let state = match (account.steps.last(), state) {
        (Some((_, Step::Sending { .. } | Step::Ready { .. } | Step::Leave { .. })), state)
            if !account.active =>
        {
            abandoned(account, state).await?
        }
        (_, state) => state,
    };
    Ok(format!("{}\n{}\n", heading(account), verdict(account, state.as_deref())))
}

/// The process that sent it is gone, and has not said "go".
async fn abandoned(account: &mut Account, mut state: Option<String>) -> Result<Option<String>> {
    let ours_to_run = match account.steps.last() {
        Some((_, Step::Ready { .. })) => state.as_deref() == Some(STOPPED),
        Some((_, Step::Sending { still: true })) => matches!(state.as_deref(), Some("paused" | STOPPED)),
        _ => false,
    };
    if ours_to_run {
        if let Some(mut qemu) = monitor(account).await
            && let Err(error) = qemu.execute("cont", json!({})).await
        {
            tracing::warn!(%error, "the guest was to go on here");
        }
        state = ask(account).await;
    }
    if state.as_deref() == Some("running") {
        let why = "the process that sent it was gone before the destination was told to run it".to_owned();
        account.close(Step::Failed { why })?;
    }
    Ok(state)
}

/// The QEMU that the guest left, unless another one listens there now.
async fn monitor(account: &Account) -> Option<hyperferry_relay::qmp::Client> {
    let Some((_, Step::Leave { monitor, uuid, .. })) = account.steps.first() else { return None };
    let mut qemu = connect(monitor).await.ok()?;
    let answer = qemu.execute("query-uuid", json!({})).await.ok()?;
    let found = answer.get("UUID").and_then(serde_json::Value::as_str);
    (uuid.is_none() || uuid.as_deref() == found).then_some(qemu)
}

async fn ask(account: &Account) -> Option<String> {
    let mut qemu = monitor(account).await?;
    let status = qemu.execute("query-status", json!({})).await.ok()?;
    status.get("status").and_then(serde_json::Value::as_str).map(str::to_owned)
}

fn verdict(account: &Account, state: Option<&str>) -> String {
    let Some((_, Step::Leave { guest, to, monitor, pid, .. })) = account.steps.first() else {
        return String::new();
    };
    let monitor = monitor.display();
    let there = there(to, guest);
    let pid = pid.map_or_else(String::new, |pid| format!(" (QEMU process {pid})"));
    let last = account.steps.last().map(|(_, step)| step);
    let begun = account.steps.iter().any(|(_, step)| matches!(step, Step::Sending { .. }));
    let half = if begun { half(to, guest) } else { String::new() };
    match (last, state) {
        _ if account.active => "  under way: wait for it".to_owned(),
        (Some(Step::Left), None) => format!("  at the destination: it said so itself; to be sure: {there}"),
        (Some(Step::Left), Some("running")) => format!(
            "  at the destination: it said so itself, and a copy runs here, which must not{pid}: send `quit` to {monitor}"
        ),
        (Some(Step::Left), Some(_)) => format!(
            "  at the destination: it said so itself; the stopped copy here{pid} can be ended: send `quit` to {monitor}"
        ),
        (Some(Step::Failed { why }), Some(state)) => {
            format!("  here: QEMU is in state {state}{pid} ({why}){half}")
        }
        (Some(Step::Failed { why }), None) => {
            format!("  here, where its QEMU has ended since{pid}: start it anew ({why}){half}")
        }
        (Some(Step::Go | Step::Unknown { .. }), Some(state)) => format!(
            "  unknown: the destination was told to run it; QEMU here is in state {state}{pid}\n  \
             {there}{half}\n  \
             if it is there: send `quit` to {monitor}; if it is certainly not: send `cont` to {monitor}"
        ),
        (Some(Step::Go | Step::Unknown { .. }), None) => format!(
            "  at the destination, if anywhere: it was told to run it, and the copy here is gone{pid}\n  {there}{half}"
        ),
        (_, Some(state)) => format!(
            "  here: the destination was never told to run it; QEMU is in state {state}{pid}\n  \
             if it does not run and should: send `cont` to {monitor}{half}"
        ),
        (_, None) => {
            format!("  nowhere: its QEMU{pid} has ended, and the destination was never told to run it{half}")
        }
    }
}

/// How to look at the destination.
fn there(to: &[String], guest: &str) -> String {
    match before_xl(to) {
        Some(reach) => format!("look there: {} xl list {guest}", reach.join(" ")),
        None => "look at the destination".to_owned(),
    }
}

/// What an `xl` may leave.
fn half(to: &[String], guest: &str) -> String {
    let line = |reach| {
        let copy = leftover::name_of(guest);
        format!("\n  a copy named {copy} there, if any, has never run: {reach} xl destroy {copy}")
    };
    before_xl(to).map(|words| line(words.join(" "))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn verdict_of(steps: &[Step], active: bool, state: Option<&str>) -> String {
        let words = ["ssh", "-p", "22", "xen", "xl", "migrate-receive"];
        let leave = Step::Leave {
            guest: "web".to_owned(),
            uuid: None,
            to: words.map(str::to_owned).to_vec(),
            monitor: "/run/web.qmp".into(),
            pid: Some(7),
        };
        let steps = std::iter::once(&leave).chain(steps);
        let steps = steps.map(|step| (UNIX_EPOCH, step.clone())).collect();
        verdict(&Account { path: "/j/1.journal".into(), steps, active }, state)
    }

    #[test]
    fn every_end_names_one_copy() {
        let why = || "x".to_owned();
        let ready = Step::Ready { pid: None };
        for (steps, active, state, begins) in [
            (vec![Step::Sending { still: false }], true, Some("running"), "  under way"),
            (
                vec![Step::Sending { still: false }, Step::Failed { why: why() }],
                false,
                Some("running"),
                "  here: QEMU is in state r",
            ),
            (
                vec![Step::Sending { still: false }, ready.clone()],
                false,
                Some("paused"),
                "  here: the destination was never",
            ),
            (vec![Step::Sending { still: false }, ready.clone()], false, None, "  nowhere"),
            (vec![Step::Go], false, Some("postmigrate"), "  unknown"),
            (vec![Step::Go, Step::Unknown { why: why() }], false, Some("postmigrate"), "  unknown"),
            (vec![Step::Go], false, None, "  at the destination, if anywhere"),
            (
                vec![Step::Go, Step::Left],
                false,
                Some("postmigrate"),
                "  at the destination: it said so itself; the stopped",
            ),
            (vec![Step::Go, Step::Left], false, None, "  at the destination: it said so itself; to be sure"),
        ] {
            let verdict = verdict_of(&steps, active, state);
            assert!(verdict.starts_with(begins), "{steps:?}: {verdict}");
        }
        let unknown = verdict_of(&[Step::Go], false, Some("postmigrate"));
        assert!(unknown.contains("look there: ssh -p 22 xen xl list web"), "{unknown}");
    }

    #[test]
    fn what_a_killed_xl_leaves_is_named_once_there_may_be_one() {
        let destroy = "has never run: ssh -p 22 xen xl destroy web--incoming";
        let failed = Step::Failed { why: "x".to_owned() };
        let sending = Step::Sending { still: false };
        let state = Some("running");
        assert!(verdict_of(&[sending.clone(), failed.clone()], false, state).ends_with(destroy));
        assert!(verdict_of(&[sending.clone(), Step::Go], false, None).ends_with(destroy));
        assert!(verdict_of(&[sending, Step::Go], false, state).contains(destroy));
        assert!(!verdict_of(&[failed], false, state).contains("incoming"));
    }
}
