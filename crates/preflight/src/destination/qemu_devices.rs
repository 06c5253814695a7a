//! Devices that QEMU needs for this guest; distributions pack some of them apart.

use std::collections::BTreeSet;

use hyperferry_translate::qemu::args;
use hyperferry_vm_model::Vm;

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "qemu-devices", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let Some(qemu) = facts.qemu() else { return };
    let bare = Vm::default();
    let arguments = args::command_line(facts.guest.as_ref().map_or(&bare, |guest| &guest.vm), &facts.options);
    let devices = arguments.windows(2).filter_map(|pair| match pair {
        [option, device] if option == "-device" => device.split(',').next(),
        _ => None,
    });
    let missing: BTreeSet<_> = devices.filter(|device| !qemu.devices.contains(*device)).collect();
    if missing.is_empty() {
        return say.ok("all that the guest's machine needs");
    }
    let missing = missing.into_iter().collect::<Vec<_>>().join(", ");
    let remedy =
        "install the packages of QEMU that bring them (modules), or another QEMU, and name it with --qemu";
    say.refuse(format!("this QEMU lacks devices of the guest: {missing}"), remedy);
}
