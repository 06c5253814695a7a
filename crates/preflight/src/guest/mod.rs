//! What is known of a guest before it moves, and the checks of its configuration.
//!
//! A guest comes as a Xen save file or the head of a stream, as a checkpoint, or as JSON: what `xl list -l GUEST`
//! prints, libxl's configuration alone, or our own document around it, which a check of the source passes on:
//!
//! ```json
//! {"schema": "hyperferry-guest", "version": 1, "xl": {…}, "cpuid": {"leaves": […], "msrs": []}, "tsc_khz": 2596097,
//!  "clocks": {"hpet": true, "lapic_timer": "one-shot"}}
//! ```
//!
//! Source: Xen 4.17, tools/libs/light/libxl_types.idl (keys), tools/xl/xl_info.c (`xl list -l`).

mod altp2m;
mod disk_format;
mod firmware;
mod nic;
mod pv_devices;
mod stubdomain;
mod timer_mode;
mod tsc_mode;
mod vnuma;

use std::io::Read;

use hyperferry_translate::{
    Error as TranslateError,
    refusal::{self, Policy},
    report::Report,
    source::Source,
    xen,
};
use hyperferry_vm_model::{CpuidPolicy, Vm};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Check, Finding, Side, run};

/// The checks of a configuration, in the order in which they are shown.
pub const CHECKS: &[Check<Value>] = &[
    firmware::CHECK,
    disk_format::CHECK,
    nic::CHECK,
    pv_devices::CHECK,
    stubdomain::CHECK,
    timer_mode::CHECK,
    tsc_mode::CHECK,
    vnuma::CHECK,
    altp2m::CHECK,
];

/// What is known of a guest.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    /// Its outline: configuration, memory layout, CPUID policy, rate of its time-stamp counter.
    pub vm: Vm,
    /// libxl's configuration, where the input had one.
    pub xl: Option<Value>,
    /// The clocks that it uses, where its host told them.
    pub clocks: Option<Clocks>,
    /// What a translation says about it before memory.
    report: Report,
}

/// Clocks that do not run at the same rate on the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// The HPET counts.
    pub hpet: bool,
    /// How the local APIC timers are used.
    pub lapic_timer: LapicTimer,
}

/// How a local APIC timer is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LapicTimer {
    /// Not, or by TSC deadline.
    Unused,
    /// One shot at a time.
    OneShot,
    /// As a tick.
    Periodic,
}

/// The document that one check passes to another.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    schema: String,
    version: u32,
    xl: Value,
    cpuid: CpuidPolicy,
    tsc_khz: u32,
    clocks: Option<Clocks>,
}

const SCHEMA: &str = "hyperferry-guest";
const VERSION: u32 = 1;
/// Longer than any configuration, and no more than that of an input that is none.
const JSON_LIMIT: u64 = 16 << 20;

impl Guest {
    /// Reads one from any input.
    pub fn read(mut input: impl Read) -> Result<Self, TranslateError> {
        let mut first = [0];
        let count = input.read(&mut first).map_err(TranslateError::Input)?;
        let head: &[u8] = if count == 1 { &first } else { &[] };
        let whole = head.chain(input);
        if head.iter().all(|byte| !b"{[ \n".contains(byte)) {
            return Self::from_stream(whole);
        }
        let unreadable = |error: serde_json::Error| TranslateError::Input(error.into());
        let json: Value = serde_json::from_reader(whole.take(JSON_LIMIT)).map_err(unreadable)?;
        if json.get("schema").is_none() {
            return Ok(Self::from_config(configuration(&json)));
        }
        let document: Document = serde_json::from_value(json).map_err(unreadable)?;
        if document.schema != SCHEMA || document.version != VERSION {
            let found = format!("{} version {}", document.schema, document.version);
            let why =
                format!("{found} is no {SCHEMA} version {VERSION}: both hosts want the same hyperferry");
            return Err(TranslateError::Input(std::io::Error::other(why)));
        }
        let mut guest = Self::from_config(&document.xl);
        guest.vm.cpuid = document.cpuid;
        guest.vm.clock.tsc_khz = document.tsc_khz;
        guest.clocks = document.clocks;
        Ok(guest)
    }

    /// A guest of which only the configuration is known.
    pub fn from_config(xl: &Value) -> Self {
        let mut report = Report::default();
        let vm = xen::outline(xl, &Policy::default(), &mut report);
        Self { vm, xl: Some(xl.clone()), clocks: None, report }
    }

    /// A guest whose stream has been read up to memory.
    pub fn from_outline(vm: Vm) -> Self {
        let xl = vm.xen.as_ref().and_then(|xen| serde_json::from_str(&xen.config).ok());
        Self { vm, xl, clocks: None, report: Report::default() }
    }

    fn from_stream(input: impl Read) -> Result<Self, TranslateError> {
        match Source::open(input, lenient()) {
            Ok(source) => {
                let report = match &source {
                    Source::Xen(intake) => intake.report().clone(),
                    Source::Qemu(_) | Source::Model(_) => Report::default(),
                };
                Ok(Self { report, ..Self::from_outline(source.outline().clone()) })
            }
            // Nothing allows these; the rest of the guest is not known then.
            Err(TranslateError::Refused(report)) => Ok(Self { report: *report, ..Self::default() }),
            Err(error) => Err(error),
        }
    }

    /// What the guest's configuration tells.
    pub fn findings(&self, policy: &Policy) -> Vec<Finding> {
        let told = self.report.findings.iter();
        let mut findings: Vec<_> =
            told.map(|finding| Finding::of_report(Side::Guest, finding, policy)).collect();
        if let Some(xl) = &self.xl {
            findings.extend(run(Side::Guest, CHECKS, xl, policy));
        }
        findings
    }

    /// All of it, for a check elsewhere.
    pub fn to_json(&self) -> Value {
        let document = Document {
            schema: SCHEMA.to_owned(),
            version: VERSION,
            xl: self.xl.clone().unwrap_or_default(),
            cpuid: self.vm.cpuid.clone(),
            tsc_khz: self.vm.clock.tsc_khz,
            clocks: self.clocks,
        };
        serde_json::to_value(document).unwrap_or_default()
    }
}

/// libxl's configuration, out of what `xl list -l` puts around it.
pub fn configuration(json: &Value) -> &Value {
    let entry = json.get(0).unwrap_or(json);
    entry.get("config").unwrap_or(entry)
}

/// A policy that hears everything out; what the user allows is judged later.
fn lenient() -> Policy {
    let mut policy = Policy::default();
    for refusal in refusal::ALL.iter().filter(|refusal| refusal.can_allow) {
        // Its name comes from the table.
        let _ = policy.allow(refusal.name);
    }
    policy
}

/// A defbool of libxl's JSON: "True", "False", or absent.
fn flag(xl: &Value, pointer: &str) -> bool {
    xl.pointer(pointer).and_then(Value::as_str) == Some("True")
}

fn text<'a>(xl: &'a Value, pointer: &str) -> Option<&'a str> {
    xl.pointer(pointer).and_then(Value::as_str)
}

fn list<'a>(xl: &'a Value, pointer: &str) -> &'a [Value] {
    xl.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use hyperferry_testkit::Fixture;

    use super::*;
    use crate::Severity;

    /// `xl list -l` of a guest in the lab's Xen 4.17.
    const LISTED: &str = include_str!("../source/testdata/pv/list.json");

    #[test]
    fn a_guest_is_read_from_what_xl_prints() {
        let guest = Guest::read(LISTED.as_bytes()).unwrap();
        assert_eq!((guest.vm.config.name.as_str(), guest.vm.memory.low_end), ("pv", 256 << 20));
        let mut handed = Guest::read(guest.to_json().to_string().as_bytes()).unwrap();
        assert_eq!(handed.xl, guest.xl);
        handed.vm.clock.tsc_khz = 5;
        assert_eq!(Guest::read(handed.to_json().to_string().as_bytes()).unwrap().vm.clock.tsc_khz, 5);
        assert!(Guest::read(&b"{\"schema\": \"hyperferry-guest\"}"[..]).is_err());
        assert!(Guest::read(&b"{"[..]).is_err() && Guest::read(&b""[..]).is_err());
    }

    #[test]
    fn a_guest_is_read_from_a_stream() {
        let guest = Guest::read(Fixture::named("xen/witness-2vcpu").unwrap().open().unwrap()).unwrap();
        assert_eq!(guest.vm.config.max_vcpus, 2);
        assert!(!guest.vm.cpuid.leaves.is_empty() && guest.xl.is_some());
        assert!(guest.findings(&Policy::default()).iter().all(|finding| !finding.refuses()));
    }

    fn worst(name: &str, change: impl FnOnce(&mut Value)) -> Severity {
        let mut json: Value = serde_json::from_str(LISTED).unwrap();
        let xl = &mut json[0]["config"];
        change(xl);
        let findings = Guest::from_config(xl).findings(&Policy::default());
        let found = findings.iter().filter(|finding| finding.name == name);
        found.map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }

    #[test]
    fn each_check_sees_what_it_is_there_for() {
        use Severity::{Note, Ok, Refusal, Warning};
        let set = |pointer: &'static str, value: Value| {
            move |xl: &mut Value| {
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                xl.pointer_mut(parent).unwrap()[key] = value;
            }
        };
        let nic = serde_json::json!([{ "model": "ne2k_pci", "mac": "00:16:3e:00:00:01" }]);
        let vif = serde_json::json!([{ "nictype": "vif", "mac": "00:16:3e:00:00:01" }]);
        let pci = serde_json::json!([{ "bus": 3 }]);
        let some = serde_json::json!([{ "devid": 0 }]);
        for (name, pointer, value, severity) in [
            ("firmware", "/b_info/type.hvm/bios", "ovmf".into(), Warning),
            ("disk-format", "/disks/0/format", "vhd".into(), Warning),
            ("nic", "/nics", nic, Ok),
            ("nic", "/nics", vif, Warning),
            ("pv-devices", "/vtpms", some, Warning),
            ("stubdomain", "/b_info/device_model_stubdomain", "True".into(), Warning),
            ("timer-mode", "/b_info/type.hvm/timer_mode", "delay_for_missed_ticks".into(), Note),
            ("tsc-mode", "/b_info/tsc_mode", "always_emulate".into(), Warning),
            ("vnuma", "/b_info/vnuma_nodes", serde_json::json!([{ "memkb": 5 }]), Note),
            ("altp2m", "/b_info/altp2m", "mixed".into(), Warning),
            ("passthrough", "/pcidevs", pci, Refusal),
            ("nested", "/b_info/nested_hvm", "True".into(), Refusal),
            ("viridian", "/b_info/type.hvm/viridian", "True".into(), Refusal),
            ("domain-type", "/c_info/type", "pvh".into(), Refusal),
        ] {
            assert_eq!(worst(name, |_| {}), Ok, "{name}");
            assert_eq!(worst(name, set(pointer, value)), severity, "{name}");
        }
    }

    #[test]
    fn what_the_user_allows_no_longer_refuses() {
        let mut json: Value = serde_json::from_str(LISTED).unwrap();
        json[0]["config"]["b_info"]["nested_hvm"] = "True".into();
        let guest = Guest::read(json.to_string().as_bytes()).unwrap();
        let mut policy = Policy::default();
        assert!(guest.findings(&policy).iter().any(Finding::refuses));
        policy.allow("nested").unwrap();
        assert!(!guest.findings(&policy).iter().any(Finding::refuses));
    }
}
