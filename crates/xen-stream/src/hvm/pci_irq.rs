//! PCI_IRQ: the wires of PCI INTx.

layout! {
    /// PCI_IRQ: asserted wires of bus 0, bit `device * 4 + INTx`.
    pub struct PciIrq: Exact 16 {
        /// The wires, 64 a word; `pad` is the fixed-width view of the bitmap in the C union.
        pad: [u64; 2],
    }
}
