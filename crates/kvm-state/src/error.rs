//! Faults: of KVM (which ioctl, which vCPU, what it usually means), of a state file, of a state that does not map.

use crate::state::msr_name;

/// What a fallible call returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A fault, grouped by what a user can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// KVM refused an ioctl.
    #[error("{ioctl}{}: {source}{}", vcpu_text(*.vcpu), hint_text(.ioctl, source.errno()))]
    Ioctl {
        /// Name of the ioctl.
        ioctl: &'static str,
        /// vCPU it was called on (KVM's id), none for the VM or `/dev/kvm` itself.
        vcpu: Option<u32>,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// KVM refused the value of one MSR.
    #[error(
        "KVM_SET_MSRS on vCPU {vcpu}: {} ({index:#x}) = {value:#x} refused; usually the vCPU's CPUID does not offer it \
         or a reserved bit is set",
        msr_name(*index)
    )]
    Msr {
        /// vCPU, by KVM's id.
        vcpu: u32,
        /// MSR number.
        index: u32,
        /// The value that KVM did not take.
        value: u64,
    },
    /// KVM lacks something that the state needs.
    #[error("this host's KVM has no {capability}: {why}")]
    Capability {
        /// Name of the capability.
        capability: &'static str,
        /// What needs it and what to do instead.
        why: String,
    },
    /// A field holds a value that KVM's ioctls or the neutral model cannot express.
    #[error("{field}: found {found}, wanted {wanted}")]
    Field {
        /// Path of the field.
        field: String,
        /// Its value.
        found: String,
        /// What can be expressed.
        wanted: String,
    },
    /// The text is not a state file.
    #[error("state file: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version wrote the state file.
    #[error(
        "state file: version: found {found}, wanted {}; read it with the hyperferry that wrote it",
        crate::VERSION
    )]
    Version {
        /// Version in the file.
        found: u64,
    },
}

impl Error {
    pub(crate) fn field(
        field: impl Into<String>,
        found: impl std::fmt::Display,
        wanted: impl Into<String>,
    ) -> Self {
        Self::Field { field: field.into(), found: found.to_string(), wanted: wanted.into() }
    }

    /// Names the ioctl in a failure of a call on a vCPU.
    pub(crate) fn on_vcpu(ioctl: &'static str, vcpu: u32) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Ioctl { ioctl, vcpu: Some(vcpu), source }
    }

    /// Names the ioctl in a failure of a call on a VM or on `/dev/kvm`.
    pub(crate) fn on_vm(ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Ioctl { ioctl, vcpu: None, source }
    }
}

fn vcpu_text(vcpu: Option<u32>) -> String {
    vcpu.map(|id| format!(" on vCPU {id}")).unwrap_or_default()
}

fn hint_text(ioctl: &str, errno: i32) -> String {
    hint(ioctl, errno).map(|hint| format!("; usually {hint}")).unwrap_or_default()
}

const ENOENT: i32 = 2;
const E2BIG: i32 = 7;
const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENXIO: i32 = 6;
const EPERM: i32 = 1;

/// What an errno of an ioctl usually means: a hint for a person, on which nothing depends.
fn hint(ioctl: &str, errno: i32) -> Option<&'static str> {
    Some(match (ioctl, errno) {
        ("open /dev/kvm", ENOENT) => {
            "there is no KVM here: load kvm_intel or kvm_amd, enable it in the firmware"
        }
        ("open /dev/kvm", EACCES | EPERM) => "the user is not in group kvm",
        ("open /dev/kvm", ENODEV | ENXIO) => {
            "the module is loaded and the CPU or firmware offers no virtualization"
        }
        ("KVM_CREATE_VM", EBUSY) => "another hypervisor on this host holds the CPU's virtualization",
        ("KVM_CREATE_VCPU", EINVAL) => "the id is over KVM_CAP_MAX_VCPU_ID, or there are too many vCPUs",
        ("KVM_CREATE_VCPU", EEXIST) => "two vCPUs with the same APIC id",
        ("KVM_CREATE_IRQCHIP" | "KVM_CREATE_PIT2", EEXIST) => "it was created before",
        ("KVM_ENABLE_CAP(KVM_CAP_X86_APIC_BUS_CYCLES_NS)", EINVAL) => {
            "Linux older than 6.11, no in-kernel APIC, or a vCPU was created before"
        }
        ("KVM_SET_CPUID2", E2BIG) => "more leaves than KVM_MAX_CPUID_ENTRIES (256)",
        ("KVM_SET_CPUID2", EINVAL) => "the leaves contradict each other, or the vCPU ran before with others",
        ("KVM_SET_SREGS", EINVAL) => {
            "CR4, CR0 or EFER has a bit that the vCPU's CPUID does not offer, or APIC_BASE is malformed"
        }
        ("KVM_SET_XCRS", EINVAL) => {
            "XCR0 has a bit that the vCPU's CPUID leaf 0xd or this host does not offer"
        }
        ("KVM_SET_XSAVE", EINVAL) => {
            "XSTATE_BV has a component that this host lacks, or MXCSR has a reserved bit"
        }
        ("KVM_SET_DEBUGREGS", EINVAL) => "the upper half of DR6 or DR7 is not zero",
        ("KVM_SET_LAPIC", EINVAL) => "in x2APIC mode the id is not the one the vCPU was created with",
        ("KVM_SET_VCPU_EVENTS", EINVAL) => "an event with a vector over 31, or SMM without KVM_CAP_X86_SMM",
        ("KVM_SET_MP_STATE", EINVAL) => "a state other than RUNNABLE needs the in-kernel APIC",
        ("KVM_SET_TSC_KHZ", EINVAL | EPERM) => "the host cannot scale the TSC down to this rate",
        ("KVM_GET_IRQCHIP" | "KVM_SET_IRQCHIP" | "KVM_GET_PIT2" | "KVM_SET_PIT2", ENXIO) => {
            "the VM was created without the in-kernel chip (QEMU: kernel-irqchip=on)"
        }
        (_, ENOMEM) => "the host is out of memory",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ioctl_error_says_which_where_why() {
        let error = Error::on_vcpu("KVM_SET_SREGS", 2)(kvm_ioctls::Error::new(EINVAL));
        let text = error.to_string();
        assert!(
            text.starts_with("KVM_SET_SREGS on vCPU 2: Invalid argument (os error 22); usually CR4"),
            "{text}"
        );
        let text = Error::on_vm("KVM_GET_CLOCK")(kvm_ioctls::Error::new(EINVAL)).to_string();
        assert_eq!(text, "KVM_GET_CLOCK: Invalid argument (os error 22)");
    }

    #[test]
    fn a_refused_msr_is_named() {
        let text = Error::Msr { vcpu: 0, index: 0x277, value: 9 }.to_string();
        assert!(text.starts_with("KVM_SET_MSRS on vCPU 0: IA32_PAT (0x277) = 0x9 refused"), "{text}");
    }
}
