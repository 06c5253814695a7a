//! RTC: the real-time clock.

layout! {
    /// RTC: the clock registers; CMOS bytes from 0x0e on live in the device model.
    ///
    /// Pre-4.14 didn't have `rtc_offset`: 16 bytes.
    pub struct Rtc: AtMost 24 {
        /// CMOS bytes 0x00 to 0x0d.
        cmos_data: [u8; 14],
        /// Index last written to port 0x70.
        cmos_index: u8 => pad0: 1,
        /// Guest clock less the host's UTC, in seconds.
        rtc_offset: i64,
    }
}
