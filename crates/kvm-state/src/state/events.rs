//! `kvm_vcpu_events`: events on their way into a vCPU.

use serde::{Deserialize, Serialize};

use super::mirror;
use crate::hex;

/// `kvm_vcpu_events`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuEvents {
    /// An exception.
    pub exception: EventException,
    /// An external or software interrupt, and the interrupt shadow.
    pub interrupt: EventInterrupt,
    /// A non-maskable interrupt.
    pub nmi: EventNmi,
    /// Vector of the startup IPI; KVM never reports it.
    pub sipi_vector: u32,
    /// `KVM_VCPUEVENT_VALID_*`: which of the optional fields count.
    pub flags: u32,
    /// System management mode.
    pub smi: EventSmi,
    /// A triple fault waits.
    pub triple_fault_pending: u8,
    /// `exception_payload` counts.
    pub exception_has_payload: u8,
    /// DR6 or CR2 of the exception.
    #[serde(with = "hex")]
    pub exception_payload: u64,
}

/// `kvm_vcpu_events.exception`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventException {
    /// Delivery has begun.
    pub injected: u8,
    /// Its vector.
    pub nr: u8,
    /// It has an error code.
    pub has_error_code: u8,
    /// It waits; counts only with `KVM_VCPUEVENT_VALID_PAYLOAD`.
    pub pending: u8,
    /// The error code.
    #[serde(with = "hex")]
    pub error_code: u32,
}

/// `kvm_vcpu_events.interrupt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventInterrupt {
    /// Delivery has begun.
    pub injected: u8,
    /// Its vector.
    pub nr: u8,
    /// It is `INT n`, not an external one.
    pub soft: u8,
    /// Interrupts are held off for one instruction: bit 0 by `MOV SS`, bit 1 by `STI`.
    pub shadow: u8,
}

/// `kvm_vcpu_events.nmi`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventNmi {
    /// Delivery has begun.
    pub injected: u8,
    /// How many wait.
    pub pending: u8,
    /// Held off until the next `IRET`.
    pub masked: u8,
}

/// `kvm_vcpu_events.smi`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventSmi {
    /// In system management mode.
    pub smm: u8,
    /// An SMI waits.
    pub pending: u8,
    /// SMM was entered inside an NMI.
    pub smm_inside_nmi: u8,
    /// An INIT waits for the end of SMM.
    pub latched_init: u8,
}

mirror!(EventException = kvm_vcpu_events__bindgen_ty_1 { injected, nr, has_error_code, pending, error_code });
mirror!(EventInterrupt = kvm_vcpu_events__bindgen_ty_2 { injected, nr, soft, shadow });
mirror!(EventNmi = kvm_vcpu_events__bindgen_ty_3 { injected, pending, masked });
mirror!(EventSmi = kvm_vcpu_events__bindgen_ty_4 { smm, pending, smm_inside_nmi, latched_init });

impl From<&kvm_bindings::kvm_vcpu_events> for VcpuEvents {
    fn from(theirs: &kvm_bindings::kvm_vcpu_events) -> Self {
        Self {
            exception: (&theirs.exception).into(),
            interrupt: (&theirs.interrupt).into(),
            nmi: (&theirs.nmi).into(),
            sipi_vector: theirs.sipi_vector,
            flags: theirs.flags,
            smi: (&theirs.smi).into(),
            triple_fault_pending: theirs.triple_fault.pending,
            exception_has_payload: theirs.exception_has_payload,
            exception_payload: theirs.exception_payload,
        }
    }
}

impl From<&VcpuEvents> for kvm_bindings::kvm_vcpu_events {
    fn from(ours: &VcpuEvents) -> Self {
        Self {
            exception: (&ours.exception).into(),
            interrupt: (&ours.interrupt).into(),
            nmi: (&ours.nmi).into(),
            sipi_vector: ours.sipi_vector,
            flags: ours.flags,
            smi: (&ours.smi).into(),
            triple_fault: kvm_bindings::kvm_vcpu_events__bindgen_ty_5 { pending: ours.triple_fault_pending },
            exception_has_payload: ours.exception_has_payload,
            exception_payload: ours.exception_payload,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_survives() {
        let events = VcpuEvents {
            exception: EventException {
                injected: 1,
                nr: 14,
                has_error_code: 1,
                pending: 2,
                error_code: 0x1f,
            },
            interrupt: EventInterrupt { injected: 1, nr: 0x31, soft: 3, shadow: 2 },
            nmi: EventNmi { injected: 4, pending: 5, masked: 6 },
            sipi_vector: 7,
            flags: 0xd,
            smi: EventSmi { smm: 8, pending: 9, smm_inside_nmi: 10, latched_init: 11 },
            triple_fault_pending: 12,
            exception_has_payload: 13,
            exception_payload: 14,
        };
        let theirs = kvm_bindings::kvm_vcpu_events::from(&events);
        assert_eq!(size_of_val(&theirs), 64);
        assert_eq!(VcpuEvents::from(&theirs), events);
    }
}
