use serde::{Deserialize, Serialize};

/// The 8254 interval timer, clocked at 1.193182 MHz.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pit {
    /// Channel 0 (interrupt 0), 1 (refresh), 2 (speaker).
    pub channels: [PitChannel; 3],
    /// The speaker gets channel 2's output.
    pub speaker_data_on: bool,
}

impl Pit {
    /// Input clock, Hz.
    pub const HZ: u64 = 1_193_182;
}

/// One channel of the interval timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitChannel {
    /// Reload value, 1 to 0x10000.
    pub count: u32,
    /// Count latched by a read-back or latch command.
    pub latched_count: u16,
    /// How much of the latched count is still to be read: 0 none, 1 LSB, 2 MSB, 3 both, 4 MSB of both.
    pub count_latched: u8,
    /// A status byte is latched.
    pub status_latched: bool,
    /// The latched status byte.
    pub status: u8,
    /// Byte that the next read gives, coded as `count_latched`.
    pub read_state: u8,
    /// Byte that the next write takes, coded likewise.
    pub write_state: u8,
    /// Low byte of a count half written.
    pub write_latch: u8,
    /// Access mode, coded likewise.
    pub rw_mode: u8,
    /// Counting mode 0 to 5; none when it was never programmed.
    pub mode: Option<u8>,
    /// Counts in decimal.
    pub bcd: bool,
    /// Gate input.
    pub gate: bool,
    /// Nanoseconds since the count was loaded, where the source knows the phase.
    pub elapsed_ns: Option<u64>,
}

/// The MC146818 clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rtc {
    /// Registers 0x00 to 0x0d: time, alarm, A, B, C, D.
    pub registers: [u8; 14],
    /// Index register.
    pub index: u8,
    /// Seconds by which the guest's clock is ahead of UTC, where the source knows.
    pub offset_seconds: Option<i64>,
}

/// The high precision event timer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hpet {
    /// Length of one tick, femtoseconds. The guest has read it and relies on it.
    pub period_fs: u64,
    /// General capabilities.
    pub capabilities: u64,
    /// General configuration: bit 0 counts, bit 1 legacy replacement.
    pub config: u64,
    /// Interrupt status.
    pub isr: u64,
    /// Main counter.
    pub counter: u64,
    /// The comparators.
    pub timers: Vec<HpetTimer>,
}

impl Hpet {
    /// The main counter runs.
    pub fn enabled(&self) -> bool {
        self.config & 1 != 0
    }

    /// The timers take the place of the interval timer and the clock on interrupts 0 and 8.
    pub fn legacy_replacement(&self) -> bool {
        self.config & 2 != 0
    }
}

/// One comparator of the high precision event timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HpetTimer {
    /// Configuration and capabilities.
    pub config: u64,
    /// Comparator.
    pub comparator: u64,
    /// Reload value in periodic mode, ticks.
    pub period: u64,
    /// FSB interrupt route.
    pub fsb: u64,
}

/// The ACPI power-management timer and the event registers beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmTimer {
    /// The counter at the instant of the save; 24 or 32 bits of it are visible.
    pub counter: u32,
    /// PM1 event status.
    pub pm1_status: u16,
    /// PM1 event enable.
    pub pm1_enable: u16,
    /// I/O port of the PM1 event block.
    pub io_base: u16,
}

impl PmTimer {
    /// Rate of the counter, Hz.
    pub const HZ: u64 = 3_579_545;
}
