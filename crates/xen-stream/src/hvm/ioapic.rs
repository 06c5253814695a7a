//! IOAPIC: the IO-APIC.

layout! {
    /// IOAPIC: pins 0 to 15 are ISA interrupts, 16 to 47 PCI.
    pub struct IoApic: Exact 400 {
        /// Address of its registers.
        base_address: u64,
        /// Register select.
        ioregsel: u32,
        /// Its APIC id.
        id: u32,
        /// Redirection entries, as the guest reads them.
        redirtbl: [u64; 48],
    }
}
