//! `ioctl` as QEMU calls it.
//!
//! QEMU is linked dynamically and calls `ioctl` by name, so a preloaded library that exports one gets every call.
//! What a call costs when it is none of ours: one comparison for each row of the match below, and a jump.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_ulong, c_void};

use crate::{kvm, platform::PLATFORM};

/// Stands in for libc's `ioctl`.
///
/// libc's is variadic. On x86-64 the callee of a variadic function finds its integer and pointer arguments where that
/// of any other does (System V ABI, 3.5.7), and every request takes one at most.
///
/// # Safety
/// As for `ioctl(2)`: `argument` is what the request takes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the caller's promise, handed on.
    let pass_on = || unsafe { kvm::pass_on(fd, request, argument) };
    // Older QEMU passes the number as an `int`, which sign-extends; the kernel looks at 32 bits.
    #[expect(clippy::cast_possible_truncation)]
    match request as u32 {
        kvm::RUN => PLATFORM.run(fd, pass_on),
        kvm::CREATE_VM => PLATFORM.vm_created(pass_on()),
        kvm::CREATE_IRQCHIP => PLATFORM.irqchip_created(fd, pass_on()),
        kvm::CREATE_VCPU => PLATFORM.vcpu_created(pass_on()),
        kvm::ENABLE_CAP => {
            // SAFETY: the caller's promise: this request takes a `kvm_enable_cap`.
            let capability = unsafe { kvm::capability(argument) };
            PLATFORM.capability_wanted(fd, capability, pass_on)
        }
        kvm::GET_CLOCK => PLATFORM.clock_read(pass_on()),
        kvm::SET_IRQCHIP => PLATFORM.irqchip_set(pass_on()),
        _ => pass_on(),
    }
}
