//! UEFI firmware: the destination starts with a BIOS.

use serde_json::Value;

use super::text;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Value> = Check { name: "firmware", worst: Severity::Warning, judge };

fn judge(xl: &Value, say: &mut Say<'_>) {
    if text(xl, "/b_info/type.hvm/bios") == Some("ovmf") {
        let reason = "the guest was booted by UEFI firmware (bios=\"ovmf\"), which has not been tried: its runtime \
                      services may fail, and at its next boot the guest finds a BIOS";
        say.warn(reason, "boot it with bios=\"seabios\" if its disk allows, or try a copy of it first");
    } else {
        say.ok("booted by a BIOS");
    }
}
