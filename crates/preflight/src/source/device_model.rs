//! Which device model the domain has.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "device-model", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    match facts.key("platform/device-model") {
        Some("qemu_xen") => say.ok("QEMU (qemu-xen)"),
        Some("qemu_xen_traditional") => {
            let reason = "qemu-xen-traditional, whose state is of a form that is not read";
            say.refuse(reason, "boot the guest with device_model_version=\"qemu-xen\"");
        }
        other => {
            let reason = format!("the device model is {}", other.unwrap_or("not known"));
            say.warn(reason, "only qemu-xen has been tried");
        }
    }
}
