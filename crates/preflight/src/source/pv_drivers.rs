//! Whether the guest's kernel talks to Xen: what its drivers wrote into xenstore.
//!
//! A frontend that is connected has state 4 (XenbusStateConnected, xen/include/public/io/xenbus.h). Drivers that take
//! part in a suspend write `control/feature-suspend`, which libxl never does.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "pv-drivers", worst: Severity::Refusal, judge };

const CONNECTED: &str = "4";
/// Keys that libxl makes empty or not at all, and a guest's drivers fill.
const WRITTEN: [&str; 5] = [
    "control/feature-suspend",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-balloon",
    "attr/PVAddons/Installed",
];

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let connected: Vec<&str> = facts
        .xenstore
        .iter()
        .filter(|(key, value)| key.starts_with("device/") && key.ends_with("/state") && *value == CONNECTED)
        .map(|(key, _)| key.trim_end_matches("/state"))
        .collect();
    let written: Vec<&str> = WRITTEN.into_iter().filter(|key| facts.key(key).is_some()).collect();
    if connected.is_empty() && written.is_empty() {
        return say.ok("no paravirtual drivers");
    }
    let signs = [connected.as_slice(), written.as_slice()].concat().join(", ");
    let reason = format!("the guest uses Xen's paravirtual drivers: {signs} in xenstore");
    let remedy = "boot it without them before the move: `nopv` on a Linux kernel's command line (and \
                  xen_platform_pci=0 in its configuration), with an emulated disk (hda) and network card";
    say.refuse(reason, remedy);
}
