//! What should have become of a guest, and what has.

use std::{fmt, time::Duration};

use anyhow::{Context, Result};

use super::{BEATS, PATIENCE, Plan, Running, no_qemu_left, resolve, until};
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

    /// Waits until it is settled there and nowhere else; tells what is wrong.
    pub(super) fn reached(self, running: &Running, before: usize) -> Result<Vec<String>> {
        let Running { name, here, elsewhere, .. } = running;
        let mut faults = Vec::new();
        let mut want = |right: bool, what: &str| {
            if !right {
                faults.push(what.to_owned());
            }
        };
        let at_source = |domain: &str| Host::Xen.run(&format!("xl list {domain}")).is_ok();
        let aside_name = format!("{name}--migratedaway");
        match self {
            Self::Kvm { aside } => {
                want(elsewhere.waits_for_beats(BEATS, PATIENCE), "it does not go on in KVM");
                want(resolve()?.contains("here: it runs"), "resolve does not find it");
                want(at_source(&aside_name) == aside, "the source's copy is not as expected");
                want(!at_source(name), "the source's copy still has its name");
                return Ok(faults);
            }
            Self::Lost { aside } => {
                let resolved = resolve()?;
                want(resolved.contains("nowhere: it ran here"), &format!("resolve says {resolved}"));
                want(at_source(&aside_name) == aside, "the source's copy is not as expected");
                want(!at_source(name), "the source's copy still has its name");
            }
            Self::XenByHand => {
                let resolved = resolve()?;
                want(resolved.contains("at the source"), &format!("resolve says {resolved}"));
                want(at_source(&aside_name) && !at_source(name), "the source did not put its copy aside");
                // What it says has to be done there: ssh HOST '…'
                let by_hand =
                    resolved.split('\'').find(|words| words.contains("xl rename")).context("no way back")?;
                Host::Xen.run(&format!("{{ {by_hand}; }} >/dev/null 2>&1"))?;
            }
            Self::Xen => {
                let resolved = resolve()?;
                // Nothing is written down before the guest has a name.
                let known = resolved.is_empty() || resolved.contains("at the source");
                want(known, &format!("resolve says {resolved}"));
            }
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
