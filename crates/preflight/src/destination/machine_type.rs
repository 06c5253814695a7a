//! The machine type that was asked for.

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "machine-type", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let Some(qemu) = facts.qemu() else { return };
    let machine = &facts.options.machine;
    if !qemu.machines.contains(machine) {
        let reason = format!("this QEMU has no machine type {machine}");
        return say
            .refuse(reason, "name one of `qemu-system-x86_64 -machine help` with --machine, an i440FX `pc`");
    }
    if machine != "pc" && !machine.starts_with("pc-i440fx-") {
        let reason = format!("{machine} is no i440FX machine, as Xen gives its guests");
        return say.refuse(reason, "leave --machine out, or name one that begins with pc-i440fx-");
    }
    say.ok(machine);
}
