//! A vCPU: its parts, its run state and the events on their way into it.

use hyperferry_vm_model::{EventKind, PendingEvent, RunState, Vcpu, Vm};
use kvm_bindings::{KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW};

use super::{cpuid, lapic, msr, registers, xsave};
use crate::fate::Fates;
use crate::state::{KvmVcpu, MpState, VcpuEvents, Xcr};
use crate::{Error, Result};

/// Interrupts are held off by `STI`; the model does not tell it from `MOV SS`.
const SHADOW_STI: u8 = 2;
/// Vectors of `INT3` and `INTO`.
const SOFT_EXCEPTIONS: [u8; 2] = [3, 4];

pub(super) fn localise(vm: &Vm, vcpu: &Vcpu, cycle_ns: u32, fates: &mut Fates) -> Result<KvmVcpu> {
    let vcpu_id = lapic::vcpu_id(&vcpu.lapic)?;
    fates.derived("id", "the place in the list");
    fates.carried(&["general"], "regs");
    fates.carried(&["segments", "tables"], "sregs");
    fates.carried(&["system"], "sregs, debugregs, xcrs");
    fates.dropped("xcr0_accumulated", "KVM does not keep it");
    fates.carried(&["run_state"], "mp_state");
    let mp_state = match vcpu.run_state {
        RunState::Running => MpState::RUNNABLE,
        RunState::Halted => MpState::HALTED,
        // KVM resets such a vCPU at INIT, so its registers need not be those of a reset. INIT_RECEIVED would keep them.
        RunState::WaitForSipi => MpState::UNINITIALIZED,
    };
    Ok(KvmVcpu {
        vcpu_id,
        tsc_khz: vm.clock.tsc_khz,
        cpuid2: cpuid::leaves(&vm.cpuid, vcpu_id),
        mp_state,
        regs: registers::localise_regs(&vcpu.general),
        sregs: registers::localise_sregs(vcpu)?,
        xsave: xsave::localise(vcpu, fates),
        xcrs: vec![Xcr { xcr: 0, value: vcpu.system.xcr0 }],
        debugregs: registers::localise_debugregs(&vcpu.system),
        lapic: lapic::localise(&vcpu.lapic, cycle_ns, fates)?,
        msrs: msr::localise(vcpu, &cpuid::policy_msrs(&vm.cpuid), fates),
        vcpu_events: localise_events(vcpu, fates),
    })
}

fn localise_events(vcpu: &Vcpu, fates: &mut Fates) -> VcpuEvents {
    let mut events = VcpuEvents {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..VcpuEvents::default()
    };
    fates.carried(&["pending_event", "interrupt_shadow", "nmi_blocked"], "vcpu_events");
    events.interrupt.shadow = if vcpu.interrupt_shadow { SHADOW_STI } else { 0 };
    events.nmi.masked = vcpu.nmi_blocked.into();
    let Some(PendingEvent { kind, vector, error_code }) = vcpu.pending_event else { return events };
    match kind {
        EventKind::ExternalInterrupt | EventKind::SoftwareInterrupt => {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
            events.interrupt.soft = (kind == EventKind::SoftwareInterrupt).into();
        }
        EventKind::Nmi => events.nmi.injected = 1,
        EventKind::HardwareException
        | EventKind::SoftwareException
        | EventKind::PrivilegedSoftwareException => {
            events.exception.injected = 1;
            events.exception.nr = vector;
            events.exception.has_error_code = error_code.is_some().into();
            events.exception.error_code = error_code.unwrap_or(0);
        }
    }
    if normalise_event(&events) != vcpu.pending_event {
        fates.derived("pending_event", "KVM tells the kind of an exception from its vector");
    }
    events
}

pub(super) fn normalise(index: u32, from: &KvmVcpu, cycle_ns: u32, fates: &mut Fates) -> Result<Vcpu> {
    fates.derived("vcpu_id", "lapic.id; the model counts vCPUs by their place");
    fates.carried(
        &["regs", "sregs", "xcrs", "debugregs"],
        "general, segments, tables, system, lapic.apic_base",
    );
    fates.derived("sregs.cr8", "lapic.tpr");
    fates.derived("sregs.interrupt_bitmap", "pending_event, from vcpu_events");
    for xcr in from.xcrs.iter().filter(|xcr| xcr.xcr != 0) {
        fates.dropped("xcrs", format!("XCR{} = {:#x}: no place in the model", xcr.xcr, xcr.value));
    }
    let mut vcpu = Vcpu {
        id: index,
        run_state: normalise_run_state(from.mp_state, fates)?,
        general: registers::normalise_regs(&from.regs),
        segments: registers::normalise_segments(&from.sregs),
        tables: registers::normalise_tables(&from.sregs),
        system: registers::normalise_system(from),
        ..Vcpu::default()
    };
    xsave::normalise(from, &mut vcpu, fates)?;
    let apic_base = from.sregs.apic_base;
    msr::normalise(from, &mut vcpu, fates);
    let tsc_deadline = vcpu.lapic.timer.tsc_deadline;
    vcpu.lapic = lapic::normalise(&from.lapic, apic_base, tsc_deadline, cycle_ns, fates)?;
    normalise_events(&from.vcpu_events, &mut vcpu, fates);
    Ok(vcpu)
}

fn normalise_run_state(state: MpState, fates: &mut Fates) -> Result<RunState> {
    match state {
        MpState::RUNNABLE => {
            fates.carried(&["mp_state"], "run_state");
            Ok(RunState::Running)
        }
        MpState::HALTED => {
            fates.carried(&["mp_state"], "run_state");
            Ok(RunState::Halted)
        }
        MpState::UNINITIALIZED | MpState::INIT_RECEIVED | MpState::SIPI_RECEIVED => {
            fates.derived(
                "mp_state",
                format!("{state}: the model only knows that the vCPU waits to be started"),
            );
            Ok(RunState::WaitForSipi)
        }
        other => Err(Error::field(
            "mp_state",
            other,
            "RUNNABLE, UNINITIALIZED, INIT_RECEIVED, HALTED or SIPI_RECEIVED",
        )),
    }
}

fn normalise_events(events: &VcpuEvents, vcpu: &mut Vcpu, fates: &mut Fates) {
    fates.carried(&["vcpu_events"], "pending_event, interrupt_shadow, nmi_blocked");
    fates.derived("vcpu_events.flags", "told from the fields that the model has");
    vcpu.interrupt_shadow = events.interrupt.shadow != 0;
    vcpu.nmi_blocked = events.nmi.masked != 0;
    vcpu.pending_event = normalise_event(events);
    let no_place = |field: &str, value: u64, fates: &mut Fates| {
        if value != 0 {
            fates.dropped(&format!("vcpu_events.{field}"), format!("{value:#x}: no place in the model"));
        }
    };
    no_place("nmi.pending", events.nmi.pending.into(), fates);
    no_place("exception.pending", events.exception.pending.into(), fates);
    no_place("exception_payload", events.exception_payload, fates);
    no_place("sipi_vector", events.sipi_vector.into(), fates);
    no_place("triple_fault_pending", events.triple_fault_pending.into(), fates);
    let smi = [events.smi.smm, events.smi.pending, events.smi.smm_inside_nmi, events.smi.latched_init];
    no_place("smi", u64::from(u32::from_le_bytes(smi)), fates);
    let injected = [events.exception.injected, events.interrupt.injected, events.nmi.injected];
    if injected.iter().filter(|flag| **flag != 0).count() > 1 {
        fates.dropped("vcpu_events: all injected events but the first", "the model has one");
    }
}

/// The event in flight: an exception outranks an NMI, that an interrupt, as KVM injects them.
fn normalise_event(events: &VcpuEvents) -> Option<PendingEvent> {
    let VcpuEvents { exception, interrupt, nmi, .. } = events;
    if exception.injected != 0 {
        let error_code = (exception.has_error_code != 0).then_some(exception.error_code);
        let soft = SOFT_EXCEPTIONS.contains(&exception.nr) && error_code.is_none();
        let kind = if soft { EventKind::SoftwareException } else { EventKind::HardwareException };
        Some(PendingEvent { kind, vector: exception.nr, error_code })
    } else if nmi.injected != 0 {
        Some(PendingEvent { kind: EventKind::Nmi, vector: 2, error_code: None })
    } else if interrupt.injected != 0 {
        let soft = interrupt.soft != 0;
        let kind = if soft { EventKind::SoftwareInterrupt } else { EventKind::ExternalInterrupt };
        Some(PendingEvent { kind, vector: interrupt.nr, error_code: None })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fate;

    #[test]
    fn events_come_back() {
        use EventKind as Kind;
        for (kind, vector, error_code, same) in [
            (Kind::ExternalInterrupt, 0x31, None, true),
            (Kind::SoftwareInterrupt, 0x80, None, true),
            (Kind::Nmi, 2, None, true),
            (Kind::HardwareException, 14, Some(2), true),
            (Kind::HardwareException, 6, None, true),
            (Kind::SoftwareException, 3, None, true),
            (Kind::PrivilegedSoftwareException, 1, None, false),
            (Kind::HardwareException, 4, None, false),
        ] {
            let event = PendingEvent { kind, vector, error_code };
            let mut fates = Fates::default();
            let vcpu = Vcpu { pending_event: Some(event), ..Vcpu::default() };
            let events = localise_events(&vcpu, &mut fates);
            assert_eq!(normalise_event(&events) == Some(event), same, "{event:?}");
            let derived = fates.into_list().iter().any(|fate| fate.fate == Fate::Derived);
            assert_eq!(derived, !same, "{event:?}");
        }
    }

    #[test]
    fn a_state_of_another_architecture_is_an_error() {
        let error = normalise_run_state(MpState(9), &mut Fates::default()).unwrap_err().to_string();
        assert!(error.starts_with("mp_state: found 0x9, wanted RUNNABLE"), "{error}");
        let mut fates = Fates::default();
        assert_eq!(normalise_run_state(MpState::SIPI_RECEIVED, &mut fates).unwrap(), RunState::WaitForSipi);
        assert_eq!(fates.into_list()[0].fate, Fate::Derived);
    }
}
