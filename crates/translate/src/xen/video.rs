//! Video memory: libxl gives an adapter a certain size at least, and QEMU need not have given it that much.
//!
//! Source: Xen 4.14 to 4.20, `tools/libs/light/libxl_create.c` (libxl__domain_build_info_setdefault); QEMU 7.2 and 10.0,
//! `hw/display/cirrus_vga.c` (real_vram_size, and a memory range of 32 MiB whatever its memory).

use hyperferry_vm_model::{GuestConfig, VgaKind};

use crate::{
    qemu::args::adapter,
    refusal::{self, Policy},
    report::Report,
};

const MIB: u64 = 1 << 20;

/// The least that libxl gives an adapter.
fn least(kind: VgaKind) -> u64 {
    match kind {
        VgaKind::None => 0,
        VgaKind::Std => 16 * MIB,
        VgaKind::Cirrus => 8 * MIB,
        VgaKind::Qxl => 128 * MIB,
    }
}

/// What the guest gets. A Cirrus adapter uses 4 MiB of whatever it has, and its guest sees no other number.
pub(super) fn memory(config: &GuestConfig) -> u64 {
    match config.vga {
        VgaKind::Cirrus => config.video_memory.max(least(config.vga)),
        _ => config.video_memory,
    }
}

/// Refuses an adapter that would be another one there: its memory range is as large as its memory.
pub(super) fn judge(config: &GuestConfig, policy: &Policy, report: &mut Report) {
    let (had, least) = (memory(config), least(config.vga));
    let Some(device) = adapter(config.vga).filter(|_| had < least) else { return };
    let what = format!(
        "the display adapter has {} MiB of video memory, and Xen gives it {} MiB at least",
        had / MIB,
        least / MIB
    );
    let remedy = format!("start the guest with -global {device}.vgamem_mb={}", least / MIB);
    policy.refuse(report, refusal::DEVICE, what, remedy);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(vga: VgaKind, megabytes: u64) -> bool {
        let mut report = Report::default();
        let config = GuestConfig { vga, video_memory: megabytes * MIB, ..GuestConfig::default() };
        judge(&config, &Policy::default(), &mut report);
        report.refusals().next().is_some()
    }

    #[test]
    fn an_adapter_has_what_libxl_wants_or_stays() {
        assert!(refused(VgaKind::Std, 8) && refused(VgaKind::Qxl, 64));
        assert!(!refused(VgaKind::Std, 16) && !refused(VgaKind::Std, 32) && !refused(VgaKind::None, 0));
        // What QEMU gives a Cirrus adapter unless told otherwise.
        assert!(!refused(VgaKind::Cirrus, 4));
        let config = |megabytes| GuestConfig {
            vga: VgaKind::Cirrus,
            video_memory: megabytes * MIB,
            ..GuestConfig::default()
        };
        assert_eq!([4, 16].map(|megabytes| memory(&config(megabytes)) / MIB), [8, 16]);
    }
}
