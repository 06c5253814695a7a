//! How the guest sees the time-stamp counter.

use serde_json::Value;

use super::text;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Value> = Check { name: "tsc-mode", worst: Severity::Warning, judge };

fn judge(xl: &Value, say: &mut Say<'_>) {
    match text(xl, "/b_info/tsc_mode") {
        Some("always_emulate") => {
            let reason = "tsc_mode=always_emulate: the guest reads Xen's own clock, and the processor's after the move";
            say.warn(reason, "a guest that needs this takes its time from elsewhere (clocksource=acpi_pm)");
        }
        Some("native_paravirt") => {
            let reason =
                "tsc_mode=native_paravirt: programs may correct the TSC by values that only Xen updates";
            say.warn(reason, "boot the guest with tsc_mode=\"default\" before the move");
        }
        _ => {}
    }
}
