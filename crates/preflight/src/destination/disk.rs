//! The guest's disks, under their names on this host.

use super::{Facts, surroundings::Fault};
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "disk", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    for disk in &facts.disks {
        let (vdev, path) = (&disk.vdev, &disk.path);
        match &disk.fault {
            None => say.ok(format!("{vdev}: {path}")),
            Some(Fault::Absent) => {
                let remedy = format!("say where it is with --map-disk {vdev}=PATH");
                say.refuse(format!("disk {vdev}: there is no {path} on this host"), remedy);
            }
            Some(Fault::Denied(why)) => {
                let how = if disk.writable { "read and write" } else { "read" };
                say.refuse(
                    format!("disk {vdev}: {path} cannot be opened to {how}: {why}"),
                    "correct its permissions",
                );
            }
            Some(Fault::Locked) => {
                let remedy =
                    "two guests on one disk destroy it: end the other, or map another disk with --map-disk";
                say.refuse(format!("disk {vdev}: {path} is locked by another QEMU"), remedy);
            }
        }
    }
}
