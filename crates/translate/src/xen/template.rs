//! What a Xen host's save files look like: the dialect that its Xen and its device model will load.
//!
//! Sections of EMULATOR_CONTEXT have no lengths, and their fields change with QEMU's version. So the ones that are
//! written repeat the ones that a guest of that host had: any save file will do. Without one the bundled ones are
//! taken, saved by Xen 4.17 with QEMU 7.2 (Debian 12) and stripped of their memory.
//!
//! libxl starts the device model as machine `xenfv` for a guest with the platform device, and as `pc` for one without
//! (tools/libs/light/libxl_dm.c); `xenfv` keeps to an old QEMU's sections.

use std::io::Read;

use hyperferry_qemu_stream::{DeviceState, Section};
use hyperferry_vm_model::{CpuidPolicy, GuestConfig, Vm};
use hyperferry_wire::StreamPath;
use hyperferry_xen_stream::{Event, StreamReader, hvm, libxc, libxl};

use super::{cpuid_leaf, msr_entry};
use crate::{
    Error, Result, cpu_features,
    report::{Report, Severity},
};

/// Two vCPUs, standard VGA, e1000, a disk, a CD-ROM drive, a USB tablet.
const PC: &[u8] = include_bytes!("../../templates/pc-std-e1000.xen");
/// The same with the platform device, a Cirrus VGA and rtl8139.
const XENFV: &[u8] = include_bytes!("../../templates/xenfv-cirrus-rtl8139.xen");
/// Sections of the machine itself: another machine's are no substitute.
const OF_THE_MACHINE: [&str; 1] = ["PCIHost"];

/// A Xen host's dialect.
#[derive(Clone, Debug)]
pub struct Template {
    /// Its Xen: major and minor version.
    pub version: [u32; 2],
    /// The CPUID policy of a guest there.
    pub cpuid: CpuidPolicy,
    /// Changeset of its Xen, as HVM_CONTEXT's HEADER has it.
    pub(super) changeset: u64,
    /// `CPUID[1].EAX` of the host, as HVM_CONTEXT's HEADER has it.
    pub(super) host_cpuid: u32,
    /// Bytes that its LAPIC records lack at the end. The length tells more than the version does: Debian's 4.20 has
    /// 4.21's records, and a Xen refuses what is longer than its own.
    pub(super) lapic_elided: usize,
    /// Sections of its device model, in the model's own order.
    pub(super) sections: Vec<Section>,
}

impl Template {
    /// Learns from a guest that the host has saved. Memory is read past.
    pub fn from_stream<R: Read>(reader: R) -> Result<Self> {
        let mut reader = StreamReader::new(reader);
        let missing =
            |record| Error::Missing { record, instance: None, why: "a template is a whole save file" };
        let (mut version, mut cpuid, mut header, mut emulator) = (None, CpuidPolicy::default(), None, None);
        let mut lapic_elided = hvm::Lapic::PENDING_ESR;
        while let Some(event) = reader.next_event()? {
            match event {
                Event::DomainHeader(found) => version = Some([found.xen_major, found.xen_minor]),
                Event::Libxc(libxc::Record::X86CpuidPolicy(record)) => {
                    cpuid.leaves = record.leaves.iter().map(cpuid_leaf).collect();
                }
                Event::Libxc(libxc::Record::X86MsrPolicy(record)) => {
                    cpuid.msrs = record.msrs.iter().map(msr_entry).collect();
                }
                Event::Libxc(libxc::Record::HvmContext(context)) => {
                    header = context.header().cloned();
                    let lapic =
                        context.entries.iter().find(|entry| matches!(entry.record, hvm::Record::Lapic(_)));
                    lapic_elided = lapic.map_or(lapic_elided, |entry| entry.elided);
                }
                Event::Libxl(libxl::Record::EmulatorContext(record)) => {
                    let offset =
                        reader.offset().saturating_sub((record.blob.len() as u64).next_multiple_of(8));
                    let path = StreamPath::root().child("template").child("EMULATOR_CONTEXT");
                    emulator = Some(DeviceState::decode_emulator_context(&record.blob, offset, path)?);
                }
                // A template may come from a live sender, which waits for an answer behind its END.
                Event::Libxl(libxl::Record::End) => break,
                _ => {}
            }
        }
        let hvm::Header { changeset, cpuid: host_cpuid, .. } = header.ok_or(missing("HVM_CONTEXT"))?;
        Ok(Self {
            version: version.ok_or(missing("libxc domain header"))?,
            cpuid,
            changeset,
            host_cpuid,
            lapic_elided,
            sections: emulator.ok_or(missing("EMULATOR_CONTEXT"))?.sections,
        })
    }

    /// The dialect of Xen 4.17 with QEMU 7.2, for a guest like this one.
    pub fn bundled(guest: &GuestConfig) -> Result<Self> {
        let (own, other) = if guest.xen_platform { (XENFV, PC) } else { (PC, XENFV) };
        let mut template = Self::from_stream(own)?;
        for section in Self::from_stream(other)?.sections {
            let vmsd = section.vmsd();
            if template.section(vmsd).is_none() && !OF_THE_MACHINE.contains(&vmsd) {
                template.sections.push(section);
            }
        }
        Ok(template)
    }

    /// Says what CPU a guest is shown of which nobody knows what it has seen; `named` tells whether the user chose this
    /// template.
    pub fn note_cpu(&self, outline: &Vm, named: bool, report: &mut Report) {
        if !outline.cpuid.leaves.is_empty() {
            return;
        }
        let whose = if named { "the template's" } else { "the bundled template's" };
        let vendor = cpu_features::vendor(&self.cpuid).unwrap_or_else(|| "an unknown vendor".to_owned());
        let (family, model, stepping) = cpu_features::signature(&self.cpuid).unwrap_or_default();
        let what = format!(
            "the stream does not tell what CPU the guest was shown; on Xen it is shown {whose}: {vendor}, family \
             {family}, model {model}, stepping {stepping}"
        );
        let remedy = "a guest may crash without a feature that it has used: --template FILE names a save file of the Xen \
                      host, of a guest with the wanted cpuid=; `hyperferry send` asks a QEMU that still runs";
        report.find("cpuid", if named { Severity::Note } else { Severity::Warning }, what, remedy);
    }

    /// The first section of a kind of device.
    pub(super) fn section(&self, vmsd: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.vmsd() == vmsd)
    }

    /// Where sections of this kind stand in the device model's order.
    pub(super) fn rank(&self, vmsd: &str) -> usize {
        self.sections.iter().position(|section| section.vmsd() == vmsd).unwrap_or(usize::MAX)
    }

    /// The CPUID policy that the guest is shown: its own, or for a guest that no Xen has seen the host's.
    pub(super) fn cpuid_for<'a>(&'a self, vm: &'a Vm) -> &'a CpuidPolicy {
        if vm.cpuid.leaves.is_empty() { &self.cpuid } else { &vm.cpuid }
    }
}
