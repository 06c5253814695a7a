//! The records that make up the state, gathered until all are there.

use std::collections::BTreeMap;

use hyperferry_qemu_stream::DeviceState;
use hyperferry_vm_model::{Clock, Vm, XenDomain};
use hyperferry_wire::StreamPath;
use hyperferry_xen_stream::{
    hvm,
    libxc::{self, HvmParams},
    libxl,
};

use super::{
    HeldPages, note_missing_policy,
    pv_drivers::{PvDrivers, STORE_PFN},
};
use crate::{
    Error, Result,
    component::{devices, irq, lapic, timers, vcpu},
    refusal::{self, Policy},
    report::{Report, Severity},
};

const STAGE: &str = "Xen -> model";
/// HVM_PARAM_STORE_PFN: the ring through which a guest talks to xenstore.
const PARAM_STORE_PFN: u64 = 1;
/// HVM_PARAM_ACPI_IOPORTS_LOCATION.
const PARAM_ACPI_IOPORTS: u64 = 19;
/// Parameters that name Xen's own pages, or set up what no other hypervisor has.
const XEN_ONLY_PARAMS: [u64; 13] = [1, 5, 6, 9, 12, 17, 27, 28, 29, 32, 33, 36, 37];

/// The state as it comes in.
#[derive(Debug, Default)]
pub(super) struct StateRecords {
    tsc_info: Option<libxc::X86TscInfo>,
    context: Option<hvm::Context>,
    params: Option<HvmParams>,
    emulator: Option<DeviceState>,
}

impl StateRecords {
    /// Takes a libxc record that is not memory.
    pub(super) fn libxc(&mut self, record: libxc::Record, policy: &Policy, report: &mut Report) {
        match record {
            libxc::Record::X86TscInfo(record) => self.tsc_info = Some(record),
            libxc::Record::HvmContext(record) => self.context = Some(record),
            libxc::Record::HvmParams(record) => self.params = Some(record),
            libxc::Record::End | libxc::Record::StaticDataEnd => {}
            // `xl migrate --debug`: the pages that follow repeat memory.
            libxc::Record::Verify => {}
            libxc::Record::Toolstack(_) => {
                report.record(STAGE, "TOOLSTACK").dropped("body", "obsolete since Xen 4.6");
            }
            other if !other.is_mandatory() => {
                report.record(STAGE, other.name()).dropped("body", "an optional record that we do not know");
            }
            other => {
                let what = format!("the stream holds {}", other.name());
                let remedy = "save the guest with plain `xl save`, without checkpointing (Remus, COLO)";
                policy.refuse(report, refusal::RECORD, what, remedy);
            }
        }
    }

    /// Takes a libxl record other than EMULATOR_CONTEXT.
    pub(super) fn libxl(&mut self, record: libxl::Record, policy: &Policy, report: &mut Report) {
        match record {
            libxl::Record::End | libxl::Record::LibxcContext | libxl::Record::EmulatorContext(_) => {}
            libxl::Record::EmulatorXenstoreData(_) => {
                let why = "where an old device model put video memory; the device's own state says so too";
                report.record(STAGE, "EMULATOR_XENSTORE_DATA").dropped("physmap", why);
            }
            other if !other.is_mandatory() => {
                report.record(STAGE, other.name()).dropped("body", "an optional record that we do not know");
            }
            other => {
                let what = format!("the stream holds {}", other.name());
                let remedy = "save the guest with plain `xl save`, without checkpointing (Remus, COLO)";
                policy.refuse(report, refusal::RECORD, what, remedy);
            }
        }
    }

    /// Takes the device model's state; `end` is the offset after the record.
    pub(super) fn emulator_context(
        &mut self,
        record: &libxl::EmulatorContext,
        end: u64,
        report: &mut Report,
    ) -> Result<()> {
        let path = StreamPath::root().child("EMULATOR_CONTEXT");
        let offset = end.saturating_sub((record.blob.len() as u64).next_multiple_of(8));
        self.emulator = Some(DeviceState::decode_emulator_context(&record.blob, offset, path)?);
        report.record(STAGE, "EMULATOR_CONTEXT").derived("emulator_id, index", "one device model, QEMU");
        Ok(())
    }

    /// Makes the model of it.
    pub(super) fn finish(
        self,
        vm: &mut Vm,
        held: &HeldPages,
        mut pv_drivers: PvDrivers,
        policy: &Policy,
        report: &mut Report,
    ) -> Result<()> {
        let missing = |record, why| Error::Missing { record, instance: None, why };
        let context = self.context.ok_or(missing("HVM_CONTEXT", "the CPUs' state"))?;
        let emulator = self
            .emulator
            .ok_or(missing("EMULATOR_CONTEXT", "the devices' state; PVH guests have none and cannot move"))?;
        note_missing_policy(vm, report);
        let params = self.params.unwrap_or_default();
        normalise_params(&params, report);
        let mut parts = Parts::gather(context, report);
        vm.clock = normalise_clock(self.tsc_info.as_ref(), &parts, report);
        keep_for_home(vm.xen.get_or_insert_default(), self.tsc_info.as_ref(), &parts, &params);
        vm.vcpus = parts.vcpus(vm, policy, report)?;
        parts.chips(vm, params.get(PARAM_ACPI_IOPORTS) == Some(1), report)?;
        vm.devices = devices::qemu::normalise(&emulator, report);
        parts.viridian(policy, report);
        let store = params.get(PARAM_STORE_PFN).unwrap_or(STORE_PFN);
        pv_drivers.store(store, held, &vm.config.name, policy, report);
        Ok(())
    }
}

/// HVM_CONTEXT, sorted by what its entries are about.
#[derive(Debug, Default)]
struct Parts {
    vcpus: BTreeMap<u16, VcpuParts>,
    pic: [Option<hvm::Pic>; 2],
    ioapic: Option<hvm::IoApic>,
    isa: Option<hvm::IsaIrq>,
    pci: Option<hvm::PciIrq>,
    link: Option<hvm::PciLink>,
    pit: Option<hvm::Pit>,
    rtc: Option<hvm::Rtc>,
    hpet: Option<hvm::Hpet>,
    pm: Option<hvm::PmTimer>,
    header: hvm::Header,
    viridian: bool,
}

#[derive(Debug, Default)]
struct VcpuParts {
    records: vcpu::xen::Records,
    lapic: Option<hvm::Lapic>,
    registers: Option<hvm::LapicRegs>,
}

impl Parts {
    fn gather(context: hvm::Context, report: &mut Report) -> Self {
        let mut parts = Self::default();
        for entry in context.entries {
            let instance = entry.instance;
            let vcpus = &mut parts.vcpus;
            match entry.record {
                hvm::Record::Header(header) => {
                    report.record(STAGE, "HVM_CONTEXT HEADER").carried(&["gtsc_khz", "changeset", "cpuid"]);
                    parts.header = header;
                }
                hvm::Record::Cpu(record) => vcpus.entry(instance).or_default().records.cpu = Some(record),
                hvm::Record::CpuXsave(record) => {
                    vcpus.entry(instance).or_default().records.xsave = Some(record)
                }
                hvm::Record::CpuMsr(record) => vcpus.entry(instance).or_default().records.msr = Some(record),
                hvm::Record::Mtrr(record) => vcpus.entry(instance).or_default().records.mtrr = Some(record),
                hvm::Record::VmceVcpu(record) => {
                    vcpus.entry(instance).or_default().records.vmce = Some(record)
                }
                hvm::Record::TscAdjust(record) => {
                    vcpus.entry(instance).or_default().records.tsc_adjust = Some(record)
                }
                hvm::Record::Lapic(record) => vcpus.entry(instance).or_default().lapic = Some(record),
                hvm::Record::LapicRegs(record) => vcpus.entry(instance).or_default().registers = Some(record),
                hvm::Record::Pic(record) => {
                    if let Some(pic) = parts.pic.get_mut(usize::from(instance)) {
                        *pic = Some(record);
                    }
                }
                hvm::Record::IoApic(record) => parts.ioapic = Some(record),
                hvm::Record::IsaIrq(record) => parts.isa = Some(record),
                hvm::Record::PciIrq(record) => parts.pci = Some(record),
                hvm::Record::PciLink(record) => parts.link = Some(record),
                hvm::Record::Pit(record) => parts.pit = Some(record),
                hvm::Record::Rtc(record) => parts.rtc = Some(record),
                hvm::Record::Hpet(record) => parts.hpet = Some(record),
                hvm::Record::PmTimer(record) => parts.pm = Some(record),
                hvm::Record::ViridianDomain(_) | hvm::Record::ViridianVcpu(_) => parts.viridian = true,
                hvm::Record::End(_) => {}
                other => {
                    let why = "a typecode that we do not know";
                    report
                        .record(STAGE, format_args!("HVM_CONTEXT {}[{instance}]", other.name()))
                        .dropped("body", why);
                    report.find(
                        "hvm-record",
                        Severity::Warning,
                        format!("HVM_CONTEXT holds {}, which is left behind", other.name()),
                        "",
                    );
                }
            }
        }
        parts
    }

    fn vcpus(
        &mut self,
        vm: &Vm,
        policy: &Policy,
        report: &mut Report,
    ) -> Result<Vec<hyperferry_vm_model::Vcpu>> {
        let mut vcpus = Vec::new();
        for (instance, parts) in &self.vcpus {
            let id = u32::from(*instance);
            let missing =
                |record| Error::Missing { record, instance: Some(id), why: "the local APIC's state" };
            let hidden = parts.lapic.as_ref().ok_or_else(|| missing("HVM_CONTEXT LAPIC"))?;
            let registers = parts.registers.as_ref().ok_or_else(|| missing("HVM_CONTEXT LAPIC_REGS"))?;
            let mut vcpu = vcpu::xen::normalise(id, &parts.records, &vm.cpuid, policy, report);
            vcpu.lapic = lapic::xen::normalise(id, hidden, registers, report);
            vcpus.push(vcpu);
        }
        if vcpus.is_empty() {
            return Err(Error::Missing {
                record: "HVM_CONTEXT CPU",
                instance: None,
                why: "the stream has no vCPU",
            });
        }
        Ok(vcpus)
    }

    fn chips(&self, vm: &mut Vm, new_pm_ports: bool, report: &mut Report) -> Result<()> {
        let missing =
            |record| Error::Missing { record, instance: None, why: "every HVM domain has this chip" };
        let [master, slave] = &self.pic;
        vm.irq.pic = [
            irq::xen::normalise_pic(0, master.as_ref().ok_or_else(|| missing("HVM_CONTEXT PIC 0"))?, report),
            irq::xen::normalise_pic(1, slave.as_ref().ok_or_else(|| missing("HVM_CONTEXT PIC 1"))?, report),
        ];
        let ioapic = self.ioapic.as_ref().ok_or_else(|| missing("HVM_CONTEXT IOAPIC"))?;
        vm.irq.ioapic = irq::xen::normalise_ioapic(ioapic, report);
        (vm.irq.lines, vm.irq.pci_links) =
            irq::xen::normalise_lines(self.isa.as_ref(), self.pci.as_ref(), self.link.as_ref(), report);
        let pit = self.pit.as_ref().ok_or_else(|| missing("HVM_CONTEXT PIT"))?;
        vm.timers.pit = timers::xen::normalise_pit(pit, report);
        let rtc = self.rtc.as_ref().ok_or_else(|| missing("HVM_CONTEXT RTC"))?;
        vm.timers.rtc = timers::xen::normalise_rtc(rtc, report);
        vm.timers.hpet = self.hpet.as_ref().map(|hpet| timers::xen::normalise_hpet(hpet, report));
        let pm = self.pm.as_ref().ok_or_else(|| missing("HVM_CONTEXT PMTIMER"))?;
        vm.timers.pm_timer = timers::xen::normalise_pm_timer(pm, new_pm_ports, report);
        Ok(())
    }

    fn viridian(&self, policy: &Policy, report: &mut Report) {
        if self.viridian {
            report
                .record(STAGE, "HVM_CONTEXT VIRIDIAN")
                .dropped("body", "Hyper-V enlightenments are not offered");
            let what = "the guest uses Hyper-V enlightenments (viridian)";
            policy.refuse(report, refusal::VIRIDIAN, what, "boot it with viridian=0 before the move");
        }
    }
}

fn normalise_clock(info: Option<&libxc::X86TscInfo>, parts: &Parts, report: &mut Report) -> Clock {
    let Some(info) = info else {
        report
            .record(STAGE, "X86_TSC_INFO")
            .defaulted("khz", "the record is missing; taken from the HVM_CONTEXT header");
        return Clock { tsc_khz: parts.header.gtsc_khz, ..Clock::default() };
    };
    report.record(STAGE, "X86_TSC_INFO").carried(&["khz", "nsec"]).carried(&["mode", "incarnation"]);
    let tsc_khz = if info.khz == 0 { parts.header.gtsc_khz } else { info.khz };
    Clock { tsc_khz, guest_ns: info.nsec, tsc_emulated: info.mode == 1 }
}

/// What no other hypervisor has a place for.
fn keep_for_home(
    xen: &mut XenDomain,
    tsc_info: Option<&libxc::X86TscInfo>,
    parts: &Parts,
    params: &HvmParams,
) {
    xen.params = params.params.iter().map(|param| (param.index, param.value)).collect();
    xen.tsc_mode = tsc_info.map_or(0, |info| info.mode);
    xen.incarnation = tsc_info.map_or(0, |info| info.incarnation);
    (xen.changeset, xen.host_cpuid) = (parts.header.changeset, parts.header.cpuid);
}

fn normalise_params(params: &HvmParams, report: &mut Report) {
    let mut ledger = report.record(STAGE, "HVM_PARAMS");
    for param in &params.params {
        let name = param.name().map_or_else(|| format!("param {}", param.index), str::to_owned);
        match param.index {
            PARAM_ACPI_IOPORTS => ledger.derived(&name, "where the PM timer's ports lie"),
            index if XEN_ONLY_PARAMS.contains(&index) => ledger.dropped(&name, "Xen's own"),
            34 => ledger.dropped(
                &name,
                format!("VM generation id at {:#x}: the destination has no such device", param.value),
            ),
            38 => ledger.dropped(&name, "machine-check capability; the destination has its own"),
            _ => ledger.dropped(&name, format!("no counterpart (value {:#x})", param.value)),
        };
    }
}
