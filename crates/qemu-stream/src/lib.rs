//! The QEMU migration stream: framing, RAM, device sections driven by vmstate schemas.
