//! The platform of this process: one VM, its vCPUs, and the timer chip beside them.
//!
//! When the guest runs and when it stops is told by QEMU's own calls:
//!
//! * The first `KVM_RUN` after a load or a stop: it runs. The chip's state is read then, so it may be written as late
//!   as just before `cont`.
//! * `KVM_GET_CLOCK` while no vCPU is in `KVM_RUN`: it has stopped (`hw/i386/kvm/clock.c` of QEMU 7.2 and 10.0 saves
//!   the clock once all vCPUs are out). The chip's state is written then.
//! * `KVM_SET_IRQCHIP` while it is neither loading nor stopped: the machine was reset.

use std::{
    ffi::c_int,
    fs, io,
    os::fd::RawFd,
    path::Path,
    sync::{
        Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kvm_bindings::KVM_CAP_SPLIT_IRQCHIP;

use crate::{
    hpet::{self, Model, Wires},
    kvm::{self, KeptPage, RunPage, Vm},
    settings::Settings,
};

/// The most that a vCPU's descriptor may be numbered.
const MAX_FD: usize = 4096;

/// The one platform.
pub(crate) static PLATFORM: Platform = Platform::new();

/// What there is to know about the VM.
pub(crate) struct Platform {
    /// What we were told.
    told: OnceLock<Settings>,
    vm: AtomicI32,
    /// By descriptor.
    vcpus: [Slot; MAX_FD],
    /// The chip counts.
    running: AtomicBool,
    chip: Mutex<Option<Model>>,
    /// The chip's next deadline may be another.
    changed: Condvar,
}

/// A vCPU, on a cache line of its own: only its thread writes here while the guest runs.
#[repr(align(64))]
struct Slot {
    page: KeptPage,
    /// In `KVM_RUN`, or about to be.
    inside: AtomicBool,
}

/// Says something on standard error, where hyperferry reads it.
fn say(what: std::fmt::Arguments<'_>) {
    eprintln!("hyperferry-platform-shim: {what}");
}

/// Nanoseconds since some moment of this process.
fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

impl Platform {
    const fn new() -> Self {
        Self {
            told: OnceLock::new(),
            vm: AtomicI32::new(-1),
            vcpus: [const { Slot { page: KeptPage::none(), inside: AtomicBool::new(false) } }; MAX_FD],
            running: AtomicBool::new(false),
            chip: Mutex::new(None),
            changed: Condvar::new(),
        }
    }

    fn told(&self) -> &Settings {
        self.told.get_or_init(Settings::from_environment)
    }

    fn vm(&self) -> Vm {
        Vm(self.vm.load(Ordering::Acquire))
    }

    fn slot(&self, fd: RawFd) -> Option<&Slot> {
        self.vcpus.get(usize::try_from(fd).ok()?)
    }

    fn chip(&self) -> MutexGuard<'_, Option<Model>> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `KVM_CREATE_VM` came back.
    pub(crate) fn vm_created(&self, fd: c_int) -> c_int {
        if fd >= 0 {
            self.vm.store(fd, Ordering::Release);
        }
        fd
    }

    /// `KVM_CREATE_IRQCHIP` came back.
    pub(crate) fn irqchip_created(&self, fd: RawFd, result: c_int) -> c_int {
        if result == 0 {
            self.set_apic_bus(Vm(fd));
        }
        result
    }

    fn set_apic_bus(&self, vm: Vm) {
        let Some(nanoseconds) = self.told().apic_bus_ns else { return };
        match vm.set_apic_bus(nanoseconds) {
            Ok(()) => say(format_args!("apic-bus-ns={nanoseconds}")),
            Err(error) => say(format_args!("apic-bus-ns unavailable: {error}")),
        }
    }

    /// QEMU enables a capability.
    pub(crate) fn capability_wanted(
        &self,
        fd: RawFd,
        capability: u32,
        enable: impl FnOnce() -> c_int,
    ) -> c_int {
        if capability != KVM_CAP_SPLIT_IRQCHIP {
            return enable();
        }
        if self.told().hpet.is_some() {
            // The HPET's interrupts would go to an IOAPIC that the kernel does not have.
            say(format_args!("the HPET needs kernel-irqchip=on, and QEMU was started with split"));
            return kvm::fail(libc::EOPNOTSUPP);
        }
        self.irqchip_created(fd, enable())
    }

    /// `KVM_CREATE_VCPU` came back.
    pub(crate) fn vcpu_created(&self, fd: c_int) -> c_int {
        if fd < 0 || self.told().hpet.is_none() {
            return fd;
        }
        let Some(slot) = self.slot(fd) else {
            say(format_args!("vCPU has descriptor {fd}, and no more than {MAX_FD} are looked after"));
            return kvm::fail(libc::EMFILE);
        };
        match RunPage::map(fd) {
            Ok(page) => {
                slot.page.keep(page);
                fd
            }
            Err(error) => {
                say(format_args!("cannot map a vCPU's page: {error}"));
                kvm::fail(error.raw_os_error().unwrap_or(libc::EIO))
            }
        }
    }

    /// `KVM_RUN`: goes back in as long as the guest comes out for the chip alone.
    pub(crate) fn run(&'static self, fd: RawFd, enter: impl Fn() -> c_int) -> c_int {
        let Some(slot) = self.slot(fd) else { return enter() };
        let Some(page) = slot.page.get() else { return enter() };
        slot.inside.store(true, Ordering::Release);
        let result = self.run_with(page, enter);
        slot.inside.store(false, Ordering::Release);
        result
    }

    fn run_with(&'static self, page: RunPage, enter: impl Fn() -> c_int) -> c_int {
        if !self.running.load(Ordering::Acquire)
            && let Err(error) = self.start()
        {
            say(format_args!("the HPET cannot start: {error}"));
            return kvm::fail(libc::EIO);
        }
        loop {
            let result = enter();
            if result != 0 {
                return result;
            }
            let Some(access) = page.access() else { return result };
            let Some(offset) = hpet::offset(access.address) else { return result };
            if !self.answered(page, offset, access) {
                return result;
            }
        }
    }

    /// Answers an access, unless the guest has no such chip.
    fn answered(&self, page: RunPage, offset: u64, access: kvm::Access) -> bool {
        let mut chip = self.chip();
        let Some(model) = chip.as_mut() else { return false };
        let now = now();
        let Some(value) = access.written else {
            page.answer(model.read(offset, access.length, now));
            return true;
        };
        let before = model.next_deadline();
        model.write(offset, access.length, value, now, &mut KvmWires(self.vm()));
        if model.next_deadline() != before {
            self.changed.notify_all();
        }
        true
    }

    /// The guest begins to run.
    fn start(&'static self) -> Result<(), Fault> {
        let mut chip = self.chip();
        if self.running.load(Ordering::Acquire) {
            return Ok(());
        }
        if chip.is_none() {
            let path = self.told().hpet.as_deref().ok_or(Fault::NoFile)?;
            *chip = hpet::from_json(&fs::read(path)?)?;
            if chip.is_some() {
                let thread = thread::Builder::new().name("xen-hpet".to_owned());
                kvm::without_signals(|| thread.spawn(|| self.keep_time()))?;
            }
        }
        if let Some(model) = chip.as_mut() {
            model.start(now(), &mut KvmWires(self.vm()));
        }
        self.running.store(true, Ordering::Release);
        self.changed.notify_all();
        Ok(())
    }

    /// Whether no vCPU runs although the guest has been running.
    fn paused(&self) -> bool {
        self.running.load(Ordering::Acquire)
            && !self.vcpus.iter().any(|slot| slot.inside.load(Ordering::Acquire))
    }

    /// `KVM_GET_CLOCK` came back: the guest has stopped, if nobody runs it.
    pub(crate) fn clock_read(&self, result: c_int) -> c_int {
        if self.paused() {
            let mut chip = self.chip();
            self.running.store(false, Ordering::Release);
            if let (Some(model), Some(path)) = (chip.as_mut(), &self.told().hpet) {
                model.stop(now());
                if let Err(error) = write(path, &hpet::to_json(model)) {
                    say(format_args!("cannot write {}: {error}", path.display()));
                }
            }
        }
        result
    }

    /// `KVM_SET_IRQCHIP` came back: a reset, if the guest was running.
    pub(crate) fn irqchip_set(&self, result: c_int) -> c_int {
        if self.paused() {
            if let Some(model) = self.chip().as_mut() {
                model.reset(&mut KvmWires(self.vm()));
            }
            self.changed.notify_all();
        }
        result
    }

    /// The thread that lets timers expire.
    fn keep_time(&self) {
        kvm::wake_on_time();
        let mut chip = self.chip();
        loop {
            let mut wait = None;
            if self.running.load(Ordering::Acquire)
                && let Some(model) = chip.as_mut()
            {
                model.expire(now(), &mut KvmWires(self.vm()));
                wait = model.next_deadline().map(|deadline| deadline.saturating_sub(now()));
            }
            chip = match wait {
                None => self.changed.wait(chip).unwrap_or_else(PoisonError::into_inner),
                Some(wait) => {
                    let wait = Duration::from_nanos(wait);
                    let waited = self.changed.wait_timeout(chip, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// Why the chip cannot start.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("no file was named")]
    NoFile,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    State(#[from] hpet::Error),
}

/// Puts a file into place in one step.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, content)?;
    fs::rename(&new, path)
}

/// The chip's wires to the kernel's interrupt controllers.
struct KvmWires(Vm);

impl KvmWires {
    fn drive(&self, gsi: u32, level: bool) {
        if let Err(error) = self.0.irq_line(gsi, level) {
            say(format_args!("KVM_IRQ_LINE {gsi}: {error}"));
        }
    }
}

impl Wires for KvmWires {
    fn pulse(&mut self, gsi: u32) {
        self.drive(gsi, true);
        self.drive(gsi, false);
    }

    fn level(&mut self, gsi: u32, level: bool) {
        self.drive(gsi, level);
    }

    fn block_pit(&mut self, blocked: bool) {
        if let Err(error) = self.0.block_pit(blocked) {
            say(format_args!("KVM_SET_PIT2: {error}"));
        }
    }
}

#[cfg(test)]
mod tests;
