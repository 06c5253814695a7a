//! Image formats, by libxl's names.

use serde_json::Value;

use super::{list, text};
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Value> = Check { name: "disk-format", worst: Severity::Warning, judge };

fn judge(xl: &Value, say: &mut Say<'_>) {
    for disk in list(xl, "/disks") {
        if text(disk, "/format") == Some("vhd") {
            let reason = format!(
                "disk {} is a VHD image, which QEMU calls vpc and handles differently",
                text(disk, "/vdev").unwrap_or("?")
            );
            say.warn(reason, "convert it to raw or qcow2 before the move (qemu-img convert)");
        }
    }
}
