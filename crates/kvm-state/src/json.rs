//! A state in a file: `{"format": "hyperferry-kvm-state", "version": 1, "vm": {…}}`.
//!
//! Registers are hexadecimal text, counts and rates are numbers. The version is read before anything else is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Error, KvmVm, Result};

/// Value of `format`.
pub const FORMAT: &str = "hyperferry-kvm-state";
/// Version of the layout that this code reads and writes.
pub const VERSION: u64 = 1;
/// Most vCPUs: KVM's own limit (`KVM_MAX_VCPUS`).
const MAX_VCPUS: usize = 4096;
/// Most CPUID leaves and MSRs of a vCPU: KVM's own limits.
const MAX_ENTRIES: usize = 256;

/// What stands before the state.
#[derive(Deserialize)]
struct Header {
    format: String,
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File<V> {
    format: String,
    version: u64,
    vm: V,
}

/// The state as a file's text.
pub fn to_json(vm: &KvmVm) -> Result<String> {
    let mut text = serde_json::to_string_pretty(&File { format: FORMAT.to_owned(), version: VERSION, vm })?;
    text.push('\n');
    Ok(text)
}

/// Reads a file's text and checks what the types cannot say.
pub fn from_json(text: &str) -> Result<KvmVm> {
    let header: Header = serde_json::from_str(text)?;
    if header.format != FORMAT {
        return Err(Error::field("format", format!("{:?}", header.format), format!("{FORMAT:?}")));
    }
    if header.version != VERSION {
        return Err(Error::Version { found: header.version });
    }
    let file: File<KvmVm> = serde_json::from_str(text)?;
    check(&file.vm)?;
    Ok(file.vm)
}

/// Checks what holds for every state that KVM can take.
pub(crate) fn check(vm: &KvmVm) -> Result<()> {
    let limit = |field: String, found: usize, limit: usize| {
        if found > limit { Err(Error::field(field, found, format!("at most {limit}"))) } else { Ok(()) }
    };
    if vm.apic_bus_cycle_ns == 0 {
        return Err(Error::field("apic_bus_cycle_ns", 0, "at least 1"));
    }
    if vm.vcpus.is_empty() {
        return Err(Error::field("vcpus", "none", "at least one vCPU"));
    }
    limit("vcpus".into(), vm.vcpus.len(), MAX_VCPUS)?;
    let mut ids = BTreeSet::new();
    for (index, vcpu) in vm.vcpus.iter().enumerate() {
        let name = |field: &str| format!("vcpus[{index}].{field}");
        if !ids.insert(vcpu.vcpu_id) {
            return Err(Error::field(name("vcpu_id"), vcpu.vcpu_id, "an id that no other vCPU has"));
        }
        limit(name("cpuid2"), vcpu.cpuid2.len(), MAX_ENTRIES)?;
        limit(name("msrs"), vcpu.msrs.len(), MAX_ENTRIES)?;
        limit(name("xcrs"), vcpu.xcrs.len(), 16)?;
        if let Some(word) = vcpu.lapic.other.iter().find(|word| word.offset % 4 != 0 || word.offset >= 0x400)
        {
            let found = format!("{:#x}", word.offset);
            return Err(Error::field(name("lapic.other.offset"), found, "a multiple of 4 below 0x400"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvmVcpu, LapicWord};

    fn sample() -> KvmVm {
        let vcpu = |vcpu_id| KvmVcpu { vcpu_id, tsc_khz: 2_500_000, ..KvmVcpu::default() };
        KvmVm {
            origin: "test".into(),
            apic_bus_cycle_ns: 1,
            vcpus: vec![vcpu(0), vcpu(2)],
            ..KvmVm::default()
        }
    }

    #[test]
    fn comes_back_as_it_was() {
        let text = to_json(&sample()).unwrap();
        assert!(
            text.starts_with("{\n  \"format\": \"hyperferry-kvm-state\",\n  \"version\": 1,\n"),
            "{text}"
        );
        assert_eq!(from_json(&text).unwrap(), sample());
    }

    #[test]
    fn another_format_or_version_is_named() {
        let text = to_json(&sample()).unwrap();
        let error = from_json(&text.replace("\"version\": 1", "\"version\": 9")).unwrap_err().to_string();
        assert!(error.contains("found 9, wanted 1"), "{error}");
        let error = from_json(&text.replace("ferry-kvm", "ferry-xen")).unwrap_err().to_string();
        assert!(error.contains("found \"hyperferry-xen-state\""), "{error}");
        // A later version may have another body: it must not be looked at.
        assert!(matches!(
            from_json(r#"{"format":"hyperferry-kvm-state","version":2,"vm":7}"#),
            Err(Error::Version { found: 2 })
        ));
    }

    #[test]
    fn what_kvm_cannot_take_is_named() {
        let fails = |change: fn(&mut KvmVm), wanted: &str| {
            let mut vm = sample();
            change(&mut vm);
            let error = from_json(&to_json(&vm).unwrap()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        };
        fails(|vm| vm.vcpus.clear(), "vcpus: found none");
        fails(|vm| vm.vcpus[1].vcpu_id = 0, "vcpus[1].vcpu_id: found 0");
        fails(|vm| vm.apic_bus_cycle_ns = 0, "apic_bus_cycle_ns: found 0");
        fails(
            |vm| vm.vcpus[0].msrs.resize(257, Default::default()),
            "vcpus[0].msrs: found 257, wanted at most 256",
        );
        fails(|vm| vm.vcpus[0].cpuid2.resize(257, Default::default()), "vcpus[0].cpuid2: found 257");
        fails(|vm| vm.vcpus[0].lapic.other.push(LapicWord { offset: 0x400, value: 1 }), "found 0x400");
    }

    #[test]
    fn unknown_and_missing_fields_are_errors() {
        let text = to_json(&sample()).unwrap();
        for (from, to) in [("\"tsc_khz\"", "\"tsc_mhz\""), ("\"origin\": \"test\",", "")] {
            assert!(from_json(&text.replace(from, to)).is_err(), "{from}");
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let text = to_json(&sample()).unwrap();
        for length in (0..text.trim_end().len()).step_by(17) {
            assert!(from_json(&text[..length]).is_err(), "cut at {length}");
        }
    }
}
