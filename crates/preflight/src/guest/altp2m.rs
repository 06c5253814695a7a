//! Alternate memory views, which a guest or its monitor switches.

use serde_json::Value;

use super::{flag, text};
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Value> = Check { name: "altp2m", worst: Severity::Warning, judge };

fn judge(xl: &Value, say: &mut Say<'_>) {
    let mode = text(xl, "/b_info/altp2m").filter(|mode| *mode != "disabled");
    if mode.is_some() || flag(xl, "/b_info/type.hvm/altp2m") {
        let reason = "alternate memory views are on (altp2m); whatever uses them stays behind";
        say.warn(reason, "end it, and boot the guest with altp2m=\"disabled\"");
    }
}
