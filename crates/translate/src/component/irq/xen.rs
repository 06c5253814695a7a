//! Interrupt controllers and wires in Xen's HVM_CONTEXT: PIC, IOAPIC, PCI_IRQ, ISA_IRQ, PCI_LINK (`formats/xen/hvm.md`).

use hyperferry_vm_model::{Ioapic, IrqLines, PciLinks, Pic};
use hyperferry_xen_stream::hvm;

use crate::report::Report;

const STAGE: &str = "Xen -> model";

/// The pin of Xen's I/O APIC that a PCI device's INTx drives (xen/arch/x86/hvm/irq.c, hvm_pci_intx_gsi).
pub(crate) fn pci_intx_gsi(slot: u32, intx: u32) -> u32 {
    16 + ((slot * 4 + slot / 8 + intx) & 31)
}

/// Wire to model: one 8259.
pub(crate) fn normalise_pic(instance: u16, pic: &hvm::Pic, report: &mut Report) -> Pic {
    let (init, mode) = (pic.init_priority, pic.mode);
    let mode_bit = |bit: u32| mode >> bit & 1 == 1;
    report.record(STAGE, format_args!("HVM_CONTEXT PIC[{instance}]")).carried(&[
        "irr",
        "imr",
        "isr",
        "irq_base",
        "init_priority",
        "mode",
        "elcr",
        "int_output",
    ]);
    Pic {
        irr: pic.irr,
        imr: pic.imr,
        isr: pic.isr,
        irq_base: pic.irq_base,
        elcr: pic.elcr,
        init_state: init & 3,
        init4: init >> 2 & 1 == 1,
        single: init >> 3 & 1 == 1,
        priority_add: init >> 4,
        read_isr: mode_bit(0),
        poll: mode_bit(1),
        auto_eoi: mode_bit(2),
        rotate_on_auto_eoi: mode_bit(3),
        special_fully_nested: mode_bit(4),
        special_mask: mode_bit(5),
        int_output: pic.int_output & 1 == 1,
    }
}

/// Wire to model: the I/O APIC.
pub(crate) fn normalise_ioapic(ioapic: &hvm::IoApic, report: &mut Report) -> Ioapic {
    report.record(STAGE, "HVM_CONTEXT IOAPIC").carried(&["base_address", "ioregsel", "id", "redirtbl"]);
    Ioapic {
        base: ioapic.base_address,
        ioregsel: ioapic.ioregsel,
        id: ioapic.id,
        redirection: ioapic.redirtbl.to_vec(),
        requests: None,
    }
}

/// Wire to model: levels and routes.
pub(crate) fn normalise_lines(
    isa: Option<&hvm::IsaIrq>,
    pci: Option<&hvm::PciIrq>,
    link: Option<&hvm::PciLink>,
    report: &mut Report,
) -> (IrqLines, PciLinks) {
    let mut lines = IrqLines::default();
    let mut links = PciLinks::default();
    if let Some(record) = isa {
        lines.isa = (record.pad & 0xffff) as u16;
        report.record(STAGE, "HVM_CONTEXT ISA_IRQ").carried(&["pad"]);
    }
    if let Some(record) = pci {
        lines.pci = u128::from(record.pad[1]) << 64 | u128::from(record.pad[0]);
        report.record(STAGE, "HVM_CONTEXT PCI_IRQ").carried(&["pad"]);
    }
    if let Some(record) = link {
        links = PciLinks(record.route);
        report.record(STAGE, "HVM_CONTEXT PCI_LINK").carried(&["route"]);
    }
    (lines, links)
}
