//! KVM's ioctls as far as we take part in them (`linux/kvm.h`, `arch/x86/include/uapi/asm/kvm.h`, Linux 6.12).
#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_ulong, c_void},
    io,
    mem::size_of,
    os::fd::RawFd,
    ptr::{self, NonNull},
    sync::{
        OnceLock,
        atomic::{AtomicPtr, Ordering},
    },
};

use kvm_bindings::{
    KVM_EXIT_MMIO, KVM_PIT_FLAGS_HPET_LEGACY, kvm_enable_cap, kvm_irq_level, kvm_pit_state2, kvm_run,
};

pub(crate) const CREATE_VM: u32 = number(0, 0x01, 0);
pub(crate) const CREATE_VCPU: u32 = number(0, 0x41, 0);
pub(crate) const CREATE_IRQCHIP: u32 = number(0, 0x60, 0);
const IRQ_LINE: u32 = number(WRITE, 0x61, size_of::<kvm_irq_level>());
pub(crate) const SET_IRQCHIP: u32 = number(READ, 0x63, size_of::<kvm_bindings::kvm_irqchip>());
pub(crate) const GET_CLOCK: u32 = number(READ, 0x7c, size_of::<kvm_bindings::kvm_clock_data>());
pub(crate) const RUN: u32 = number(0, 0x80, 0);
const GET_PIT2: u32 = number(READ, 0x9f, size_of::<kvm_pit_state2>());
const SET_PIT2: u32 = number(WRITE, 0xa0, size_of::<kvm_pit_state2>());
pub(crate) const ENABLE_CAP: u32 = number(WRITE, 0xa3, size_of::<kvm_enable_cap>());

const WRITE: u32 = 1;
const READ: u32 = 2;

/// An ioctl's number (`asm-generic/ioctl.h`), with KVM's letter.
const fn number(direction: u32, nr: u32, size: usize) -> u32 {
    // The largest structure here has 512 bytes.
    #[expect(clippy::cast_possible_truncation)]
    let size = size as u32;
    direction << 30 | size << 16 | 0xae << 8 | nr
}

/// The `ioctl` that ours stands in for.
type Ioctl = unsafe extern "C" fn(c_int, c_ulong, ...) -> c_int;

/// A call as it came, handed on.
///
/// # Safety
/// As for `ioctl(2)`: `argument` is what the request takes.
pub(crate) unsafe fn pass_on(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    static REAL: OnceLock<Option<Ioctl>> = OnceLock::new();
    let real = REAL.get_or_init(|| {
        // SAFETY: the name ends with a NUL; RTLD_NEXT finds libc's, or nothing.
        let symbol = unsafe { libc::dlsym(libc::RTLD_NEXT, c"ioctl".as_ptr()) };
        // SAFETY: libc declares `int ioctl(int, unsigned long, ...)`; a null pointer becomes `None`.
        unsafe { std::mem::transmute::<*mut c_void, Option<Ioctl>>(symbol) }
    });
    match real {
        // SAFETY: the caller's promise.
        Some(ioctl) => unsafe { ioctl(fd, request, argument) },
        None => fail(libc::ENOSYS),
    }
}

/// A call that fails with this error number.
pub(crate) fn fail(errno: c_int) -> c_int {
    // SAFETY: the location of this thread's `errno` is always valid.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// A call of our own, with a structure.
fn call<T>(fd: RawFd, request: u32, argument: &mut T) -> io::Result<()> {
    // SAFETY: every request of this file names the size of `T` in its number, and `T` is that request's structure.
    match unsafe { pass_on(fd, request.into(), ptr::from_mut(argument).cast()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The capability that a `KVM_ENABLE_CAP` of QEMU's is about.
///
/// # Safety
/// `argument` is that call's.
pub(crate) unsafe fn capability(argument: *const c_void) -> u32 {
    let argument = argument.cast::<kvm_enable_cap>();
    // SAFETY: the caller's promise; it is not null.
    if argument.is_null() { 0 } else { unsafe { (*argument).cap } }
}

/// A virtual machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vm(pub(crate) RawFd);

impl Vm {
    /// Sets the length of an APIC bus cycle. To be called with the irqchip there and no vCPU yet; Linux 6.11 and newer.
    pub(crate) fn set_apic_bus(self, nanoseconds: u64) -> io::Result<()> {
        let mut cap = kvm_enable_cap {
            cap: kvm_bindings::KVM_CAP_X86_APIC_BUS_CYCLES_NS,
            args: [nanoseconds, 0, 0, 0],
            ..Default::default()
        };
        call(self.0, ENABLE_CAP, &mut cap)
    }

    /// Drives an interrupt line.
    pub(crate) fn irq_line(self, gsi: u32, level: bool) -> io::Result<()> {
        let mut line = kvm_irq_level { level: level.into(), ..Default::default() };
        line.__bindgen_anon_1.irq = gsi;
        call(self.0, IRQ_LINE, &mut line)
    }

    /// Keeps the interval timer from interrupt 0, or lets it have it.
    pub(crate) fn block_pit(self, blocked: bool) -> io::Result<()> {
        let mut pit = kvm_pit_state2::default();
        call(self.0, GET_PIT2, &mut pit)?;
        let legacy = if blocked { KVM_PIT_FLAGS_HPET_LEGACY } else { 0 };
        let flags = pit.flags & !KVM_PIT_FLAGS_HPET_LEGACY | legacy;
        if flags == pit.flags {
            return Ok(());
        }
        pit.flags = flags;
        call(self.0, SET_PIT2, &mut pit)
    }
}

/// The page that a vCPU shares with the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunPage(NonNull<kvm_run>);

/// Where a vCPU's page is kept, once there is one.
#[derive(Debug)]
pub(crate) struct KeptPage(AtomicPtr<kvm_run>);

impl KeptPage {
    /// No page yet.
    pub(crate) const fn none() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Keeps a page, in place of the one before.
    pub(crate) fn keep(&self, page: RunPage) {
        self.0.store(page.0.as_ptr(), Ordering::Release);
    }

    /// The page.
    pub(crate) fn get(&self) -> Option<RunPage> {
        NonNull::new(self.0.load(Ordering::Acquire)).map(RunPage)
    }
}

/// An access of the guest to memory that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// Physical address.
    pub(crate) address: u64,
    /// Bytes, 1 to 8.
    pub(crate) length: u32,
    /// What is written; none reads.
    pub(crate) written: Option<u64>,
}

impl RunPage {
    /// Maps a vCPU's page. It stays mapped as long as the process lives, as QEMU's own does.
    pub(crate) fn map(vcpu: RawFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; the first page holds all of `kvm_run`.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<kvm_run>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu,
                0,
            )
        };
        match NonNull::new(page) {
            Some(address) if page != libc::MAP_FAILED => Ok(Self(address.cast())),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Why `KVM_RUN` came back, if for a memory access. Only for the vCPU's own thread, after `KVM_RUN`.
    pub(crate) fn access(self) -> Option<Access> {
        let run = self.0.as_ptr();
        // SAFETY: the page is mapped for good, and only this thread and the kernel on its behalf write this part of it.
        unsafe {
            if (*run).exit_reason != KVM_EXIT_MMIO {
                return None;
            }
            let mmio = (*run).__bindgen_anon_1.mmio;
            let written = (mmio.is_write != 0).then_some(u64::from_le_bytes(mmio.data));
            Some(Access { address: mmio.phys_addr, length: mmio.len, written })
        }
    }

    /// What the guest reads; the next `KVM_RUN` hands it over.
    pub(crate) fn answer(self, value: u64) {
        // SAFETY: as above.
        unsafe { (*self.0.as_ptr()).__bindgen_anon_1.mmio.data = value.to_le_bytes() };
    }
}

/// Runs `body` with all signals blocked, so that a thread started by it never takes one that is QEMU's.
pub(crate) fn without_signals<T>(body: impl FnOnce() -> T) -> T {
    let mut all = std::mem::MaybeUninit::uninit();
    let mut before = std::mem::MaybeUninit::uninit();
    // SAFETY: both sets are ours, and filled in before they are read.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let result = body();
    // SAFETY: filled in above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    result
}

/// Lets this thread wake when it asked to, instead of up to 50 µs later.
pub(crate) fn wake_on_time() {
    // SAFETY: a number for an attribute of this thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as c_ulong) };
}

/// A vCPU that nobody executes: a page, and a hand that writes exits into it.
#[cfg(test)]
pub(crate) mod fake {
    use super::*;

    /// A descriptor that can be mapped like a vCPU's.
    pub(crate) fn vcpu() -> RawFd {
        // SAFETY: the name ends with a NUL; the size is a number.
        unsafe {
            let fd = libc::memfd_create(c"vcpu".as_ptr(), 0);
            assert_eq!(libc::ftruncate(fd, 4096), 0);
            fd
        }
    }

    /// The exit that the next look at the page sees.
    pub(crate) fn leave_for(page: RunPage, access: Option<Access>) {
        let run = page.0.as_ptr();
        // SAFETY: the page of `vcpu`, mapped by `RunPage::map`.
        unsafe {
            (*run).exit_reason = if access.is_some() { KVM_EXIT_MMIO } else { 0 };
            let Some(access) = access else { return };
            let mmio = &mut (*run).__bindgen_anon_1.mmio;
            (mmio.phys_addr, mmio.len) = (access.address, access.length);
            mmio.is_write = u8::from(access.written.is_some());
            mmio.data = access.written.unwrap_or(0x5555_5555_5555_5555).to_le_bytes();
        }
    }

    /// What the guest was given.
    pub(crate) fn given(page: RunPage) -> u64 {
        // SAFETY: as above.
        u64::from_le_bytes(unsafe { (*page.0.as_ptr()).__bindgen_anon_1.mmio.data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernels_headers() {
        assert_eq!((CREATE_VM, CREATE_VCPU, CREATE_IRQCHIP, RUN), (0xae01, 0xae41, 0xae60, 0xae80));
        assert_eq!((IRQ_LINE, SET_IRQCHIP, GET_CLOCK), (0x4008_ae61, 0x8208_ae63, 0x8030_ae7c));
        assert_eq!((GET_PIT2, SET_PIT2, ENABLE_CAP), (0x8070_ae9f, 0x4070_aea0, 0x4068_aea3));
        assert!(size_of::<kvm_run>() <= 4096);
    }

    #[test]
    fn a_call_that_fails_says_why() {
        assert_eq!(fail(libc::EIO), -1);
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EIO));
        assert!(Vm(-1).irq_line(0, true).is_err());
    }
}
