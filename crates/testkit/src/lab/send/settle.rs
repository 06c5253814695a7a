//! Where a guest is in the end, that it is nowhere else, and that `hyperferry resolve` knows.

use std::time::Duration;

use anyhow::Result;

use super::{
    BEATS, PATIENCE, Plan, Struck, monitor_in,
    stop::{Running, Stop},
};
use crate::{
    cut::Phase,
    lab::{
        Host,
        live::{carry_out, no_qemu_left, resolve, until},
    },
};

/// How long what a struck move leaves may stay: a Xen host whose network was away hears of the end later.
const LEFTOVERS: Duration = Duration::from_secs(30);

/// What `resolve` says of a guest that may go on here: its copy there has heard nothing, or is gone.
const ABSENT: [&str; 2] =
    ["  here: the destination's copy has not heard that it may run", "  here: it is not at the destination"];

/// How a move to Xen ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// There, and the destination has said so.
    There,
    /// There, and nobody has heard of it.
    Unreported,
    /// Here, by itself.
    Back,
    /// Nowhere, until somebody has looked and lets it run here.
    ByHand,
}

impl End {
    fn of(kill: Option<(Struck, Phase)>) -> Self {
        match kill {
            None => Self::There,
            Some((_, phase)) if phase < Phase::Go => Self::Back,
            // The word was there when the network went.
            Some((Struck::Network, _)) => Self::Unreported,
            Some((Struck::Host, _) | (_, Phase::Go)) => Self::ByHand,
            Some(_) => Self::Unreported,
        }
    }
}

/// What is wanted and was not found.
struct Wants<'a>(&'a mut Vec<String>);

impl Wants<'_> {
    fn want(&mut self, right: bool, what: impl Into<String>) {
        if !right {
            self.0.push(what.into());
        }
    }
}

/// After a move from Xen.
pub(super) fn received(
    guest: &mut Running,
    there: Stop,
    said: &mut String,
    faults: &mut Vec<String>,
) -> Result<&'static str> {
    let mut wants = Wants(faults);
    let Ok(monitor) = monitor_in(said) else {
        wants.want(false, "it did not leave Xen");
        return Ok("in Xen");
    };
    wants.want(said.contains("ended with 0"), "xl did not end well");
    wants.want(there.console.waits_for_beats(BEATS, PATIENCE), "it does not go on in KVM");
    wants.want(!on_xen(guest.name())?, "the source's copy still has its name");
    let resolved = resolve()?;
    said.push_str(&resolved);
    let runs_here = resolved.contains("  here: it runs\n") && resolved.contains("  seen at the source (");
    wants.want(runs_here, format!("resolve says {resolved}"));
    guest.arrived(there, Some(monitor));
    Ok("in KVM")
}

/// After a move to Xen.
pub(super) fn sent(
    plan: &Plan,
    guest: &mut Running,
    there: Stop,
    said: &mut String,
    faults: &mut Vec<String>,
) -> Result<&'static str> {
    let mut wants = Wants(faults);
    let end = End::of(plan.kill);
    wants.want(said.contains("ended with 0") == (end == End::There), "the command ended the other way");
    let resolved = resolve()?;
    said.push_str(&resolved);
    let asked = resolved.contains("  seen at the destination (");
    let truth = match end {
        End::There => resolved.contains("  at the destination: it said so itself"),
        // Before the first page there is nothing to ask.
        End::Back if !asked => resolved.contains("  here: QEMU is in state running"),
        End::Back => resolved.contains("  here: it runs"),
        End::Unreported => asked && resolved.contains("  at the destination: it runs there; ours must not"),
        End::ByHand => asked && ABSENT.iter().any(|words| resolved.contains(words)),
    };
    wants.want(truth, format!("resolve says {resolved}"));
    match end {
        End::There => {
            wants.want(there.console.waits_for_beats(BEATS, PATIENCE), "it does not go on in Xen");
            wants.want(on_xen(guest.name())?, "Xen does not have it under its name");
            wants.want(ends_here()?, "a QEMU is left");
            guest.arrived(there, None);
            Ok("in Xen")
        }
        End::Unreported => {
            wants.want(there.console.waits_for_beats(BEATS, PATIENCE), "it does not go on in Xen");
            wants.want(!carry_out()?.is_empty(), "resolve does not end the copy here");
            wants.want(ends_here()?, "a QEMU is left");
            guest.arrived(there, None);
            Ok("in Xen, unheard")
        }
        End::Back | End::ByHand => {
            let lost_there = matches!(plan.kill, Some((Struck::Host, Phase::Report)));
            let only_here = |there: &Stop| lost_there || there.console.seen().beats().is_empty();
            wants.want(only_here(&there), "it ran in Xen");
            let left = left_there(guest.name())?;
            if end == End::ByHand {
                wants.want(!carry_out()?.is_empty(), "resolve does not let it go on here");
            }
            let went_on = guest.console().seen().beats().len() + BEATS;
            wants.want(guest.console().waits_for_beats(went_on, PATIENCE), "it does not go on in KVM");
            wants.want(only_here(&there), "there are two copies");
            // A copy that is about to vanish is none that is left.
            let swept = left.is_some() && (end == End::ByHand || !nothing_there(guest.name())?);
            if swept {
                // Where `hyperferry send` lives on and reaches the host, it does that itself.
                let alone = end == End::Back && matches!(plan.kill, Some((Struck::Ssh | Struck::Xl, _)));
                wants.want(!alone, "a copy is left");
                wants.want(left == Some(true), "what is left there is no copy that never ran");
                if end == End::Back {
                    wants.want(carry_out()?.len() == 1, "what resolve advises is another thing");
                }
            }
            wants.want(nothing_there(guest.name())?, "a domain is left");
            Ok(match (end, swept) {
                (End::Back, false) => "in KVM",
                (End::Back, true) => "in KVM; a copy there ended by hand",
                (_, false) => "in KVM, by hand",
                (_, true) => "in KVM, by hand; a copy there ended likewise",
            })
        }
    }
}

fn on_xen(domain: &str) -> Result<bool> {
    Ok(Host::Xen.run(&format!("xl list {domain} >/dev/null 2>&1 && echo there; true"))?.contains("there"))
}

/// Whether the guest's QEMU ends, which it does by itself.
fn ends_here() -> Result<bool> {
    until(LEFTOVERS, no_qemu_left)
}

fn nothing_there(guest: &str) -> Result<bool> {
    let named = format!("xl list | grep {guest}; true");
    until(LEFTOVERS, || Ok(Host::Xen.run(&named)?.is_empty()))
}

/// A copy that an `xl` leaves: whether it has never run, if there is one.
fn left_there(guest: &str) -> Result<Option<bool>> {
    let state = Host::Xen.run(&format!("xl list {guest}--incoming 2>/dev/null; true"))?;
    // Name, ID, Mem, VCPUs, State: paused, and no time spent.
    Ok(state.lines().nth(1).map(|line| line.contains("--p---")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_decides() {
        for struck in Struck::ALL {
            for phase in Phase::ALL {
                let end = End::of(Some((struck, phase)));
                assert_eq!(end == End::Back, phase < Phase::Go, "{struck} at {phase}");
            }
        }
        assert_eq!(End::of(Some((Struck::Ssh, Phase::Go))), End::ByHand);
        assert_eq!(End::of(Some((Struck::Ssh, Phase::Report))), End::Unreported);
        assert_eq!(End::of(Some((Struck::Host, Phase::Report))), End::ByHand);
    }
}
