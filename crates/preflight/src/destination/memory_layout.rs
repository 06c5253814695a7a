//! Where the guest's RAM lies.

use hyperferry_translate::qemu::args;

use super::Facts;
use crate::{Check, Say, Severity};

pub(super) const CHECK: Check<Facts> = Check { name: "memory-layout", worst: Severity::Refusal, judge };

fn judge(facts: &Facts, say: &mut Say<'_>) {
    let Some(guest) = &facts.guest else { return };
    let memory = &guest.vm.memory;
    if args::can_lay_out(memory) {
        return say.ok(format!(
            "{} MiB below {:#x}, {} MiB above 4 GiB",
            memory.low_end >> 20,
            memory.low_end,
            memory.high_size() >> 20
        ));
    }
    let reason = format!(
        "the guest's RAM reaches {:#x} below 4 GiB, and QEMU's pc machine ends it at 0xc0000000 at the latest when some \
         lies above",
        memory.low_end
    );
    say.refuse(reason, "set mmio_hole=1024 in the guest's configuration and boot it again before the move");
}
