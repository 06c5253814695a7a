//! Xen's platform device, which paravirtual drivers begin with.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "platform-device", worst: Severity::Note, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    if facts.guest().vm.config.xen_platform {
        let reason =
            "the guest has Xen's platform device: its next kernel may load paravirtual drivers again";
        say.note(reason, "xen_platform_pci=0 in its configuration keeps it from that");
    } else {
        say.ok("no platform device");
    }
}
