//! Services that KVM offers to guests that know it, and what becomes of a guest that uses them elsewhere.
//!
//! A guest asks for them by model-specific registers, which stand in QEMU's `cpu` section (Documentation/virt/kvm/
//! x86/msr.rst, Linux 6.12): bit 0 switches a service on, the rest is an address in guest memory.

use hyperferry_vm_model::{Device, Remainder, Vm};

use crate::{
    refusal::{self, Policy},
    report::{Report, Severity},
};

/// Bit 0 of each register.
const ENABLED: u64 = 1;
/// SeaBIOS keeps what it needs after the boot below this address. An operating system does not.
const FIRMWARE_END: u64 = 1 << 20;
/// Other services: subsection, register, and what the guest uses it for.
const SERVICES: [(&str, &str, &str); 3] = [
    ("cpu/async_pf_msr", "env.async_pf_en_msr", "asynchronous page faults"),
    ("cpu/async_pv_eoi_msr", "env.pv_eoi_en_msr", "paravirtual end of interrupt"),
    ("cpu/steal_time_msr", "env.steal_time_msr", "steal time, with paravirtual TLB flushes and spinlocks"),
];

/// Refuses a guest that uses them, for a destination that has none.
pub(crate) fn judge(vm: &Vm, destination: &str, policy: &Policy, report: &mut Report) {
    let Some(remainder) = vm.remainder.as_ref().filter(|remainder| remainder.kvm) else { return };
    judge_clock(remainder, destination, policy, report);
    let mut used: Vec<&str> = Vec::new();
    for cpu in cpus(remainder) {
        for (part, register, service) in SERVICES {
            let value = cpu.state.subsection(part).and_then(|part| part.state.field(register)?.as_u64());
            if value.is_some_and(|value| value & ENABLED != 0) && !used.contains(&service) {
                used.push(service);
            }
        }
    }
    if used.is_empty() {
        return;
    }
    let what =
        format!("the guest uses services of KVM that {destination} does not have: {}", used.join("; "));
    let remedy =
        "boot it without them before the move: -cpu …,kvm=off (libvirt: <kvm><hidden state='on'/></kvm>)";
    policy.refuse(report, refusal::KVM_PV, what, remedy);
}

fn judge_clock(remainder: &Remainder, destination: &str, policy: &Policy, report: &mut Report) {
    let clock = |cpu: &Device| cpu.state.field("env.system_time_msr")?.as_u64();
    let pages = cpus(remainder).filter_map(clock).filter(|value| value & ENABLED != 0);
    let (firmware, system): (Vec<u64>, Vec<u64>) = pages.partition(|value| *value < FIRMWARE_END);
    if let Some(page) = system.first() {
        let what = format!(
            "the guest takes its time from KVM's paravirtual clock (at {:#x}), which {destination} does not have",
            page & !ENABLED
        );
        let remedy = "boot it with `no-kvmclock clocksource=tsc` on a Linux kernel's command line, or with -cpu …,kvm=off";
        policy.refuse(report, refusal::KVMCLOCK, what, remedy);
    } else if let Some(page) = firmware.first() {
        let what = format!(
            "KVM's paravirtual clock is on for SeaBIOS alone (at {:#x}), which needed it at boot",
            page & !ENABLED
        );
        report.find(refusal::KVMCLOCK.name, Severity::Note, what, "");
    }
}

fn cpus(remainder: &Remainder) -> impl Iterator<Item = &Device> {
    remainder.sections.iter().filter(|section| section.name == "cpu")
}

#[cfg(test)]
mod tests {
    use hyperferry_vm_model::{DeviceState, DeviceSubsection, DeviceValue};

    use super::*;

    fn findings(clock: u64, steal_time: u64) -> Vec<(&'static str, Severity)> {
        let number = |name: &str, value| (name.to_owned(), DeviceValue::Unsigned { width: 8, value });
        let part =
            DeviceState { fields: vec![number("env.steal_time_msr", steal_time)], subsections: vec![] };
        let part = DeviceSubsection { name: "cpu/steal_time_msr".into(), version: 1, state: part };
        let state =
            DeviceState { fields: vec![number("env.system_time_msr", clock)], subsections: vec![part] };
        let cpu = Device { name: "cpu".into(), address: None, instance: 0, version: 12, state };
        let remainder = Remainder { kvm: true, sections: vec![cpu], ..Remainder::default() };
        let vm = Vm { remainder: Some(remainder), ..Vm::default() };
        let mut report = Report::default();
        judge(&vm, "Xen", &Policy::default(), &mut report);
        report.findings.iter().map(|finding| (finding.name, finding.severity)).collect()
    }

    #[test]
    fn a_clock_of_the_firmware_is_no_reason_to_stay() {
        assert_eq!(findings(0, 0), []);
        assert_eq!(findings(0xe_8c21, 0), [("kvmclock", Severity::Note)]);
        assert_eq!(findings(0x7f0_1001, 0), [("kvmclock", Severity::Refusal)]);
        assert_eq!(findings(0x7f0_1000, 0x7f1_2001), [("kvm-pv", Severity::Refusal)]);
    }
}
