//! Interrupts that were on their way into a vCPU when it was stopped.
//!
//! An interrupt controller has handed the vector over and counts it as in service; the CPU has not taken it yet. KVM
//! gets such a vector with the vCPU's events. QEMU's emulation has no place for it: there the acknowledgement is
//! taken back, and the controller hands the same vector over again.

use hyperferry_vm_model::{EventKind, Irq, Vcpu};

use crate::report::Report;

/// Takes back what was acknowledged and not delivered, so that the controllers hand it over again.
pub(crate) fn take_back(vcpus: &mut [Vcpu], irq: &mut Irq, report: &mut Report) {
    for vcpu in vcpus {
        let Some(event) = vcpu.pending_event.filter(|event| event.kind == EventKind::ExternalInterrupt)
        else {
            continue;
        };
        let vector = event.vector;
        let from = if take_back_from_lapic(vcpu, vector) {
            "its local APIC"
        } else if take_back_from_pic(irq, vector) {
            "the 8259 pair"
        } else {
            continue;
        };
        vcpu.pending_event = None;
        report.record("model -> QEMU", format_args!("vcpu[{}]", vcpu.id)).derived(
            "pending_event",
            format!("vector {vector:#x} given back to {from}, which delivers it again"),
        );
    }
}

fn take_back_from_lapic(vcpu: &mut Vcpu, vector: u8) -> bool {
    let (word, bit) = (usize::from(vector / 32), 1_u32 << (vector % 32));
    let lapic = &mut vcpu.lapic;
    let (Some(isr), Some(irr)) = (lapic.isr.get_mut(word), lapic.irr.get_mut(word)) else { return false };
    if *isr & bit == 0 {
        return false;
    }
    *isr &= !bit;
    *irr |= bit;
    true
}

fn take_back_from_pic(irq: &mut Irq, vector: u8) -> bool {
    let Some((index, line)) = irq.pic.iter().enumerate().find_map(|(index, pic)| {
        let line = vector.checked_sub(pic.irq_base).filter(|line| *line < 8)?;
        Some((index, line))
    }) else {
        return false;
    };
    for (number, pic) in irq.pic.iter_mut().enumerate() {
        // The slave's interrupt is in service in the master too, on the line that joins them.
        let line = if number == index { line } else { 2 };
        if number == index || (index == 1 && number == 0) {
            pic.isr &= !(1 << line);
            pic.irr |= 1 << line;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use hyperferry_vm_model::{PendingEvent, Pic};

    use super::*;

    fn vcpu(vector: u8) -> Vcpu {
        let event = PendingEvent { kind: EventKind::ExternalInterrupt, vector, error_code: None };
        Vcpu { pending_event: Some(event), ..Vcpu::default() }
    }

    /// As Xen 4.17 saved a vCPU that was halted for another's interrupt: vector 0x40 pending and in service.
    #[test]
    fn the_local_apic_gets_its_vector_back() {
        let mut vcpu = vcpu(0x40);
        vcpu.lapic.isr[2] = 1;
        let mut vcpus = [vcpu];
        take_back(&mut vcpus, &mut Irq::default(), &mut Report::default());
        assert_eq!((vcpus[0].lapic.isr[2], vcpus[0].lapic.irr[2]), (0, 1));
        assert_eq!(vcpus[0].pending_event, None);
    }

    #[test]
    fn the_slave_gets_its_line_back_through_the_master() {
        let pic = |irq_base, isr| Pic { irq_base, isr, ..Pic::default() };
        let mut irq = Irq { pic: [pic(0x30, 4), pic(0x38, 0x40)], ..Irq::default() };
        let mut vcpus = [vcpu(0x3e)];
        take_back(&mut vcpus, &mut irq, &mut Report::default());
        assert_eq!((irq.pic[0].isr, irq.pic[0].irr, irq.pic[1].isr, irq.pic[1].irr), (0, 4, 0, 0x40));
    }

    #[test]
    fn a_vector_of_nobody_stays() {
        let mut vcpus = [vcpu(0x90)];
        take_back(&mut vcpus, &mut Irq::default(), &mut Report::default());
        assert!(vcpus[0].pending_event.is_some());
    }
}
