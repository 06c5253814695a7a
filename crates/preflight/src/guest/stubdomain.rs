//! A device model in a domain of its own.

use serde_json::Value;

use super::flag;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Value> = Check { name: "stubdomain", worst: Severity::Warning, judge };

fn judge(xl: &Value, say: &mut Say<'_>) {
    if flag(xl, "/b_info/device_model_stubdomain") {
        let reason = "the device model runs in a stub domain, which has not been tried";
        say.warn(reason, "boot the guest with device_model_stubdomain_override=0 to be sure");
    }
}
