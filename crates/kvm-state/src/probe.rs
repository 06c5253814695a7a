//! What the KVM of this host offers, for a check before a move.

use kvm_bindings::{
    KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL, KVM_XEN_HVM_CONFIG_EVTCHN_SEND, KVM_XEN_HVM_CONFIG_HYPERCALL_MSR,
    KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE, KVM_XEN_HVM_CONFIG_RUNSTATE,
    KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG, KVM_XEN_HVM_CONFIG_SHARED_INFO,
    KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA,
};
use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};

use crate::capture::{CAP_X86_APIC_BUS_CYCLES_NS, msr_indices};
use crate::state::{CpuidEntry2, XsaveLayout};
use crate::{Error, Result};

/// The version of the API that `KVM_GET_API_VERSION` has returned since 2007.
const API_VERSION: i32 = 12;

/// What this host offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Whether `/dev/kvm` can be used.
    pub access: Access,
    /// Why not, where it cannot.
    pub reason: Option<String>,
    /// What it offers, where it can.
    pub capabilities: Option<Capabilities>,
}

/// Whether `/dev/kvm` can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// There is no `/dev/kvm`.
    Absent,
    /// It is there, and opening it or making a VM fails.
    Unusable,
    /// A VM with a vCPU could be made.
    Usable,
}

/// What KVM offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// `KVM_GET_API_VERSION`: 12.
    pub api_version: i32,
    /// `KVM_CAP_MAX_VCPUS`.
    pub max_vcpus: usize,
    /// `KVM_CAP_MAX_VCPU_ID`: the highest APIC id, plus one.
    pub max_vcpu_id: usize,
    /// The in-kernel PIC, I/O APIC and local APICs can be made.
    pub irqchip: bool,
    /// Pins of its I/O APIC.
    pub ioapic_pins: u32,
    /// The in-kernel interval timer can be made.
    pub pit2: bool,
    /// `KVM_CAP_TSC_CONTROL`: the TSC can be scaled in hardware.
    pub tsc_control: bool,
    /// Rate of the host's TSC, kHz.
    pub tsc_khz: u32,
    /// `KVM_CAP_TSC_DEADLINE_TIMER`.
    pub tsc_deadline_timer: bool,
    /// `KVM_CAP_X86_APIC_BUS_CYCLES_NS` (237, Linux 6.11): the APIC bus clock can be set.
    pub apic_bus_cycles_ns: bool,
    /// `KVM_CAP_XEN_HVM`: its flags, 0 where KVM was built without Xen support.
    pub xen_hvm: u32,
    /// Names of those flags.
    pub xen_hvm_flags: Vec<String>,
    /// `KVM_GET_SUPPORTED_CPUID`.
    pub cpuid: Vec<CpuidEntry2>,
    /// `KVM_GET_MSR_INDEX_LIST` and the MTRRs, ascending.
    pub msrs: Vec<u32>,
    /// XCR0 bits that a guest may have.
    pub xcr0: u64,
    /// Where XSAVE puts its components.
    pub xsave: XsaveLayout,
    /// `KVM_CAP_XSAVE2`: bytes of the XSAVE area, 0 before Linux 5.17.
    pub xsave_size: u32,
}

/// Asks the KVM of this host. A host without a usable KVM is an answer, not an error.
pub fn probe() -> Probe {
    const PATH: &str = "/dev/kvm";
    if !std::path::Path::new(PATH).exists() {
        let reason = format!("there is no {PATH}");
        return Probe { access: Access::Absent, reason: Some(reason), capabilities: None };
    }
    match ask() {
        Ok(capabilities) => Probe { access: Access::Usable, reason: None, capabilities: Some(capabilities) },
        Err(error) => Probe { access: Access::Unusable, reason: Some(error.to_string()), capabilities: None },
    }
}

fn ask() -> Result<Capabilities> {
    let kvm = Kvm::new().map_err(Error::on_vm("open /dev/kvm"))?;
    let api_version = kvm.get_api_version();
    if api_version != API_VERSION {
        return Err(Error::field("KVM_GET_API_VERSION", api_version, API_VERSION.to_string()));
    }
    let vm = kvm.create_vm().map_err(Error::on_vm("KVM_CREATE_VM"))?;
    let irqchip = vm.create_irq_chip().is_ok();
    let pit2 = irqchip && vm.create_pit2(Default::default()).is_ok();
    let vcpu = vm.create_vcpu(0).map_err(Error::on_vcpu("KVM_CREATE_VCPU", 0))?;
    let tsc_khz = vcpu.get_tsc_khz().map_err(Error::on_vcpu("KVM_GET_TSC_KHZ", 0))?;
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(Error::on_vm("KVM_GET_SUPPORTED_CPUID"))?;
    let cpuid: Vec<CpuidEntry2> = supported.as_slice().iter().map(Into::into).collect();
    let xcr0 = cpuid
        .iter()
        .find(|leaf| leaf.function == 0xd && leaf.index == 0)
        .map_or(0, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax));
    let xen_hvm = u32::try_from(kvm.check_extension_int(Cap::XenHvm)).unwrap_or(0);
    Ok(Capabilities {
        api_version,
        max_vcpus: kvm.get_max_vcpus(),
        max_vcpu_id: kvm.get_max_vcpu_id(),
        irqchip,
        ioapic_pins: if irqchip { kvm_bindings::KVM_IOAPIC_NUM_PINS } else { 0 },
        pit2,
        tsc_control: kvm.check_extension(Cap::TscControl),
        tsc_khz,
        tsc_deadline_timer: kvm.check_extension(Cap::TscDeadlineTimer),
        apic_bus_cycles_ns: kvm.check_extension_raw(CAP_X86_APIC_BUS_CYCLES_NS.into()) > 0,
        xen_hvm,
        xen_hvm_flags: xen_flag_names(xen_hvm),
        xsave: XsaveLayout::from_cpuid(&cpuid)?,
        cpuid,
        msrs: msr_indices(&kvm)?.into_iter().collect(),
        xcr0,
        xsave_size: u32::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0),
    })
}

fn xen_flag_names(flags: u32) -> Vec<String> {
    [
        (KVM_XEN_HVM_CONFIG_HYPERCALL_MSR, "HYPERCALL_MSR"),
        (KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, "INTERCEPT_HCALL"),
        (KVM_XEN_HVM_CONFIG_SHARED_INFO, "SHARED_INFO"),
        (KVM_XEN_HVM_CONFIG_RUNSTATE, "RUNSTATE"),
        (KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL, "EVTCHN_2LEVEL"),
        (KVM_XEN_HVM_CONFIG_EVTCHN_SEND, "EVTCHN_SEND"),
        (KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG, "RUNSTATE_UPDATE_FLAG"),
        (KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE, "PVCLOCK_TSC_UNSTABLE"),
        (KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA, "SHARED_INFO_HVA"),
    ]
    .into_iter()
    .filter(|(flag, _)| flags & flag != 0)
    .map(|(_, name)| name.to_owned())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xen_flags_have_names() {
        assert_eq!(xen_flag_names(511).len(), 9);
        assert_eq!(xen_flag_names(5), ["HYPERCALL_MSR", "SHARED_INFO"]);
        assert!(xen_flag_names(0).is_empty());
    }

    #[test]
    fn the_answer_is_an_answer_on_every_host() {
        let answer = probe();
        assert_eq!(answer.access == Access::Usable, answer.capabilities.is_some());
        assert_eq!(answer.access == Access::Usable, answer.reason.is_none());
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<Probe>(&text).unwrap(), answer);
        match &answer.capabilities {
            Some(found) => {
                assert_eq!(found.api_version, API_VERSION);
                assert!(found.max_vcpus > 0 && found.tsc_khz > 0 && !found.cpuid.is_empty());
                assert!(found.msrs.contains(&0x174), "SYSENTER_CS");
            }
            None => eprintln!("skipped: the content of the answer: {}", answer.reason.unwrap_or_default()),
        }
    }
}
