//! PIC: one of the two 8259A interrupt controllers.

layout! {
    /// PIC: instance 0 is the master, 1 the slave.
    pub struct Pic: Exact 8 {
        /// Interrupt request lines.
        irr: u8,
        /// Interrupt mask.
        imr: u8,
        /// Interrupts in service.
        isr: u8,
        /// Line x raises vector `irq_base + x`.
        irq_base: u8,
        /// 3:0 `init_state`, 7:4 `priority_add`.
        init_priority: u8,
        /// 0 `readsel_isr`, 1 `poll`, 2 `auto_eoi`, 3 `rotate_on_auto_eoi`, 4 `special_fully_nested_mode`,
        /// 5 `special_mask_mode`, 6 `is_master`.
        mode: u8,
        /// Edge or level of each line.
        elcr: u8,
        /// The INT output.
        int_output: u8,
    }
}

impl Pic {
    /// Where the ICW sequence stands: 0 none; 1:0 the next ICW less one, 2 ICW4 wanted, 3 single.
    pub fn init_state(&self) -> u8 {
        self.init_priority & 0xf
    }

    /// The line with the highest priority.
    pub fn priority_add(&self) -> u8 {
        self.init_priority >> 4
    }

    /// [`Pic::mode`]: reads of the command port give ISR.
    pub const READSEL_ISR: u8 = 1 << 0;
    /// [`Pic::mode`]: the next read polls.
    pub const POLL: u8 = 1 << 1;
    /// [`Pic::mode`]: an acknowledge ends the interrupt.
    pub const AUTO_EOI: u8 = 1 << 2;
    /// [`Pic::mode`]: and rotates the priorities.
    pub const ROTATE_ON_AUTO_EOI: u8 = 1 << 3;
    /// [`Pic::mode`]: the slave does not count as in service.
    pub const SPECIAL_FULLY_NESTED_MODE: u8 = 1 << 4;
    /// [`Pic::mode`]: masked lines do not count as in service.
    pub const SPECIAL_MASK_MODE: u8 = 1 << 5;
    /// [`Pic::mode`]: this is the master.
    pub const IS_MASTER: u8 = 1 << 6;
}
