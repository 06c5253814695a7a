//! ISA_IRQ: the wires of ISA interrupts.

layout! {
    /// ISA_IRQ: asserted lines, one bit each.
    pub struct IsaIrq: Exact 8 {
        /// The lines; `pad` is the fixed-width view of the bitmap in the C union.
        pad: u64,
    }
}
