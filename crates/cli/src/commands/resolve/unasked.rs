//! What is said of a guest whose other end was not asked, or did not answer: where to look, and what to do then.

use hyperferry_relay::journal::{Account, Step};

use super::{
    domains::AWAY,
    here,
    words::{line, take_back},
};
use crate::commands::send::leftover;

/// For a guest that came in, by what reaches its source.
pub(super) fn came(account: &Account, state: Option<&str>, reach: Option<&[String]>) -> String {
    let guest = match account.steps.first() {
        Some((_, Step::Begin { guest, .. })) => guest.as_str(),
        _ => "GUEST",
    };
    let unknown = ["ssh", "SOURCE"].map(str::to_owned);
    let reach = reach.unwrap_or(&unknown);
    let aside = format!("{guest}{AWAY}");
    let list = line(reach, &["xl", "list"]);
    let destroy = line(reach, &["xl", "destroy", &aside]);
    let take_back = take_back(reach, &aside, guest);
    let monitor = account.monitor();
    let monitor = monitor.display();
    match (account.steps.last().map(|(_, step)| step), state) {
        (Some(Step::Failed { why }), _) => format!(
            "  at the source: ours is gone and never ran ({why})\n  \
             to be sure: {list}; if only {aside} is there: {take_back}"
        ),
        (Some(Step::Running { .. } | Step::Go | Step::Unknown { .. }), Some("running")) => format!(
            "  here: it runs, QMP {monitor}\n  \
             the source's copy must not: {destroy} (an error says that it is gone, as it should be)"
        ),
        (Some(Step::Running { .. }), Some(state)) => {
            format!("  here: QEMU is in state {state}, QMP {monitor}")
        }
        (Some(Step::Running { .. }), None) => format!(
            "  nowhere: it ran here, and its QEMU has ended\n  \
             start it anew; a copy at the source ({aside}) is from before that and must not run on the same disks"
        ),
        (Some(Step::Go | Step::Unknown { .. }), Some(state)) => format!(
            "  here: the sender has given it to us, and it has not run yet (QEMU is in state {state}), QMP {monitor}\n  \
             if {list} shows a running {guest}, that is the one: send `quit` to the QMP\n  \
             else: {destroy}, and send `cont` to the QMP"
        ),
        (Some(Step::Go | Step::Unknown { .. }), None) => format!(
            "  unknown: it was told to run here, and may have run for a moment; its QEMU is gone\n  \
             if its disks have not changed since: {take_back}; else start it anew"
        ),
        (_, state) => format!(
            "  at the source: ours never ran and must not; QEMU here is in state {}: send `quit` to {monitor}",
            state.unwrap_or("unknown")
        ),
    }
}

/// For a guest that left, by what reaches its destination.
pub(super) fn left(account: &Account, state: Option<&str>, reach: Option<&[String]>) -> String {
    let Some((_, Step::Leave { guest, pid, .. })) = account.steps.first() else {
        return String::new();
    };
    let monitor = here::monitor(account);
    let monitor = monitor.display();
    let there = there(reach, guest);
    let pid = pid.map_or_else(String::new, |pid| format!(" (QEMU process {pid})"));
    let last = account.steps.last().map(|(_, step)| step);
    let begun = account.steps.iter().any(|(_, step)| matches!(step, Step::Sending { .. }));
    let half = if begun { half(reach, guest) } else { String::new() };
    match (last, state) {
        (Some(Step::Left), None) => format!("  at the destination: it said so itself; to be sure, {there}"),
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
            format!("  nowhere: it was here, and its QEMU has ended since{pid}: start it anew ({why}){half}")
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
fn there(reach: Option<&[String]>, guest: &str) -> String {
    match reach {
        Some(reach) => format!("look there: {}", line(reach, &["xl", "list", guest])),
        None => "look at the destination".to_owned(),
    }
}

/// What an `xl` may leave.
fn half(reach: Option<&[String]>, guest: &str) -> String {
    let copy = leftover::name_of(guest);
    let told = |reach| {
        let destroy = line(reach, &["xl", "destroy", &copy]);
        format!("\n  a copy named {copy} there, if any, has never run: {destroy}")
    };
    reach.map(told).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn account(first: Step, steps: &[Step]) -> Account {
        let steps = std::iter::once(&first).chain(steps).map(|step| (UNIX_EPOCH, step.clone())).collect();
        Account { path: "/j/1.journal".into(), steps, active: false, settled: None }
    }

    fn of_one_that_came(guest: &str, steps: &[Step], state: Option<&str>) -> String {
        let begin = Step::Begin { guest: guest.to_owned(), uuid: None, from: Some("192.0.2.1".to_owned()) };
        came(&account(begin, steps), state, Some(&["ssh", "192.0.2.1"].map(str::to_owned)))
    }

    fn of_one_that_left(steps: &[Step], state: Option<&str>) -> String {
        let (guest, monitor) = ("web".to_owned(), "/run/web.qmp".into());
        let leave = Step::Leave { guest, uuid: None, to: Vec::new(), monitor, pid: Some(7) };
        left(&account(leave, steps), state, Some(&["ssh", "-p", "22", "xen"].map(str::to_owned)))
    }

    #[test]
    fn every_end_of_one_that_came_names_one_copy() {
        let failed = Step::Failed { why: "x".to_owned() };
        let unknown = Step::Unknown { why: "x".to_owned() };
        let running = Step::Running { paused: false };
        for (steps, state, begins) in [
            (vec![failed.clone()], None, "  at the source"),
            (vec![Step::Go, failed], None, "  at the source"),
            (vec![Step::Ready { pid: None }], Some("paused"), "  at the source: ours never ran and must not"),
            (vec![Step::Go], Some("paused"), "  here: the sender has given"),
            (vec![Step::Go], Some("running"), "  here: it runs"),
            (vec![Step::Go], None, "  unknown"),
            (vec![Step::Go, unknown], None, "  unknown"),
            (vec![Step::Go, running.clone()], Some("running"), "  here: it runs"),
            (vec![Step::Go, running], None, "  nowhere"),
        ] {
            let words = of_one_that_came("web", &steps, state);
            assert!(words.starts_with(begins), "{steps:?}: {words}");
        }
        let words = |guest| of_one_that_came(guest, &[Step::Go], Some("paused"));
        assert!(words("web").contains("ssh 192.0.2.1 xl destroy web--migratedaway"));
        assert!(words("a b").contains(r"ssh 192.0.2.1 'xl destroy '\''a b--migratedaway'\'''"));
    }

    #[test]
    fn every_end_of_one_that_left_names_one_copy() {
        let failed = Step::Failed { why: "x".to_owned() };
        let (ready, sending) = (Step::Ready { pid: None }, Step::Sending { still: false });
        let unknown = Step::Unknown { why: "x".to_owned() };
        for (steps, state, begins) in [
            (vec![sending.clone(), failed.clone()], Some("running"), "  here: QEMU is in state r"),
            (vec![sending.clone(), failed.clone()], None, "  nowhere: it was here"),
            (vec![sending.clone(), ready.clone()], Some("paused"), "  here: the destination was never"),
            (vec![sending.clone(), ready.clone()], None, "  nowhere"),
            (vec![Step::Go], Some("postmigrate"), "  unknown"),
            (vec![Step::Go, unknown], Some("postmigrate"), "  unknown"),
            (vec![Step::Go], None, "  at the destination, if anywhere"),
            (vec![Step::Left], Some("postmigrate"), "  at the destination: it said so itself; the stopped"),
            (vec![Step::Left], None, "  at the destination: it said so itself; to be sure"),
        ] {
            let words = of_one_that_left(&steps, state);
            assert!(words.starts_with(begins), "{steps:?}: {words}");
        }
        let unknown = of_one_that_left(&[Step::Go], Some("postmigrate"));
        assert!(unknown.contains("look there: ssh -p 22 xen xl list web"), "{unknown}");
        let destroy = "has never run: ssh -p 22 xen xl destroy web--incoming";
        assert!(of_one_that_left(&[sending.clone(), failed.clone()], Some("running")).ends_with(destroy));
        assert!(of_one_that_left(&[sending, Step::Go], None).ends_with(destroy));
        assert!(!of_one_that_left(&[failed], Some("running")).contains("incoming"));
    }
}
