//! Interrupt controllers and wires in QEMU's stream: `i8259`, `ioapic`, and the routes in `PIIX3` and `PCIBUS`
//! (`formats/qemu/sections.md`).
//!
//! Xen wires the INTx pins of PCI devices to I/O APIC pins 16 to 47; QEMU's `pc` machine has 24 pins and wires them
//! through PIIX3's four PIRQ routes to ISA interrupts. A device's redirection entry therefore *moves* to the pin
//! that its PIRQ reaches, with the vector it had: the guest acknowledges by vector and notices nothing. What the
//! guest writes to the old pin later goes nowhere, and the report says so.

use hyperferry_qemu_stream::{Section, Tree};
use hyperferry_vm_model::{Device, Ioapic, Irq, PciAddress, PciLinks, Pic};

use super::xen::pci_intx_gsi;
use crate::{
    Result,
    component::fields::Fields,
    refusal::{self, Policy},
    report::{Report, Severity},
};

const STAGE: &str = "model -> QEMU";
/// Pins of QEMU's I/O APIC.
const PINS: usize = 24;
/// A redirection entry that delivers nothing.
const MASKED: u64 = 1 << 16;
/// Delivery status, read-only.
const DELIVERY_STATUS: u64 = 1 << 12;
/// A PIRQ route that leads nowhere.
const NO_ROUTE: u8 = 0x80;
/// ISA interrupts that a PIRQ may take, best first: free on a PC without ISA cards. 9 is ACPI's.
const FREE_ISA_IRQS: [u8; 4] = [11, 10, 5, 7];

/// The line on which the slave reaches the master; no device has it.
pub(crate) const CASCADE: u16 = 1 << 2;
/// Where every `pc` has its I/O APIC.
const IOAPIC_BASE: u64 = 0xfec0_0000;

/// Wire to model: section `ioapic`, and what is left of it.
pub(crate) fn normalise_ioapic(section: &Section, report: &mut Report) -> Result<(Ioapic, Device)> {
    let mut fields = Fields::of(section);
    let ioapic = Ioapic {
        base: IOAPIC_BASE,
        ioregsel: fields.number("ioregsel")?,
        id: fields.number("id")?,
        redirection: fields.numbers::<u64, PINS>("ioredtbl")?.to_vec(),
        requests: Some(fields.number("irr")?),
    };
    Ok((ioapic, fields.finish(section, report)))
}

/// Wire to model: one `i8259` section, the levels of its eight inputs, and what is left of it.
pub(crate) fn normalise_pic(section: &Section, report: &mut Report) -> Result<(Pic, u8, Device)> {
    let mut fields = Fields::of(section);
    let mut pic = Pic {
        irr: fields.number("irr")?,
        imr: fields.number("imr")?,
        isr: fields.number("isr")?,
        irq_base: fields.number("irq_base")?,
        elcr: fields.number("elcr")?,
        init_state: fields.number("init_state")?,
        init4: fields.flag("init4")?,
        single: fields.flag("single_mode")?,
        priority_add: fields.number("priority_add")?,
        read_isr: fields.flag("read_reg_select")?,
        poll: fields.flag("poll")?,
        auto_eoi: fields.flag("auto_eoi")?,
        rotate_on_auto_eoi: fields.flag("rotate_on_auto_eoi")?,
        special_fully_nested: fields.flag("special_fully_nested_mode")?,
        special_mask: fields.flag("special_mask")?,
        int_output: false,
    };
    pic.int_output = raises_output(&pic, section.instance_id == 0);
    let levels = fields.number("last_irr")?;
    Ok((pic, levels, fields.finish(section, report)))
}

/// Whether a request is of higher priority than all that is in service (8259A data sheet; hw/intc/i8259.c, pic_get_irq).
fn raises_output(pic: &Pic, master: bool) -> bool {
    let priority = |lines: u8| lines.rotate_right(u32::from(pic.priority_add & 7)).trailing_zeros();
    let mut in_service = pic.isr;
    if pic.special_mask {
        in_service &= !pic.imr;
    }
    if pic.special_fully_nested && master {
        in_service &= !(1 << 2);
    }
    priority(pic.irr & !pic.imr) < priority(in_service)
}

/// The routes in PIIX3's configuration space, as the model numbers links: a link's number is (slot + pin) & 3 there,
/// and (slot + pin - 1) & 3 on QEMU.
pub(crate) fn normalise_links(bridge: &[u8]) -> PciLinks {
    let route = |link: usize| bridge.get(0x60 + (link + 3) % 4).and_then(|route| leads_to(*route));
    PciLinks(std::array::from_fn(|link| route(link).unwrap_or(0)))
}

/// The ISA interrupt that a PIRQ route leads to.
pub(crate) fn leads_to(route: u8) -> Option<u8> {
    (route & NO_ROUTE == 0).then_some(route & 0xf)
}

/// A PCI device's interrupt pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IntxPin {
    pub(crate) address: PciAddress,
    /// 0 is INTA.
    pub(crate) pin: u8,
    /// The device is asserting it.
    pub(crate) asserted: bool,
}

impl IntxPin {
    /// The PIRQ that the pin drives on QEMU's `pc` (hw/isa/piix.c, pci_slot_get_pirq).
    fn pirq(self) -> usize {
        (usize::from(self.address.slot) + usize::from(self.pin) + 3) % 4
    }
}

/// How the interrupts of PCI devices reach the guest on QEMU's `pc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wiring {
    /// PIIX3 configuration registers 0x60 to 0x63.
    pub(crate) routes: [u8; 4],
    /// Number of devices that assert each PIRQ.
    pub(crate) levels: [u32; 4],
    /// The 24 redirection entries.
    pub(crate) redirection: [u64; PINS],
}

/// Finds a wiring that delivers each device's interrupt with the vector it had.
pub(crate) fn wire(irq: &Irq, pins: &[IntxPin], policy: &Policy, report: &mut Report) -> Wiring {
    let entry = |pin: usize| irq.ioapic.redirection.get(pin).copied().unwrap_or(MASKED);
    let mut wiring = Wiring {
        // A link's number is (slot + pin) & 3 on Xen and (slot + pin - 1) & 3 on QEMU.
        routes: std::array::from_fn(|pirq| match irq.pci_links.0.get((pirq + 1) % 4) {
            Some(0) | None => NO_ROUTE,
            Some(route) => *route,
        }),
        levels: [0; 4],
        redirection: std::array::from_fn(|pin| entry(pin) & !DELIVERY_STATUS),
    };
    // A guest of a `pc` is wired already.
    let wired = irq.ioapic.redirection.len() <= PINS;
    let mut moved: [Option<u64>; 4] = [None; 4];
    for pin in pins {
        let pirq = pin.pirq();
        let gsi = pci_intx_gsi(pin.address.slot.into(), pin.pin.into()) as usize;
        let active = entry(gsi) & !DELIVERY_STATUS;
        if let Some(level) = wiring.levels.get_mut(pirq) {
            *level += u32::from(pin.asserted);
        }
        if wired || !in_use(active) {
            continue;
        }
        match moved.get(pirq).copied().flatten() {
            Some(other) if other == active => continue,
            Some(_) => {
                let what = format!(
                    "PCI device {} and another one share QEMU's PIRQ {} and have different vectors",
                    pin.address,
                    ['A', 'B', 'C', 'D'].get(pirq).unwrap_or(&'?')
                );
                policy.refuse(report, refusal::INTX, what, "remove one of the devices before the move");
                continue;
            }
            None => {}
        }
        let route = wiring.routes.get(pirq).copied().unwrap_or(NO_ROUTE);
        let free = |irq: &u8| !in_use(entry(usize::from(*irq))) && !wiring.routes.contains(irq);
        let own = (route < 16 && !in_use(entry(usize::from(route)))).then_some(route);
        let Some(target) = own.or_else(|| FREE_ISA_IRQS.into_iter().find(free)) else {
            let what = format!("no ISA interrupt is free to carry INTx of PCI device {}", pin.address);
            policy.refuse(report, refusal::INTX, what, "remove the device before the move");
            continue;
        };
        if let (Some(route), Some(to), Some(moved)) = (
            wiring.routes.get_mut(pirq),
            wiring.redirection.get_mut(usize::from(target)),
            moved.get_mut(pirq),
        ) {
            *route = target;
            *to = active;
            *moved = Some(active);
        }
        let what = format!(
            "INTx of PCI device {} moved from I/O APIC pin {gsi} to pin {target}, vector {:#x}",
            pin.address,
            active & 0xff
        );
        let remedy =
            "the interrupt works; what the guest later writes to the old pin (affinity, mask) has no effect";
        report.find(refusal::INTX.name, Severity::Warning, what, remedy);
    }
    report_lost_pins(irq, pins, report);
    wiring
}

/// A pin that the guest uses: not masked, with a vector that can be delivered.
fn in_use(entry: u64) -> bool {
    entry & MASKED == 0 && entry & 0xff >= 0x10
}

fn report_lost_pins(irq: &Irq, pins: &[IntxPin], report: &mut Report) {
    let mut ledger = report.record(STAGE, "irq.ioapic");
    ledger
        .carried(&["ioregsel", "id"])
        .derived("redirection", "pins 0 to 23, and PCI devices' entries at their new pins");
    ledger.derived("base", "0xfec00000 on both");
    for (gsi, entry) in irq.ioapic.redirection.iter().enumerate().skip(PINS) {
        let device =
            pins.iter().any(|pin| pci_intx_gsi(pin.address.slot.into(), pin.pin.into()) as usize == gsi);
        if in_use(*entry) && !device {
            ledger.dropped(
                &format!("redirection[{gsi}]"),
                format!("QEMU's I/O APIC has {PINS} pins, and no device drives this one (entry {entry:#x})"),
            );
        }
    }
}

/// Model to wire: section `ioapic`.
pub(crate) fn localise_ioapic(
    ioapic: &Ioapic,
    wiring: &Wiring,
    isa_lines: u16,
    tree: &mut Tree,
) -> Result<()> {
    tree.set_u64("id", u64::from(ioapic.id & 0xff))?;
    tree.set_u64("ioregsel", u64::from(ioapic.ioregsel & 0xff))?;
    let mut irr = u64::from(isa_lines);
    for (pirq, route) in wiring.routes.iter().enumerate() {
        if *route < 16 && wiring.levels.get(pirq).is_some_and(|level| *level > 0) {
            irr |= 1 << route;
        }
    }
    // Only level-triggered pins keep a request that is not in the local APIC yet.
    for (pin, entry) in wiring.redirection.iter().enumerate() {
        if entry >> 15 & 1 == 0 {
            irr &= !(1 << pin);
        }
        tree.set_u64_at("ioredtbl", pin, *entry)?;
    }
    tree.set_u64("irr", ioapic.requests.map_or(irr, u64::from))?;
    Ok(())
}

/// Model to wire: one `i8259` section. `lines` are the levels of its eight inputs.
pub(crate) fn localise_pic(
    pic: &Pic,
    master: bool,
    lines: u8,
    tree: &mut Tree,
    report: &mut Report,
) -> Result<()> {
    tree.set_u64("last_irr", lines.into())?;
    tree.set_u64("irr", pic.irr.into())?;
    tree.set_u64("imr", pic.imr.into())?;
    tree.set_u64("isr", pic.isr.into())?;
    tree.set_u64("priority_add", pic.priority_add.into())?;
    tree.set_u64("irq_base", pic.irq_base.into())?;
    tree.set_u64("read_reg_select", pic.read_isr.into())?;
    tree.set_u64("poll", pic.poll.into())?;
    tree.set_u64("special_mask", pic.special_mask.into())?;
    tree.set_u64("init_state", pic.init_state.into())?;
    tree.set_u64("auto_eoi", pic.auto_eoi.into())?;
    tree.set_u64("rotate_on_auto_eoi", pic.rotate_on_auto_eoi.into())?;
    tree.set_u64("special_fully_nested_mode", pic.special_fully_nested.into())?;
    tree.set_u64("init4", pic.init4.into())?;
    tree.set_u64("single_mode", pic.single.into())?;
    // Lines that are always edge-triggered; Xen forces the cascade's bit on, QEMU has it off.
    tree.set_u64("elcr", u64::from(pic.elcr & if master { 0xf8 } else { 0xde }))?;
    report
        .record(STAGE, format_args!("irq.pic[{}]", u8::from(!master)))
        .carried(&[
            "irr",
            "imr",
            "isr",
            "irq_base",
            "elcr",
            "init_state",
            "init4",
            "single",
            "priority_add",
            "read_isr",
            "poll",
            "auto_eoi",
            "rotate_on_auto_eoi",
            "special_fully_nested",
            "special_mask",
        ])
        .derived("int_output", "computed again from requests and mask");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn irq(entries: &[(usize, u64)]) -> Irq {
        let mut redirection = vec![MASKED; 48];
        for (pin, entry) in entries {
            redirection[*pin] = *entry;
        }
        Irq { ioapic: Ioapic { redirection, ..Ioapic::default() }, ..Irq::default() }
    }

    fn nic(slot: u8) -> IntxPin {
        IntxPin { address: PciAddress { slot, function: 0 }, pin: 0, asserted: false }
    }

    #[test]
    fn an_entry_moves_with_its_vector() {
        // Slot 3, INTA: pin 28 on Xen, PIRQ C on QEMU.
        let irq = irq(&[(28, 0x0100_0000_0000_a022)]);
        let mut report = Report::default();
        let wiring = wire(&irq, &[nic(3)], &Policy::default(), &mut report);
        assert_eq!(wiring.routes, [NO_ROUTE, NO_ROUTE, 11, NO_ROUTE]);
        assert_eq!(wiring.redirection[11], 0x0100_0000_0000_a022);
        assert_eq!(report.refusals().count(), 0);
        assert!(report.findings[0].what.contains("pin 28 to pin 11, vector 0x22"));
    }

    #[test]
    fn an_interrupt_in_use_is_not_taken() {
        let irq = irq(&[(28, 0xa022), (11, 0x31), (10, 0x32)]);
        let wiring = wire(&irq, &[nic(3)], &Policy::default(), &mut Report::default());
        assert_eq!(wiring.routes[2], 5);
        assert_eq!((wiring.redirection[11], wiring.redirection[5]), (0x31, 0xa022));
    }

    #[test]
    fn two_vectors_on_one_pirq_are_refused() {
        let irq = irq(&[(28, 0xa022), (pci_intx_gsi(7, 0) as usize, 0xa033)]);
        let mut report = Report::default();
        wire(&irq, &[nic(3), nic(7)], &Policy::default(), &mut report);
        assert_eq!(report.refusals().map(|finding| finding.name).collect::<Vec<_>>(), ["intx"]);
    }

    #[test]
    fn links_of_the_interrupt_controller_pair_follow() {
        let mut irq = irq(&[]);
        irq.pci_links.0 = [5, 10, 11, 0];
        let wiring = wire(&irq, &[], &Policy::default(), &mut Report::default());
        assert_eq!(wiring.routes, [10, 11, NO_ROUTE, 5]);
    }
}
