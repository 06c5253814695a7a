//! The libxc records of a domain other than its memory, from the model.

use hyperferry_vm_model::{CpuidPolicy, RunState, Vm, XenDomain};
use hyperferry_xen_stream::{
    hvm::{self, Context, Entry, Record},
    libxc::{self, HvmParam, HvmParams},
};

use super::{NO_SUBLEAF, Target, Template, pages};
use crate::{
    component::{irq, lapic, timers, vcpu},
    report::{Report, Severity},
};

const STAGE: &str = "model -> Xen";
/// HVM_PARAM_ACPI_IOPORTS_LOCATION.
const PARAM_ACPI_IOPORTS: u64 = 19;

/// X86_CPUID_POLICY and X86_MSR_POLICY, where there is a policy.
pub(super) fn policies(policy: &CpuidPolicy, report: &mut Report) -> Vec<libxc::Record> {
    let leaf = |leaf: &hyperferry_vm_model::CpuidLeaf| libxc::CpuidLeaf {
        leaf: leaf.leaf,
        subleaf: leaf.subleaf.unwrap_or(NO_SUBLEAF),
        a: leaf.eax,
        b: leaf.ebx,
        c: leaf.ecx,
        d: leaf.edx,
    };
    let mut records = Vec::new();
    if !policy.leaves.is_empty() {
        let leaves = policy.leaves.iter().map(leaf).collect();
        records.push(libxc::Record::X86CpuidPolicy(libxc::X86CpuidPolicy { leaves }));
        report.record(STAGE, "cpuid").carried(&["leaves"]);
    }
    if !policy.msrs.is_empty() {
        let entry = |msr: &hyperferry_vm_model::MsrPolicyEntry| libxc::MsrEntry {
            idx: msr.index,
            flags: 0,
            val: msr.value,
        };
        let msrs = policy.msrs.iter().map(entry).collect();
        records.push(libxc::Record::X86MsrPolicy(libxc::X86MsrPolicy { msrs }));
        report.record(STAGE, "cpuid").carried(&["msrs"]);
    }
    records
}

/// X86_TSC_INFO.
pub(super) fn tsc_info(vm: &Vm, report: &mut Report) -> libxc::X86TscInfo {
    let clock = &vm.clock;
    let mut ledger = report.record(STAGE, "clock");
    ledger.carried(&["tsc_khz", "guest_ns"]);
    ledger.derived("tsc_emulated", "X86_TSC_INFO mode 1");
    let home = vm.xen.as_ref();
    let default = if clock.tsc_emulated { 1 } else { 0 };
    libxc::X86TscInfo {
        mode: home.map_or(default, |xen| xen.tsc_mode),
        khz: clock.tsc_khz,
        nsec: clock.guest_ns,
        incarnation: home.map_or(0, |xen| xen.incarnation),
    }
}

/// HVM_PARAMS: the guest's own, or those of a guest that libxl has just made.
pub(super) fn params(vm: &Vm, report: &mut Report) -> HvmParams {
    let mut ledger = report.record(STAGE, "xen");
    if let Some(XenDomain { params, .. }) = &vm.xen {
        ledger.carried(&["config", "params", "tsc_mode", "incarnation", "changeset", "host_cpuid"]);
        ledger.derived("version", "the template's, whose dialect this is");
        let param = |(index, value): &(u64, u64)| HvmParam { index: *index, value: *value };
        return HvmParams { params: params.iter().map(param).collect() };
    }
    ledger.defaulted("params", "those of a domain that libxl has just made");
    let location = timers::xen::io_ports_location(&vm.timers.pm_timer).unwrap_or(0);
    let mut params = pages::PARAMS.to_vec();
    params.insert(7, (PARAM_ACPI_IOPORTS, location));
    let set = params.into_iter().filter(|(_, value)| *value != 0);
    HvmParams { params: set.map(|(index, value)| HvmParam { index, value }).collect() }
}

/// HVM_CONTEXT: HEADER, then each kind for each vCPU or chip in ascending typecodes, then END.
pub(super) fn context(vm: &Vm, template: &Template, target: &Target<'_>, report: &mut Report) -> Context {
    let home = vm.xen.as_ref();
    let header = hvm::Header {
        changeset: home.map_or(template.changeset, |xen| xen.changeset),
        cpuid: home.map_or(template.host_cpuid, |xen| xen.host_cpuid),
        gtsc_khz: vm.clock.tsc_khz,
    };
    let mut entries = vec![Entry::new(0, Record::Header(header))];
    for vcpu in &vm.vcpus {
        let Ok(instance) = u16::try_from(vcpu.id) else { continue };
        let records = vcpu::xen::localise(vcpu, target, report);
        let (hidden, registers) = lapic::xen::localise(vcpu.id, &vcpu.lapic, target, report);
        let records = [
            records.cpu.map(Record::Cpu),
            records.xsave.map(Record::CpuXsave),
            records.msr.map(Record::CpuMsr),
            records.mtrr.map(Record::Mtrr),
            records.vmce.map(Record::VmceVcpu),
            records.tsc_adjust.map(Record::TscAdjust),
            Some(Record::Lapic(hidden)),
            Some(Record::LapicRegs(registers)),
        ];
        entries.extend(records.into_iter().flatten().map(|record| Entry::new(instance, record)));
    }
    for (instance, pic) in (0..).zip(&vm.irq.pic) {
        entries.push(Entry::new(instance, Record::Pic(irq::xen::localise_pic(instance, pic, report))));
    }
    let (pci, isa, link) = irq::xen::localise_lines(&vm.irq.lines, vm.irq.pci_links, report);
    let chips = [
        Record::IoApic(irq::xen::localise_ioapic(&vm.irq.ioapic, report)),
        Record::PciIrq(pci),
        Record::IsaIrq(isa),
        Record::PciLink(link),
        Record::Pit(timers::xen::localise_pit(&vm.timers.pit, target, report)),
        Record::Rtc(timers::xen::localise_rtc(&vm.timers.rtc, report)),
        Record::Hpet(timers::xen::localise_hpet(vm.timers.hpet.as_ref(), report)),
        Record::PmTimer(timers::xen::localise_pm_timer(&vm.timers.pm_timer, report)),
    ];
    entries.extend(chips.into_iter().map(|record| Entry::new(0, record)));
    entries.sort_by_key(|entry| (entry.record.code(), entry.instance));
    let lapics = entries.iter_mut().filter(|entry| matches!(entry.record, Record::Lapic(_)));
    lapics.for_each(|entry| entry.elided = target.lapic_elided);
    entries.push(Entry::new(0, Record::End(hvm::End)));
    note_halted(vm, report);
    Context { entries }
}

/// Xen has no word for a halted vCPU.
fn note_halted(vm: &Vm, report: &mut Report) {
    let halted = vm.vcpus.iter().filter(|vcpu| vcpu.run_state == RunState::Halted).count();
    if halted > 0 {
        let what = format!("{halted} vCPUs sleep in HLT, and wake once when Xen resumes the guest");
        report.find("vcpu-halted", Severity::Note, what, "");
    }
}
