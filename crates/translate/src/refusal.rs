//! What we refuse by default, by name, and how a user allows it.

use std::collections::BTreeSet;

use crate::report::{Finding, Report, Severity};

/// A reason to refuse, as `--allow` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Name on the command line.
    pub name: &'static str,
    /// What happens to the guest when it is allowed.
    pub effect: &'static str,
    /// Whether `--allow` can override it at all.
    pub can_allow: bool,
}

macro_rules! refusals {
    ($($ident:ident = $name:literal, $can_allow:literal, $effect:literal;)*) => {
        $(#[doc = $effect] pub const $ident: Refusal =
            Refusal { name: $name, effect: $effect, can_allow: $can_allow };)*
        /// All of them, in the order of `--help`.
        pub const ALL: &[Refusal] = &[$($ident),*];
    };
}

refusals! {
    ACPI_PAGES = "acpi-pages", true, "the guest's ACPI tables are left behind; ACPI methods that read them fail";
    CPU_FEATURES = "cpu-features", true, "the guest uses CPU features that the destination lacks, and may crash";
    DEVICE = "device", true, "a device without a counterpart on the destination is left behind";
    HPET = "hpet", true, "the HPET ticks at another rate (1.6x from Xen to QEMU, 0.625x back)";
    INTX = "intx", true, "a PCI device's legacy interrupt no longer reaches the guest";
    KVMCLOCK = "kvmclock", true, "the guest's clock stops, or jumps: nobody updates KVM's paravirtual clock";
    KVM_PV = "kvm-pv", true, "KVM's services end: asynchronous page faults, end of interrupt, steal time";
    LAPIC_TIMER = "lapic-timer", true, "a local APIC timer ticks at another rate (10x from Xen to QEMU, a tenth back)";
    NESTED = "nested", true, "the state of the guest's own guests is lost";
    PV_DRIVERS = "pv-drivers", true, "paravirtual disks, network cards and clocks stop, and the guest may crash";
    TSC_FREQUENCY = "tsc-frequency", true, "a guest that takes its time from the TSC runs at the destination's rate";
    SMM = "smm", true, "a vCPU in system management mode goes on as if it were not";
    VIRTIO = "virtio", true, "virtio devices are left behind, and the guest's disks or network with them";
    VIRIDIAN = "viridian", true, "Hyper-V enlightenments vanish; Windows may crash";
    XSTATE = "xstate", true, "extended CPU state that the stream lacks or the target cannot hold is lost";
    DOMAIN_TYPE = "domain-type", false, "only HVM domains can move";
    MACHINE = "machine", false, "the machine type has no counterpart";
    MEMORY_LAYOUT = "memory-layout", false, "the destination cannot place the guest's memory";
    PASSTHROUGH = "passthrough", false, "host devices cannot move";
    PENDING_EVENT = "pending-event", false, "an exception's error code has no place in the target's stream";
    RECORD = "record", false, "a mandatory record is unknown";
}

/// Looks a refusal up by its name.
pub fn by_name(name: &str) -> Option<Refusal> {
    ALL.iter().copied().find(|refusal| refusal.name == name)
}

/// The refusals that the user has allowed.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    allowed: BTreeSet<&'static str>,
}

impl Policy {
    /// Allows a refusal; says no when its name is unknown or nothing can override it.
    pub fn allow(&mut self, name: &str) -> Result<(), NotAllowed> {
        match by_name(name) {
            Some(refusal) if refusal.can_allow => {
                self.allowed.insert(refusal.name);
                Ok(())
            }
            Some(refusal) => Err(NotAllowed::Final(refusal.name, refusal.effect)),
            None => Err(NotAllowed::Unknown(name.to_owned())),
        }
    }

    /// Allows whatever can be allowed: for reading that harms no guest.
    pub fn allow_all() -> Self {
        Self { allowed: ALL.iter().filter(|refusal| refusal.can_allow).map(|refusal| refusal.name).collect() }
    }

    /// Whether the user has allowed it.
    pub fn allows(&self, refusal: Refusal) -> bool {
        self.allowed.contains(refusal.name)
    }

    /// Notes a refusal in the report, as allowed where it is.
    pub fn refuse(
        &self,
        report: &mut Report,
        refusal: Refusal,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let allowed = self.allows(refusal);
        let (what, remedy) = (what.into(), remedy.into());
        let finding = Finding { name: refusal.name, severity: Severity::Refusal, what, remedy, allowed };
        if !report.findings.contains(&finding) {
            report.findings.push(finding);
        }
    }
}

/// Why a refusal was not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// There is no refusal of this name.
    #[error("no refusal is called {0:?}; `hyperferry convert --help` lists them")]
    Unknown(String),
    /// Nothing can override it.
    #[error("{0} cannot be allowed: {1}")]
    Final(&'static str, &'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for refusal in ALL {
            assert_eq!(by_name(refusal.name), Some(*refusal));
        }
        let names: BTreeSet<_> = ALL.iter().map(|refusal| refusal.name).collect();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn what_is_allowed_no_longer_refuses() {
        let mut policy = Policy::default();
        policy.allow("hpet").unwrap();
        let mut report = Report::default();
        policy.refuse(&mut report, HPET, "the HPET runs", "boot with clocksource=tsc");
        policy.refuse(&mut report, INTX, "slot 3 uses INTA", "");
        assert_eq!(report.refusals().map(|finding| finding.name).collect::<Vec<_>>(), ["intx"]);
        assert!(matches!(policy.allow("memory-layout"), Err(NotAllowed::Final(..))));
        assert!(matches!(policy.allow("nonsense"), Err(NotAllowed::Unknown(_))));
    }
}
