//! What this host has: a QEMU, a KVM, a time-stamp counter.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hyperferry_kvm_state as kvm;
use hyperferry_relay::qemu::kvm_usable;
use hyperferry_translate::qemu::Accelerator;

use crate::{
    args::Accel,
    exit::{Error, Result},
};

pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Long enough for a reading to be right to 10 ppm even if a tick of 1 µs is lost on both sides.
const MEASURED_FOR: Duration = Duration::from_millis(100);

/// The program that was named, or the usual one; by its whole path, for units and domains have another PATH.
pub(crate) fn qemu(named: Option<&Path>) -> Result<PathBuf> {
    let program = named.unwrap_or(Path::new(QEMU));
    if program.components().count() > 1 {
        return Ok(std::path::absolute(program).unwrap_or_else(|_| program.to_owned()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut programs = std::env::split_paths(&path).map(|folder| folder.join(program));
    programs.find(|program| program.is_file()).ok_or_else(|| {
        let remedy = "install it (Debian: apt install qemu-system-x86) or name one with --qemu PATH";
        Error::Host(format!("there is no {} in PATH; {remedy}", program.display()))
    })
}

/// The accelerator that was named, or the best that works; says which and why.
pub(crate) fn accelerator(named: Option<Accel>) -> Accelerator {
    match named {
        Some(Accel::Kvm) => Accelerator::Kvm,
        Some(Accel::Tcg) => Accelerator::Tcg,
        None => match kvm_usable() {
            Ok(()) => {
                say!("accelerator: kvm (--accel tcg for emulation)");
                Accelerator::Kvm
            }
            Err(why) => {
                say!("accelerator: tcg, QEMU's emulation, for KVM cannot be used: {why}");
                Accelerator::Tcg
            }
        },
    }
}

/// Rate at which a guest's time-stamp counter runs here, kHz; none where it can be made to run at the guest's.
pub(crate) fn tsc_khz(accelerator: Accelerator) -> Option<u32> {
    let offers = kvm::probe().capabilities;
    match (accelerator, offers) {
        (Accelerator::Kvm, Some(offers)) if offers.tsc_control => None,
        (_, Some(offers)) if offers.tsc_khz > 0 => Some(offers.tsc_khz),
        // QEMU's emulation shows the guest the host's own counter.
        (Accelerator::Tcg, _) => measured_tsc_khz(),
        (Accelerator::Kvm, _) => None,
    }
}

/// What KVM here could be told, for a state that it might load.
pub(crate) fn kvm_target() -> kvm::Target {
    kvm::probe().capabilities.as_ref().map(kvm::Target::from).unwrap_or_default()
}

/// The host's own counter against the monotonic clock.
#[cfg(target_arch = "x86_64")]
fn measured_tsc_khz() -> Option<u32> {
    let (began, first) = moment();
    std::thread::sleep(MEASURED_FOR);
    let (ended, last) = moment();
    let elapsed = ended.duration_since(began).as_micros();
    let ticks = u128::from(last.checked_sub(first)?);
    u32::try_from((ticks * 1000).checked_div(elapsed)?).ok()
}

#[cfg(not(target_arch = "x86_64"))]
fn measured_tsc_khz() -> Option<u32> {
    None
}

/// Both clocks at one moment: the reading of several that took the least time.
#[cfg(target_arch = "x86_64")]
fn moment() -> (Instant, u64) {
    #[allow(unsafe_code, reason = "RDTSC reads a register and nothing else")]
    let rdtsc = || unsafe { core::arch::x86_64::_rdtsc() };
    let reading = |_| {
        let before = rdtsc();
        let now = Instant::now();
        let after = rdtsc();
        (after.wrapping_sub(before), now, before + after.wrapping_sub(before) / 2)
    };
    let best = (0..16).map(reading).min_by_key(|(taken, ..)| *taken);
    best.map_or_else(|| (Instant::now(), rdtsc()), |(_, now, ticks)| (now, ticks))
}

/// A UUID that nobody has.
pub(crate) fn random_uuid() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_measured_the_same_twice() {
        let (Some(first), Some(second)) = (measured_tsc_khz(), measured_tsc_khz()) else { return };
        assert!(first.abs_diff(second) < first / 1000, "{first} kHz, then {second} kHz");
    }

    #[test]
    fn a_program_that_was_named_is_taken_as_it_is() {
        assert_eq!(qemu(Some(Path::new("/nowhere/qemu"))).unwrap(), Path::new("/nowhere/qemu"));
    }
}
