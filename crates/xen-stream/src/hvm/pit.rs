//! PIT: the 8254 timer.

layout! {
    /// PIT: three channels and the speaker gate.
    ///
    /// The phase of a channel is not carried: the receiver starts each at its full count.
    pub struct Pit: Exact 56 {
        /// Channels 0 to 2.
        channels: [PitChannel; 3],
        /// Whether the speaker is on.
        speaker_data_on: u32 => pad0: 4,
    }
}

layout! {
    /// One channel of the PIT.
    pub struct PitChannel: Exact 16 {
        /// Reload value, 1 to 0x10000.
        count: u32,
        /// Count latched for reading.
        latched_count: u16,
        /// How much of it was not read: 0 none, 1 low byte, 2 high byte, 3 and 4 both.
        count_latched: u8,
        /// Whether the status is latched.
        status_latched: u8,
        /// The status latched.
        status: u8,
        /// Next byte to read, coded as `count_latched`.
        read_state: u8,
        /// Next byte to write, coded as `count_latched`.
        write_state: u8,
        /// Low byte written, of two.
        write_latch: u8,
        /// Access mode: 1 low, 2 high, 3 both.
        rw_mode: u8,
        /// Mode 0 to 5; pre-4.19 wrote 0xff for a channel never programmed.
        mode: u8,
        /// Counting in BCD, which Xen does not support.
        bcd: u8,
        /// Gate input.
        gate: u8,
    }
}
