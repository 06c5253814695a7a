//! What becomes of ticks that come due while a vCPU does not run.

use serde_json::Value;

use super::text;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Value> = Check { name: "timer-mode", worst: Severity::Note, judge };

fn judge(xl: &Value, say: &mut Say<'_>) {
    let mode = text(xl, "/b_info/timer_mode").or_else(|| text(xl, "/b_info/type.hvm/timer_mode"));
    if let Some(mode @ ("delay_for_missed_ticks" | "one_missed_tick_pending")) = mode {
        let reason = format!(
            "timer_mode={mode}: under KVM missed ticks follow KVM's own policy, so a guest that counts ticks may drift"
        );
        say.note(reason, "keep its time with NTP");
    }
}
