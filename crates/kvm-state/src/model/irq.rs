//! The 8259 pair and the I/O APIC.

use hyperferry_vm_model::{Ioapic, Irq, IrqLines, Pic};

use crate::fate::Fates;
use crate::state::{IoapicState, Irqchip, PicState};

/// Lines of the master and the slave that may be level-triggered.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];
/// ISA interrupt 2 is the cascade, not a wire. KVM pulses it: a stale level would swallow the first pulse.
const CASCADE: u16 = 1 << 2;
/// Pins of KVM's I/O APIC.
const PINS: usize = 24;
/// Redirection entry: delivery in progress (KVM delivers at once), trigger mode, mask.
const DELIVERY_STATUS: u64 = 1 << 12;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;

pub(super) fn localise(irq: &Irq, fates: &mut Fates) -> Irqchip {
    let [master, slave] = &irq.pic;
    let [isa_low, isa_high] = (irq.lines.isa & !CASCADE).to_le_bytes();
    let [master_mask, slave_mask] = ELCR_MASK;
    fates.carried(&["irq.pic"], "irqchip.pic_master, irqchip.pic_slave");
    for (index, pic) in irq.pic.iter().enumerate() {
        fates.derived(&format!("irq.pic[{index}].int_output"), "KVM computes it when it loads the chip");
        let note = if pic.single { "set: KVM always has both chips" } else { "KVM always has both chips" };
        fates.dropped(&format!("irq.pic[{index}].single"), note);
    }
    if irq.lines.isa & CASCADE == 0 {
        fates.carried(&["irq.lines.isa"], "last_irr of the two chips");
    } else {
        fates.derived("irq.lines.isa", "last_irr of the two chips; interrupt 2 is the cascade: 0");
    }
    fates.dropped("irq.lines.pci", "not part of KVM's state: the PCI wires lie in the VMM");
    fates.dropped("irq.pci_links", "not part of KVM's state: the PCI links lie in the VMM");
    Irqchip {
        pic_master: localise_pic(master, isa_low, master_mask),
        pic_slave: localise_pic(slave, isa_high, slave_mask),
        ioapic: localise_ioapic(&irq.ioapic, irq.lines.isa, fates),
    }
}

fn localise_pic(pic: &Pic, last_irr: u8, elcr_mask: u8) -> PicState {
    PicState {
        last_irr,
        irr: pic.irr,
        imr: pic.imr,
        isr: pic.isr,
        priority_add: pic.priority_add,
        irq_base: pic.irq_base,
        read_reg_select: pic.read_isr.into(),
        poll: pic.poll.into(),
        special_mask: pic.special_mask.into(),
        init_state: pic.init_state,
        auto_eoi: pic.auto_eoi.into(),
        rotate_on_auto_eoi: pic.rotate_on_auto_eoi.into(),
        special_fully_nested_mode: pic.special_fully_nested.into(),
        init4: pic.init4.into(),
        elcr: pic.elcr,
        elcr_mask,
    }
}

fn localise_ioapic(ioapic: &Ioapic, isa_lines: u16, fates: &mut Fates) -> IoapicState {
    fates.carried(&["irq.ioapic"], "irqchip.ioapic");
    let mut redirtbl = [MASKED; PINS];
    let mut irr = 0;
    for (pin, (place, entry)) in redirtbl.iter_mut().zip(&ioapic.redirection).enumerate() {
        *place = entry & !DELIVERY_STATUS;
        if entry & DELIVERY_STATUS != 0 {
            fates
                .derived(&format!("irq.ioapic.redirection[{pin}]"), "delivery in progress (bit 12): cleared");
        }
        // A level that is up must be seen again when the guest ends the interrupt.
        if entry & LEVEL != 0
            && u32::from(isa_lines & !CASCADE)
                .checked_shr(u32::try_from(pin).unwrap_or(32))
                .is_some_and(|lines| lines & 1 == 1)
        {
            irr |= 1 << pin;
        }
    }
    for (pin, entry) in ioapic.redirection.iter().enumerate().skip(PINS) {
        let state = if entry & MASKED == 0 { "in use" } else { "masked" };
        fates.dropped(
            &format!("irq.ioapic.redirection[{pin}]"),
            format!("{state} ({entry:#x}): KVM's I/O APIC has {PINS} pins"),
        );
    }
    if ioapic.redirection.len() < PINS {
        fates.defaulted(
            "irq.ioapic.redirection",
            format!("pins from {} on: masked", ioapic.redirection.len()),
        );
    }
    IoapicState { base_address: ioapic.base, ioregsel: ioapic.ioregsel, id: ioapic.id, irr, redirtbl }
}

pub(super) fn normalise(chips: &Irqchip, fates: &mut Fates) -> Irq {
    fates.carried(&["irqchip"], "irq");
    fates.derived("irqchip.ioapic.irr", "the levels of lines 0 to 15 are in irq.lines.isa");
    let high = chips.ioapic.irr & !0xffff;
    if high != 0 {
        fates.dropped("irqchip.ioapic.irr", format!("bits {high:#x}: PCI lines lie in the VMM"));
    }
    for (name, pic, mask) in
        [("pic_master", &chips.pic_master, ELCR_MASK[0]), ("pic_slave", &chips.pic_slave, ELCR_MASK[1])]
    {
        let note =
            if pic.elcr_mask == mask { "a constant".to_owned() } else { format!("{:#x}", pic.elcr_mask) };
        fates.dropped(&format!("irqchip.{name}.elcr_mask"), note);
    }
    let slave = normalise_pic(&chips.pic_slave, false);
    let master = normalise_pic(&chips.pic_master, true);
    Irq {
        pic: [master, slave],
        ioapic: Ioapic {
            base: chips.ioapic.base_address,
            ioregsel: chips.ioapic.ioregsel,
            id: chips.ioapic.id,
            redirection: chips.ioapic.redirtbl.to_vec(),
            requests: None,
        },
        lines: IrqLines {
            isa: u16::from_le_bytes([chips.pic_master.last_irr, chips.pic_slave.last_irr]) & !CASCADE,
            pci: 0,
        },
        ..Irq::default()
    }
}

fn normalise_pic(pic: &PicState, master: bool) -> Pic {
    Pic {
        irr: pic.irr,
        imr: pic.imr,
        isr: pic.isr,
        irq_base: pic.irq_base,
        elcr: pic.elcr,
        init_state: pic.init_state,
        init4: pic.init4 != 0,
        single: false,
        priority_add: pic.priority_add,
        read_isr: pic.read_reg_select != 0,
        poll: pic.poll != 0,
        auto_eoi: pic.auto_eoi != 0,
        rotate_on_auto_eoi: pic.rotate_on_auto_eoi != 0,
        special_fully_nested: pic.special_fully_nested_mode != 0,
        special_mask: pic.special_mask != 0,
        int_output: int_output(pic, master),
    }
}

/// Whether the chip asks for an interrupt: a request that is not masked and outranks everything in service.
fn int_output(pic: &PicState, master: bool) -> bool {
    // Rank 0 is the highest; 8 is nobody.
    let rank = |lines: u8| lines.rotate_right(u32::from(pic.priority_add & 7)).trailing_zeros();
    let nested = master && pic.special_fully_nested_mode != 0;
    let in_service = if nested { pic.isr & !(1 << 2) } else { pic.isr };
    rank(pic.irr & !pic.imr) < rank(in_service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_follows_rank() {
        let pic =
            |irr, imr, isr, priority_add| PicState { irr, imr, isr, priority_add, ..PicState::default() };
        assert!(!int_output(&pic(0, 0, 0, 0), true));
        assert!(int_output(&pic(0b1000, 0, 0, 0), true));
        assert!(!int_output(&pic(0b1000, 0b1000, 0, 0), true));
        assert!(!int_output(&pic(0b1000, 0, 0b0001, 0), true), "line 0 outranks line 3");
        assert!(int_output(&pic(0b1000, 0, 0b0001, 1), true), "rotated: line 0 comes last");
        let nested = PicState { special_fully_nested_mode: 1, ..pic(0b100, 0, 0b100, 0) };
        assert!(int_output(&nested, true));
        assert!(!int_output(&nested, false));
    }

    #[test]
    fn a_level_that_is_up_shows_at_its_pin() {
        let mut irq = Irq::default();
        irq.ioapic.redirection = vec![MASKED; 48];
        irq.ioapic.redirection[9] = LEVEL | 0x39;
        irq.ioapic.redirection[10] = 0x3a;
        irq.ioapic.redirection[2] = LEVEL | 0x32;
        irq.lines.isa = 1 << 9 | 1 << 10 | CASCADE;
        let mut fates = Fates::default();
        let chips = localise(&irq, &mut fates);
        assert_eq!(chips.ioapic.irr, 1 << 9);
        assert_eq!((chips.pic_master.last_irr, chips.pic_slave.last_irr), (0, 0b110));
        assert_eq!(fates.into_list().iter().filter(|fate| fate.note.contains("24 pins")).count(), 24);
    }
}
