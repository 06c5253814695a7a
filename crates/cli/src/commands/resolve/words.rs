//! The verdict for people, and for machines.

use hyperferry_relay::journal::{Account, Step};

use super::{
    Case, Told, age,
    decide::{Act, Here, Place, Stage, There, is_settled},
    document::{Command, Local, Move, Remote},
    domains::Domain,
    heading, here,
    here::Qemu,
    peer::{Answer, Peer, Seen, is_ssh, printable},
    since, unasked,
};
use crate::commands::qemu_args::quote;

/// Its heading, which single copy may run, what was seen at either end, and what makes it so.
pub(super) fn text(told: &Told) -> String {
    format!("{}\n{}\n", heading(&told.case.account), verdict(told))
}

fn verdict(told: &Told) -> String {
    let Told { case, there, verdict, .. } = told;
    let account = &case.account;
    let monitor = here::monitor(account);
    let monitor = monitor.display();
    if account.active {
        return "  under way: wait for it".to_owned();
    }
    if case.superseded && verdict.place != Place::Two {
        let was = match case.stage {
            Stage::CameEarly | Stage::CameReady => "it did not come this time",
            Stage::CameGo | Stage::CameRan => "it was here",
            _ => "it left",
        };
        let stale = case.qemu.as_ref().and_then(Qemu::state).map_or_else(String::new, |state| {
            format!("; this QEMU, in state {state}, must not go on: send `quit` to {monitor}")
        });
        return format!("  {was}, and has moved since then: see below{stale}");
    }
    if *there == There::Unasked && verdict.why.is_empty() {
        let reach = told.by_hand.as_deref();
        let text = match (&case.qemu, case.here()) {
            (Some(Qemu::Silent(why)), _) => {
                format!("  unknown: its QEMU here does not answer ({why}), and may run it; QMP {monitor}")
            }
            (_, Here::Sent) => {
                format!("  elsewhere: QEMU has sent it away from here by a move of its own; QMP {monitor}")
            }
            (qemu, _) if account.leaves() => {
                unasked::left(account, qemu.as_ref().and_then(Qemu::state), reach)
            }
            (qemu, _) => unasked::came(account, qemu.as_ref().and_then(Qemu::state), reach),
        };
        let why = not_asked(told).map(|why| format!("\n  {} could not be asked: {why}", end(account)));
        let over = nothing_to_do(told).map(|words| format!("\n  {words}"));
        return printable_lines(&text) + &why.or(over).unwrap_or_default();
    }
    let mut lines = vec![format!("  {}: {}", place(verdict.place, account), verdict.why)];
    lines.push(format!("  seen here: {}", seen_here(told)));
    if let Some((peer, seen)) = answered(told) {
        lines.push(format!("  seen at {} ({}): {}", end(account), peer.shown(), seen.told));
    } else if let Some(settled) = case.settled() {
        let (ago, had) = (since(settled.at).as_secs(), if settled.here { "no copy" } else { "it ran" });
        lines.push(format!("  seen at {} ({}), {ago} s ago: {had}", end(account), settled.asked));
    }
    lines.extend(nothing_to_do(told).map(|words| format!("  {words}")));
    let before = verdict.provided.map_or_else(String::new, |what| format!(", but only if {what}"));
    let first = format!("do{before}");
    let prefixes = std::iter::once(first.as_str()).chain(std::iter::repeat("then, once that has succeeded"));
    for (prefix, command) in prefixes.zip(commands(told)) {
        let command = match command {
            Command::Shell { shell } => shell,
            Command::Qmp { qmp, execute, on: None } => format!("send `{execute}` to QMP {}", qmp.display()),
            Command::Qmp { qmp, execute, on: Some(host) } => {
                format!("send `{execute}` to QMP {} there ({host})", qmp.display())
            }
        };
        lines.push(format!("  {prefix}: {command}"));
    }
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}

/// The same for machines.
pub(super) fn document(told: &Told) -> Move {
    let Told { case, there, verdict, .. } = told;
    let account = &case.account;
    let (guest, uuid) = case.guest();
    let step = account.steps.last().and_then(|(_, step)| serde_json::to_value(step).ok());
    let step = step.as_ref().and_then(|step| step.get("step")?.as_str()).unwrap_or_default().to_owned();
    let state = match (account.active, case.superseded) {
        (true, _) => "under-way",
        (_, true) if verdict.place != Place::Two => "superseded",
        _ => match verdict.place {
            Place::Here => "here",
            Place::There if account.leaves() => "destination",
            Place::There => "source",
            Place::Nowhere => "nowhere",
            Place::Elsewhere => "elsewhere",
            Place::Two => "two",
            Place::Unknown => "unknown",
        },
    };
    let local = |qemu: &Qemu| Local {
        state: qemu.state().map(str::to_owned),
        error: match qemu {
            Qemu::Silent(why) => Some(why.clone()),
            _ => None,
        },
        qmp: here::monitor(account),
    };
    let settled = case.settled().filter(|_| told.answer.is_none());
    let peer = case.peer.as_ref().and_then(|peer| Some(peer.as_ref().ok()?.shown()));
    let remote = || Remote {
        asked: peer.or_else(|| Some(settled?.asked.clone())),
        seconds_ago: settled.map(|settled| since(settled.at).as_secs()),
        copy: (*there != There::Unasked).then(|| there.name().to_owned()),
        seen: answered(told).map(|(_, seen)| seen.told),
        error: not_asked(told),
    };
    Move {
        guest: guest.to_owned(),
        uuid: uuid.map(str::to_owned),
        direction: if account.leaves() { "out" } else { "in" }.to_owned(),
        step,
        seconds_ago: age(account).as_secs(),
        place: state.to_owned(),
        why: (!verdict.why.is_empty()).then(|| verdict.why.to_owned()),
        here: case.qemu.as_ref().map(local),
        there: (case.peer.is_some() || settled.is_some()).then(remote),
        commands: if account.active { Vec::new() } else { commands(told) },
        provided: verdict.provided.map(str::to_owned),
    }
}

/// That the move is over, and how to be rid of its account where no copy is here that needs it.
fn nothing_to_do(told: &Told) -> Option<String> {
    const WORDS: &str = "nothing to do";
    let Told { case, there, .. } = told;
    let left = case.stage == Stage::LeftTold && *there == There::Unasked;
    let gone = case.here() == Here::Gone;
    let forget = || format!("{WORDS}; the journal forgets it by: rm {}.*", quote(&stem(case)));
    match (is_settled(case.here(), *there), gone) {
        (true, false) => Some(WORDS.to_owned()),
        (settled, true) if settled || left => Some(if case.first { forget() } else { WORDS.to_owned() }),
        _ => None,
    }
}

/// The files of a move, up to their extension.
fn stem(case: &Case) -> String {
    case.account.path.with_extension("").display().to_string()
}

/// The other end, for people.
fn end(account: &Account) -> &'static str {
    if account.leaves() { "the destination" } else { "the source" }
}

fn place(place: Place, account: &Account) -> &'static str {
    match place {
        Place::Here => "here",
        Place::There if account.leaves() => "at the destination",
        Place::There => "at the source",
        Place::Nowhere => "nowhere",
        Place::Elsewhere => "elsewhere",
        Place::Two => "TWO COPIES RUN",
        Place::Unknown => "unknown",
    }
}

fn seen_here(told: &Told) -> String {
    let account = &told.case.account;
    let monitor = here::monitor(account);
    let pid = match account.steps.first() {
        Some((_, Step::Leave { pid: Some(pid), .. })) => format!(" (process {pid})"),
        _ => String::new(),
    };
    let qemu = match &told.case.qemu {
        None | Some(Qemu::Gone) => format!("its QEMU{pid} is gone"),
        Some(Qemu::Silent(why)) => {
            format!("its QEMU{pid} does not answer ({why}), QMP {}", monitor.display())
        }
        Some(Qemu::State(state)) => format!("QEMU{pid} is in state {state}, QMP {}", monitor.display()),
    };
    match account.steps.last() {
        Some((_, Step::Failed { why } | Step::Unknown { why })) => format!("{qemu} ({why})"),
        _ => qemu,
    }
}

/// Who was asked, and what it has of the guest.
fn answered(told: &Told) -> Option<(&Peer, Seen<'_>)> {
    let (guest, uuid) = told.case.guest();
    match (told.case.peer.as_ref()?, told.answer.as_ref()?) {
        (Ok(peer), Ok(answer)) => Some((peer, answer.of(guest, uuid, told.case.account.leaves()))),
        _ => None,
    }
}

/// Why nothing is known of the other end, if somebody was to be asked.
fn not_asked(told: &Told) -> Option<String> {
    let reached = told.case.peer.as_ref().and_then(|peer| peer.as_ref().ok());
    let by = reached.map_or_else(String::new, |peer| format!(" ({})", peer.shown()));
    match told.answer.as_ref()? {
        Err(why) => Some(printable(&format!("{why}{by}"))),
        Ok(Answer::Journal(_)) if told.there == There::Unasked => {
            Some(format!("a move of it is under way there, or its QEMU does not answer{by}"))
        }
        Ok(_) => None,
    }
}

/// What makes it so.
fn commands(told: &Told) -> Vec<Command> {
    let seen = answered(told);
    let act = |act: &Act| command(*act, told, seen.as_ref());
    told.verdict.acts.iter().filter_map(act).collect()
}

fn command(act: Act, told: &Told, seen: Option<&(&Peer, Seen<'_>)>) -> Option<Command> {
    let (execute, there) = match act {
        Act::Cont => ("cont", false),
        Act::Quit => ("quit", false),
        Act::Stop => ("stop", false),
        Act::Destroy => ("quit", true),
        Act::Resume | Act::Unpause => ("cont", true),
        Act::Pause => ("stop", true),
    };
    let execute = execute.to_owned();
    if !there {
        return Some(Command::Qmp { qmp: here::monitor(&told.case.account), execute, on: None });
    }
    let (peer, seen) = seen?;
    if let Some(found) = seen.qemu {
        let qmp = found.here.as_ref()?.qmp.clone();
        return Some(Command::Qmp { qmp, execute, on: Some(peer.shown()) });
    }
    let (guest, _) = told.case.guest();
    Some(Command::Shell { shell: xl(act, &peer.reach, seen.domain?, guest) })
}

/// A line that does it to a domain.
fn xl(act: Act, reach: &[String], domain: &Domain, guest: &str) -> String {
    let id = domain.id.to_string();
    // xl takes digits for a domain's number.
    let named = |name: &str| {
        if name.bytes().all(|byte| byte.is_ascii_digit()) { id.clone() } else { name.to_owned() }
    };
    let (now, then) = (named(&domain.name), named(guest));
    match act {
        Act::Destroy => line(reach, &["xl", "destroy", &now]),
        Act::Pause => line(reach, &["xl", "pause", &now]),
        Act::Unpause if domain.name == guest => line(reach, &["xl", "unpause", &now]),
        Act::Unpause => script(
            reach,
            &format!("{} && {}", words(&["xl", "rename", &now, guest]), words(&["xl", "unpause", &then])),
        ),
        _ if domain.name == guest => script(reach, &resume(&now)),
        _ => script(reach, &format!("{} && {{ {}; }}", words(&["xl", "rename", &now, guest]), resume(&then))),
    }
}

/// A suspended domain is not paused: only `xl resume` (Xen 4.20) or the end of a checkpoint lets it go on.
fn resume(domain: &str) -> String {
    format!("{} || {}", words(&["xl", "resume", domain]), words(&["xl", "save", "-c", domain, "/dev/null"]))
}

/// How a copy that was given away is taken back.
pub(super) fn take_back(reach: &[String], aside: &str, guest: &str) -> String {
    script(reach, &format!("{} && {{ {}; }}", words(&["xl", "rename", aside, guest]), resume(guest)))
}

/// Words for a shell.
fn words(words: &[&str]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

/// A line for a shell here that has a command run at another host.
pub(super) fn line(reach: &[String], command: &[&str]) -> String {
    let remote = words(command);
    if reach.is_empty() || !remote.contains('\'') {
        let reach = reach.iter().map(|word| quote(word));
        return reach.chain([remote]).collect::<Vec<_>>().join(" ");
    }
    script(reach, &remote)
}

/// The same for a script. The shell of each host on the way takes one layer of quotes off.
fn script(reach: &[String], remote: &str) -> String {
    let hosts = reach.iter().filter(|word| is_ssh(word)).count();
    let shells = if reach.is_empty() { 0 } else { hosts.max(1) };
    let remote = (0..shells).fold(remote.to_owned(), |line, _| quote(&line));
    reach.iter().map(|word| quote(word)).chain([remote]).collect::<Vec<_>>().join(" ")
}

fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, process::Command};

    use super::*;

    fn domain(name: &str) -> Domain {
        let (state, uuid) = ("---ss-".to_owned(), String::new());
        Domain { name: name.to_owned(), id: 12, state, uuid }
    }

    /// What an `xl` at the other end of an ssh is called with: a shell here, a shell there.
    fn called(line: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        };
        script("ssh", "shift; exec sh -c \"$*\"");
        script("xl", "printf '%s\\n' \"$@\" --; [ \"$1\" != resume ]");
        let path = format!("{}:/usr/bin:/bin", folder.path().display());
        let output = Command::new("/bin/sh").args(["-c", line]).env("PATH", path).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_printed_for_a_shell_reaches_xl_to_the_letter() {
        let by_ssh = ["ssh".to_owned(), "root@xen".to_owned()];
        let by_gateway = [&by_ssh[..], &by_ssh].concat();
        for guest in ["web", "a b", "it's; rm -rf /", "$(id)`id`", "\"q\" *"] {
            let (aside, incoming) = (format!("{guest}--migratedaway"), format!("{guest}--incoming"));
            let saved = ["--", "save", "-c", guest, "/dev/null", "--"];
            let taken = [&["rename", aside.as_str(), guest, "--", "resume", guest][..], &saved].concat();
            for reach in [&by_ssh[..], &by_gateway, &[]] {
                let line = xl(Act::Destroy, reach, &domain(&aside), guest);
                assert_eq!(called(&line), ["destroy", &aside, "--"], "{line}");
                let line = xl(Act::Resume, reach, &domain(&aside), guest);
                assert_eq!(called(&line), taken, "{line}");
                assert_eq!(called(&take_back(reach, &aside, guest)), taken);
                let line = xl(Act::Unpause, reach, &domain(&incoming), guest);
                assert_eq!(
                    called(&line),
                    ["rename", &incoming, guest, "--", "unpause", guest, "--"],
                    "{line}"
                );
            }
        }
        assert_eq!(xl(Act::Destroy, &by_ssh, &domain("web"), "web"), "ssh root@xen xl destroy web");
        assert_eq!(
            xl(Act::Pause, &by_ssh, &domain("77"), "77"),
            "ssh root@xen xl pause 12",
            "digits are a number"
        );
    }
}
