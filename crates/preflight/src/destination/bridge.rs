//! The networks of the guest's cards.

use std::collections::BTreeSet;

use hyperferry_translate::qemu::args;

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "bridge", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let Some(guest) = &facts.guest else { return };
    let unmapped: BTreeSet<_> = args::unmapped_bridges(&guest.vm, &facts.options).collect();
    for bridge in unmapped {
        let reason = format!("a network card was on bridge {bridge}, and will be left unconnected");
        say.warn(reason, format!("say which bridge stands in for it: --map-bridge {bridge}=HERE"));
    }
    let cards = guest.vm.config.nics.iter().filter(|nic| nic.emulated);
    let mapped: BTreeSet<_> =
        cards.filter_map(|nic| facts.options.bridges.get(nic.bridge.as_ref()?)).collect();
    for bridge in mapped {
        if facts.bridges.contains(bridge) {
            say.ok(bridge);
        } else {
            say.refuse(
                format!("there is no bridge {bridge} on this host"),
                "make it, or name another with --map-bridge",
            );
        }
    }
}
