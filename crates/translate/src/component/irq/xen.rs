//! Interrupt controllers and wires in Xen's HVM_CONTEXT: PIC, IOAPIC, PCI_IRQ, ISA_IRQ, PCI_LINK (`formats/xen/hvm.md`).

use hyperferry_vm_model::{Ioapic, IrqLines, PciLinks, Pic};
use hyperferry_xen_stream::hvm;

use crate::report::Report;

const STAGE: &str = "Xen -> model";
const BACK: &str = "model -> Xen";
/// A redirection entry that delivers nothing.
const MASKED: u64 = 1 << 16;

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

/// Model to wire: one 8259.
pub(crate) fn localise_pic(instance: u16, pic: &Pic, report: &mut Report) -> hvm::Pic {
    /// The line that joins slave and master, which Xen always takes for level-triggered.
    const CASCADE: u8 = 1 << 2;
    let master = instance == 0;
    let mode = [
        pic.read_isr,
        pic.poll,
        pic.auto_eoi,
        pic.rotate_on_auto_eoi,
        pic.special_fully_nested,
        pic.special_mask,
        master,
    ];
    // Outside initialization the two flags say nothing; Xen takes any bit for an initialization under way.
    let under_way = pic.init_state != 0;
    let init =
        pic.init_state & 3 | u8::from(under_way && pic.init4) << 2 | u8::from(under_way && pic.single) << 3;
    report
        .record(BACK, format_args!("irq.pic[{instance}]"))
        .carried(&["irr", "imr", "isr", "irq_base", "elcr", "init_state", "init4", "single", "priority_add"])
        .carried(&["read_isr", "poll", "auto_eoi", "rotate_on_auto_eoi", "special_fully_nested"])
        .carried(&["special_mask", "int_output"]);
    hvm::Pic {
        irr: pic.irr,
        imr: pic.imr,
        isr: pic.isr,
        irq_base: pic.irq_base,
        init_priority: init | pic.priority_add << 4,
        mode: mode.iter().enumerate().fold(0, |mode, (bit, set)| mode | u8::from(*set) << bit),
        elcr: if master { pic.elcr & 0xf8 | CASCADE } else { pic.elcr & 0xde },
        int_output: u8::from(pic.int_output && !under_way),
    }
}

/// Model to wire: the I/O APIC. Pins that the source lacks deliver nothing.
pub(crate) fn localise_ioapic(ioapic: &Ioapic, report: &mut Report) -> hvm::IoApic {
    let entry = |pin: usize| ioapic.redirection.get(pin).copied().unwrap_or(MASKED);
    let mut ledger = report.record(BACK, "irq.ioapic");
    ledger.carried(&["base", "ioregsel", "id", "redirection"]);
    ledger.derived("requests", "Xen asks the wires again");
    let record = hvm::IoApic {
        base_address: ioapic.base,
        ioregsel: ioapic.ioregsel,
        id: ioapic.id,
        redirtbl: std::array::from_fn(entry),
    };
    let (has, wanted) = (ioapic.redirection.len(), record.redirtbl.len());
    if has < wanted {
        ledger.defaulted(
            "redirection",
            format!("pins {has} to {} do not exist in the source: masked", wanted - 1),
        );
    }
    record
}

/// Model to wire: levels and routes.
pub(crate) fn localise_lines(
    lines: &IrqLines,
    links: PciLinks,
    report: &mut Report,
) -> (hvm::PciIrq, hvm::IsaIrq, hvm::PciLink) {
    report.record(BACK, "irq").carried(&["lines", "pci_links"]);
    let word = |shift: u32| u64::try_from(lines.pci >> shift & u128::from(u64::MAX)).unwrap_or(u64::MAX);
    // A route is an ISA interrupt; Xen refuses any other.
    let route = links.0.map(|route| if route < 16 { route } else { 0 });
    (hvm::PciIrq { pad: [word(0), word(64)] }, hvm::IsaIrq { pad: lines.isa.into() }, hvm::PciLink { route })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_that_the_source_lacks_deliver_nothing() {
        let ioapic = Ioapic { redirection: vec![0x31; 24], ..Ioapic::default() };
        let record = localise_ioapic(&ioapic, &mut Report::default());
        assert_eq!((record.redirtbl[23], record.redirtbl[24], record.redirtbl[47]), (0x31, MASKED, MASKED));
    }

    #[test]
    fn what_xen_would_refuse_of_a_pic_is_put_right() {
        // QEMU keeps ICW4's flag after initialization, and the cascade's line edge-triggered.
        let pic = Pic { init4: true, elcr: 0x0c, int_output: true, ..Pic::default() };
        let record = localise_pic(0, &pic, &mut Report::default());
        assert_eq!((record.init_priority, record.elcr, record.mode, record.int_output), (0, 0x0c, 0x40, 1));
        let under_way = Pic { init_state: 2, ..pic };
        let record = localise_pic(1, &under_way, &mut Report::default());
        assert_eq!((record.init_priority, record.elcr, record.mode, record.int_output), (6, 0x0c, 0, 0));
    }
}
