//! What a guest has that Xen lacks: judged on the model, before anything is written for a Xen host.
//!
//! Source: `xen/arch/x86/hvm` of Xen 4.17 to 4.20 (vlapic.c, hpet.c, hvm.c), and `formats/qemu/sections.md` for what a
//! QEMU says in its own words.

use hyperferry_vm_model::{Device, Vm, xstate};

use crate::{
    kvm_services,
    refusal::{self, Policy},
    report::Report,
};

/// Rate of the local APIC timer's clock on Xen (vlapic.h, APIC_BUS_CYCLE_NS).
pub const APIC_BUS_HZ: u64 = 100_000_000;
/// Length of one tick of Xen's HPET (hpet.c, STIME_PER_HPET_TICK: 16 ns).
pub const HPET_PERIOD_FS: u64 = 16_000_000;
/// Local vector table, timer: masked; modes in bits 18:17, of which 2 is TSC deadline.
const LVT_MASKED: u32 = 1 << 16;
const LVT_MODE_SHIFT: u32 = 17;
const LVT_TSC_DEADLINE: u32 = 2;
/// Spurious vector register: the local APIC is enabled.
const SVR_ENABLED: u32 = 1 << 8;
const EFER_SVME: u64 = 1 << 12;
const CR4_VMXE: u64 = 1 << 13;
/// QEMU's hflags: in system management mode. The component takes hflags away where they say nothing of their own.
const HF_SMM: u64 = 1 << 19;
/// Optional parts of QEMU's `cpu` that hold extended state of which Xen has no record.
const EXTENDED_STATE: [&str; 5] =
    ["cpu/intel_amx_xtile", "cpu/msr_xfd", "cpu/arch_lbr", "cpu/fred", "cpu/intel_pt"];

/// Refuses by name what would misbehave on Xen.
pub fn judge(vm: &Vm, policy: &Policy, report: &mut Report) {
    kvm_services::judge(vm, "Xen", policy, report);
    judge_lapic_timers(vm, policy, report);
    judge_hpet(vm, policy, report);
    judge_cpus(vm, policy, report);
    judge_parts(vm, policy, report);
    judge_virtio(vm, policy, report);
}

/// Xen's local APIC timer is ten times slower: a shot comes late, and nothing in a guest notices before that.
fn judge_lapic_timers(vm: &Vm, policy: &Policy, report: &mut Report) {
    for vcpu in &vm.vcpus {
        let lapic = &vcpu.lapic;
        let mode = lapic.lvt.timer >> LVT_MODE_SHIFT & 3;
        let used = lapic.lvt.timer & LVT_MASKED == 0 && lapic.svr & SVR_ENABLED != 0;
        if !used || mode == LVT_TSC_DEADLINE || lapic.timer.bus_hz == APIC_BUS_HZ {
            continue;
        }
        let ratio = lapic.timer.bus_hz / APIC_BUS_HZ;
        let what = format!(
            "vCPU {} uses its local APIC timer, whose clock runs at {} MHz here and at 100 MHz on Xen: every timer \
             of the guest comes {ratio}x late",
            vcpu.id,
            lapic.timer.bus_hz / 1_000_000
        );
        let remedy = "boot the guest with another tick: a CPU model that offers tsc-deadline, or `nolapic_timer` on a \
                      Linux kernel's command line";
        policy.refuse(report, refusal::LAPIC_TIMER, what, remedy);
        return;
    }
}

fn judge_hpet(vm: &Vm, policy: &Policy, report: &mut Report) {
    let Some(hpet) = vm.timers.hpet.as_ref().filter(|hpet| hpet.enabled()) else { return };
    if hpet.period_fs == HPET_PERIOD_FS {
        return;
    }
    let thousandths = hpet.period_fs * 1000 / HPET_PERIOD_FS;
    let what = format!(
        "the HPET's counter runs; Xen's is clocked at 62.5 MHz, the source's at {:.1} MHz, so a guest that takes its \
         time from it runs at 0.{thousandths:03} of its speed",
        1e9 / hpet.period_fs as f64
    );
    let remedy = "in the guest: echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource (or \
                  acpi_pm), or boot it with hpet=disable, or without one (-machine hpet=off); then --allow hpet";
    policy.refuse(report, refusal::HPET, what, remedy);
}

fn judge_cpus(vm: &Vm, policy: &Policy, report: &mut Report) {
    for vcpu in &vm.vcpus {
        let (system, id) = (&vcpu.system, vcpu.id);
        if system.efer & EFER_SVME != 0 || system.cr4 & CR4_VMXE != 0 {
            let what = format!("vCPU {id} runs guests of its own, or is ready to (EFER.SVME, CR4.VMXE)");
            let remedy = "shut them down and unload the guest's hypervisor (rmmod kvm_intel, kvm_amd)";
            policy.refuse(report, refusal::NESTED, what, remedy);
        }
        let unknown = vcpu.xstate_bv & !xstate::NAMED;
        if unknown != 0 {
            let what = format!("vCPU {id} holds XSAVE state that we do not carry (components {unknown:#x})");
            let remedy = "boot the guest with a CPU model that does not offer it";
            policy.refuse(report, refusal::XSTATE, what, remedy);
        }
    }
}

/// What QEMU's `cpu` sections say in QEMU's words.
fn judge_parts(vm: &Vm, policy: &Policy, report: &mut Report) {
    let sections = vm.remainder.iter().flat_map(|remainder| &remainder.sections);
    for cpu in sections.filter(|section| section.name == "cpu") {
        let id = cpu.instance;
        let parts = || cpu.state.subsections.iter().map(|part| part.name.as_str());
        if field(cpu, "env.hflags") & HF_SMM != 0 {
            let what = format!("vCPU {id} was stopped in system management mode, which Xen does not have");
            policy.refuse(report, refusal::SMM, what, "save the guest again");
        }
        if let Some(part) = parts().find(|name| name.starts_with("cpu/msr_hyperv_")) {
            let what = format!("the guest uses Hyper-V enlightenments ({part})");
            let remedy = "boot it without them before the move: no hv-* features in -cpu";
            policy.refuse(report, refusal::VIRIDIAN, what, remedy);
        }
        let nested = parts().any(|name| matches!(name, "cpu/nested_state" | "cpu/svm_guest"));
        if nested || field(cpu, "env.vm_vmcb") != 0 {
            let what = format!("vCPU {id} has a guest of its own");
            policy.refuse(report, refusal::NESTED, what, "shut the guest's guests down before the move");
        }
        if let Some(part) = parts().find(|name| EXTENDED_STATE.contains(name)) {
            let what = format!("vCPU {id} has state of which Xen keeps no record ({part})");
            let remedy = "boot the guest with a CPU model that does not offer it";
            policy.refuse(report, refusal::XSTATE, what, remedy);
        }
        if parts().any(|name| name == "cpu/xen_vcpu") {
            let what = "the guest runs on KVM's emulation of Xen's interface, with paravirtual drivers";
            let remedy = "boot it without them before the move: `nopv` on a Linux kernel's command line";
            policy.refuse(report, refusal::PV_DRIVERS, what, remedy);
        }
    }
}

fn field(section: &Device, name: &str) -> u64 {
    section.state.field(name).and_then(hyperferry_vm_model::DeviceValue::as_u64).unwrap_or(0)
}

fn judge_virtio(vm: &Vm, policy: &Policy, report: &mut Report) {
    let names = vm.devices.iter().filter(|device| device.name.starts_with("virtio"));
    let names: Vec<_> = names
        .map(|device| {
            let place = device.address.map_or_else(String::new, |address| format!(" at {address}"));
            format!("{}{place}", device.name)
        })
        .collect();
    if names.is_empty() {
        return;
    }
    let what = format!("the guest has devices that a Xen domain does not: {}", names.join(", "));
    let remedy =
        "give it emulated ones before the move, and boot it with them: an IDE disk, an e1000 or rtl8139 card";
    policy.refuse(report, refusal::VIRTIO, what, remedy);
}

#[cfg(test)]
mod tests {
    use hyperferry_vm_model::{DeviceState, DeviceSubsection, DeviceValue, Hpet, Remainder, Vcpu};

    use super::*;

    fn refused(vm: &Vm) -> Vec<&'static str> {
        let mut report = Report::default();
        judge(vm, &Policy::default(), &mut report);
        report.refusals().map(|finding| finding.name).collect()
    }

    fn with_timer(lvt: u32, bus_hz: u64) -> Vm {
        let mut vcpu = Vcpu::default();
        (vcpu.lapic.lvt.timer, vcpu.lapic.svr, vcpu.lapic.timer.bus_hz) = (lvt, 0x1ff, bus_hz);
        Vm { vcpus: vec![vcpu], ..Vm::default() }
    }

    #[test]
    fn a_local_apic_timer_stays_unless_it_counts_the_tsc_or_at_xens_rate() {
        const GHZ: u64 = 1_000_000_000;
        assert_eq!(refused(&with_timer(0x0_00ec, GHZ)), ["lapic-timer"]);
        assert_eq!(refused(&with_timer(0x2_00ec, GHZ)), ["lapic-timer"]);
        assert_eq!(refused(&with_timer(0x4_00ec, GHZ)), [""; 0]);
        assert_eq!(refused(&with_timer(0x1_00ec, GHZ)), [""; 0]);
        assert_eq!(refused(&with_timer(0x0_00ec, APIC_BUS_HZ)), [""; 0]);
    }

    #[test]
    fn an_hpet_that_counts_stays_unless_it_counts_as_xens_does() {
        let with = |config, period_fs| {
            let mut vm = Vm::default();
            vm.timers.hpet = Some(Hpet { config, period_fs, ..Hpet::default() });
            refused(&vm)
        };
        assert_eq!(with(1, 10_000_000), ["hpet"]);
        assert_eq!(with(0, 10_000_000), [""; 0]);
        assert_eq!(with(1, HPET_PERIOD_FS), [""; 0]);
    }

    #[test]
    fn what_qemu_alone_says_is_judged_too() {
        let with = |fields: &[(&str, u64)], parts: &[&str]| {
            let number = |(name, value): &(&str, u64)| {
                ((*name).to_owned(), DeviceValue::Unsigned { width: 8, value: *value })
            };
            let part = |name: &&str| DeviceSubsection {
                name: (*name).to_owned(),
                version: 1,
                state: DeviceState::default(),
            };
            let state = DeviceState {
                fields: fields.iter().map(number).collect(),
                subsections: parts.iter().map(part).collect(),
            };
            let cpu = Device { name: "cpu".into(), address: None, instance: 0, version: 12, state };
            let remainder = Remainder { sections: vec![cpu], ..Remainder::default() };
            refused(&Vm { remainder: Some(remainder), ..Vm::default() })
        };
        assert_eq!(with(&[("env.hflags", HF_SMM)], &[]), ["smm"]);
        assert_eq!(with(&[("env.vm_vmcb", 0x1000)], &[]), ["nested"]);
        assert_eq!(with(&[], &["cpu/nested_state"]), ["nested"]);
        assert_eq!(with(&[], &["cpu/msr_hyperv_time"]), ["viridian"]);
        assert_eq!(with(&[], &["cpu/intel_amx_xtile"]), ["xstate"]);
        assert_eq!(with(&[], &["cpu/xen_vcpu"]), ["pv-drivers"]);
        assert_eq!(with(&[("env.hflags", 0x40)], &["cpu/msr_smi_count"]), [""; 0]);
    }

    #[test]
    fn virtio_devices_have_no_counterpart() {
        let device = |name: &str| Device {
            name: name.into(),
            address: None,
            instance: 0,
            version: 1,
            state: DeviceState::default(),
        };
        let vm = Vm { devices: vec![device("virtio-net"), device("e1000")], ..Vm::default() };
        assert_eq!(refused(&vm), ["virtio"]);
    }

    #[test]
    fn a_guest_with_guests_stays() {
        let mut vm = with_timer(LVT_MASKED, 0);
        vm.vcpus[0].system.efer = EFER_SVME;
        vm.vcpus[0].xstate_bv = 1 << 18;
        assert_eq!(refused(&vm), ["nested", "xstate"]);
    }
}
