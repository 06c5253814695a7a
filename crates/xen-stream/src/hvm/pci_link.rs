//! PCI_LINK: the router from PCI INTx to ISA interrupts.

layout! {
    /// PCI_LINK: the PIIX links A to D.
    pub struct PciLink: Exact 8 {
        /// ISA interrupt of each link; 0 is none.
        route: [u8; 4] => pad0: 4,
    }
}
