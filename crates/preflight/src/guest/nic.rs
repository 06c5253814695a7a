//! Network cards that exist for paravirtual drivers only.

use serde_json::Value;

use super::{list, text};
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Value> = Check { name: "nic", worst: Severity::Warning, judge };

fn judge(xl: &Value, say: &mut Say<'_>) {
    for nic in list(xl, "/nics").iter().filter(|nic| text(nic, "/nictype") == Some("vif")) {
        let reason = format!(
            "the network card {} has no emulated device (type=vif), and stays behind",
            text(nic, "/mac").unwrap_or("?")
        );
        say.warn(reason, "boot the guest with type=ioemu and a model for that card before the move");
    }
}
