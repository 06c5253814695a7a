use serde::{Deserialize, Serialize};

/// One 8259 interrupt controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pic {
    /// Requests.
    pub irr: u8,
    /// Mask.
    pub imr: u8,
    /// In service.
    pub isr: u8,
    /// First vector.
    pub irq_base: u8,
    /// Level-triggered lines.
    pub elcr: u8,
    /// Which initialization word comes next, 0 when done.
    pub init_state: u8,
    /// ICW4 will come.
    pub init4: bool,
    /// No cascade.
    pub single: bool,
    /// Line of highest priority.
    pub priority_add: u8,
    /// Reads give ISR, not IRR.
    pub read_isr: bool,
    /// Poll mode.
    pub poll: bool,
    /// Ends interrupts by itself.
    pub auto_eoi: bool,
    /// Rotates priorities on automatic end of interrupt.
    pub rotate_on_auto_eoi: bool,
    /// Special fully nested mode.
    pub special_fully_nested: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// Output to the CPU is raised.
    pub int_output: bool,
}

/// An I/O APIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ioapic {
    /// Physical address of its registers.
    pub base: u64,
    /// Index register.
    pub ioregsel: u32,
    /// Id register, bits 27:24 of it.
    pub id: u32,
    /// Redirection entries, one a pin, in the data sheet's layout.
    pub redirection: Vec<u64>,
    /// Requests that no local APIC has taken yet, one bit a pin, where the source knows.
    pub requests: Option<u32>,
}

/// Routes of the PCI interrupt links A to D to ISA interrupts; 0 is no route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciLinks(pub [u8; 4]);

/// Levels of the interrupt wires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IrqLines {
    /// Bit n: ISA interrupt n is asserted.
    pub isa: u16,
    /// Bit 4 * device + pin: that device of PCI bus 0 asserts INTA to INTD.
    pub pci: u128,
}
