//! The platform shim: a library that is preloaded into stock QEMU on a KVM host and gives a guest from Xen the clocks
//! that it has measured there.
//!
//! ```text
//! QEMU --ioctl--> hook --> KVM
//!                  |
//!                  +-- KVM_CREATE_IRQCHIP: then KVM_CAP_X86_APIC_BUS_CYCLES_NS   (the local APIC's timer)
//!                  +-- KVM_RUN leaves with an access to 0xfed00000: answered here (the HPET)
//! ```
//!
//! * [`hook`] stands in for libc's `ioctl` and sends what concerns us to [`platform`].
//! * [`platform`] is the one platform of this process: when the guest runs, when it stops, who waits for the next edge.
//! * [`hpet`] is the timer chip itself, without a clock and without wires of its own.
//! * [`settings`] is what we were told through the environment; without it every call goes straight through.
//! * [`kvm`] holds the numbers and structures of `linux/kvm.h` and every call into the kernel.
//!
//! Why, how it was measured and what would replace it: `docs/decisions/0006-platform-shim.md`.

mod hook;
mod hpet;
mod kvm;
mod platform;
mod settings;
