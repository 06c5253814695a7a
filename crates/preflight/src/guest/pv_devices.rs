//! Devices that only Xen has: they have no counterpart, and are left behind.

use serde_json::Value;

use super::list;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Value> = Check { name: "pv-devices", worst: Severity::Warning, judge };

/// Lists of libxl's configuration, and what is in them.
const KINDS: [(&str, &str); 9] = [
    ("vtpms", "a virtual TPM"),
    ("p9s", "a 9pfs share"),
    ("pvcallsifs", "PV calls"),
    ("vdispls", "a PV display"),
    ("vsnds", "a PV sound card"),
    ("vfbs", "a PV framebuffer"),
    ("usbctrls", "a PV USB controller"),
    ("channels", "a channel"),
    ("dtdevs", "a device-tree device"),
];

fn judge(xl: &Value, say: &mut Say<'_>) {
    for (key, what) in KINDS.iter().filter(|(key, _)| !list(xl, &format!("/{key}")).is_empty()) {
        let reason = format!("the guest has {what} ({key}), which stays behind");
        say.warn(reason, "make sure that the guest can do without it, or remove it before the move");
    }
}
