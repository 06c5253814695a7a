//! QEMU's program and its version.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "qemu", worst: Severity::Refusal, judge };

/// The oldest version that has been tried.
const OLDEST: (u32, u32) = (7, 2);

fn judge(facts: &Facts, say: &mut Say<'_>) {
    match &facts.qemu {
        None => {}
        Some(Err(why)) => {
            let remedy = "install it (Debian: apt install qemu-system-x86), or name one with --qemu PATH";
            say.refuse(format!("QEMU cannot be used: {why}"), remedy);
        }
        Some(Ok(qemu)) if (qemu.version.major, qemu.version.minor) < OLDEST => {
            let (major, minor) = OLDEST;
            let reason = format!(
                "QEMU {} is older than {major}.{minor}, the oldest that has been tried",
                qemu.version
            );
            say.warn(reason, "install a newer one, or try it with a copy of a guest first");
        }
        Some(Ok(qemu)) => say.ok(format!("QEMU {}", qemu.version)),
    }
}
