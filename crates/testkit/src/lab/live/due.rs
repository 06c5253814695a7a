//! What should have become of a guest, and what has.

use std::{fmt, time::Duration};

use anyhow::Result;

use super::{BEATS, PATIENCE, Plan, Running, carry_out, no_qemu_left, resolve, until};
use crate::{
    cut::{Kill, Phase},
    lab::{Host, console::Judged},
};

/// How long a QEMU may outlive its gateway, which ends it by ending its stream.
const QEMU_ENDS: Duration = Duration::from_secs(20);

/// Where a guest is once all is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In QEMU on the KVM host.
    Kvm {
        /// The source does not know, and keeps its copy suspended.
        aside: bool,
    },
    /// At the source, which resumed by itself.
    Xen,
    /// At the source, suspended until somebody asks `resolve`.
    XenByHand,
    /// It ran on the KVM host, and ended with its QEMU there.
    Lost {
        /// The source does not know, and keeps its copy suspended.
        aside: bool,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kvm { aside: false } => "in KVM",
            Self::Kvm { aside: true } => "in KVM, a copy suspended in Xen",
            Self::Xen => "in Xen",
            Self::XenByHand => "in Xen, by hand",
            Self::Lost { aside: false } => "lost after its move",
            Self::Lost { aside: true } => "lost after its move, a copy suspended in Xen",
        })
    }
}

impl Place {
    /// Where it has to be.
    pub(super) fn due(plan: &Plan) -> Self {
        let Some((kill, phase)) = plan.kill else {
            return if plan.hurdle.is_some() { Self::Xen } else { Self::Kvm { aside: false } };
        };
        match (kill, phase) {
            // QEMU is dead before the receiver asks it to run: "have it back".
            (Kill::Qemu, Phase::Report) => Self::Lost { aside: false },
            (_, Phase::Banner | Phase::Configuration | Phase::Pages | Phase::State | Phase::Ready)
            | (Kill::Qemu, Phase::Go) => Self::Xen,
            // The word has passed when the network goes.
            (Kill::Network, _) | (_, Phase::Report) if kill != Kill::Host => Self::Kvm { aside: true },
            (_, Phase::Report) => Self::Lost { aside: true },
            (_, Phase::Go) => Self::XenByHand,
        }
    }

    /// By how much the guest's clock may leap ahead there.
    pub(super) fn leap(self, judged: &Judged) -> Option<f64> {
        match self {
            Self::Kvm { .. } => Some(0.0),
            // Xen's acpi_save counts the time since the guest last read its PM timer, and counts it again once it resumes.
            Self::Xen | Self::XenByHand => Some(judged.usual),
            // It has not run on for long enough to tell.
            Self::Lost { .. } => None,
        }
    }

    /// Waits until it is settled there and nowhere else; tells what is wrong. Adds what `resolve` says of it.
    pub(super) fn reached(self, running: &Running, before: usize, said: &mut String) -> Result<Vec<String>> {
        let Running { name, here, elsewhere, .. } = running;
        let mut faults = Vec::new();
        let mut want = |right: bool, what: &str| {
            if !right {
                faults.push(what.to_owned());
            }
        };
        let at_source = |domain: &str| Host::Xen.run(&format!("xl list {domain}")).is_ok();
        let aside_name = format!("{name}--migratedaway");
        if matches!(self, Self::Kvm { .. }) {
            want(elsewhere.waits_for_beats(BEATS, PATIENCE), "it does not go on in KVM");
        }
        let resolved = resolve()?;
        said.push_str(&resolved);
        let mut says = |words: &str| {
            // Nothing is written down before the guest has a name.
            let unknown = resolved.is_empty() && self == Self::Xen;
            let asked = resolved.contains("  seen at the source (");
            let right = unknown || (asked && resolved.contains(words));
            want(right, &format!("resolve says {resolved}"));
        };
        match self {
            Self::Kvm { .. } => says("  here: it runs"),
            Self::Lost { .. } => says("  nowhere: it ran here"),
            Self::Xen => says("  at the source: it runs there"),
            Self::XenByHand => says("  at the source: its copy there is suspended"),
        }
        match self {
            Self::Kvm { aside } | Self::Lost { aside } => {
                want(at_source(&aside_name) == aside, "the source's copy is not as expected");
                want(resolved.contains(&aside_name) == aside, "resolve has not seen the source's copy");
                want(!at_source(name), "the source's copy still has its name");
                want(carry_out()?.len() == usize::from(aside), "what resolve advises is another thing");
                want(!at_source(&aside_name), "what resolve advises leaves the source's copy");
            }
            Self::XenByHand => {
                want(at_source(&aside_name) && !at_source(name), "the source did not put its copy aside");
                carry_out()?;
            }
            Self::Xen => want(carry_out()?.is_empty(), "resolve advises something"),
        }
        if matches!(self, Self::Kvm { .. }) {
            return Ok(faults);
        }
        if matches!(self, Self::Xen | Self::XenByHand) {
            let beats = here.seen().beats().len().max(before) + BEATS;
            want(here.waits_for_beats(beats, PATIENCE), "it does not go on in Xen");
            want(elsewhere.seen().beats().is_empty(), "there are two copies");
        }
        want(until(QEMU_ENDS, no_qemu_left)?, "a QEMU is left");
        Ok(faults)
    }
}
