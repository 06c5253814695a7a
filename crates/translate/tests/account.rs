//! Nothing is lost in silence: whatever the records of a real stream hold, the report names it.

#![allow(clippy::unwrap_used, reason = "tests may, their helpers too")]

use std::collections::BTreeSet;

use hyperferry_qemu_stream::Template;
use hyperferry_testkit::{Fixture, fixtures};
use hyperferry_translate::{
    refusal::{self, Policy},
    report::Report,
    source::Source,
};
use hyperferry_xen_stream::{Event, StreamReader, hvm, libxc};
use serde_json::Value;

/// A policy that lets every fixture through.
fn lenient() -> Policy {
    let mut policy = Policy::default();
    for refusal in refusal::ALL.iter().filter(|refusal| refusal.can_allow) {
        policy.allow(refusal.name).unwrap();
    }
    policy
}

fn report(fixture: &Fixture) -> Report {
    let source = Source::open(fixture.open().unwrap(), lenient()).unwrap();
    source.pump(|_, _| Ok(())).unwrap().report
}

/// Record and field, for each field that the stream's records show when they are inspected.
fn shown(fixture: &Fixture) -> BTreeSet<(String, String)> {
    let mut reader = StreamReader::new(fixture.open().unwrap());
    let mut shown = BTreeSet::new();
    let mut add = |record: String, fields: Value| {
        for field in fields.as_object().unwrap().keys() {
            shown.insert((record.clone(), field.clone()));
        }
    };
    while let Some(event) = reader.next_event().unwrap() {
        match event {
            Event::Libxc(libxc::Record::HvmContext(context)) => {
                for entry in &context.entries {
                    let record = format!("HVM_CONTEXT {}[{}]", entry.record.name(), entry.instance);
                    let fields = serde_json::to_value(entry.record.describe()).unwrap();
                    // A page of registers under their own names; it goes over as one.
                    let page = matches!(entry.record, hvm::Record::LapicRegs(_));
                    add(record, if page { serde_json::json!({"data": null}) } else { fields });
                }
            }
            Event::Libxc(libxc::Record::HvmParams(params)) => {
                let names =
                    params.params.iter().map(|param| param.name().map_or_else(String::new, str::to_owned));
                add(
                    "HVM_PARAMS".to_owned(),
                    names.map(|name| (name, Value::Null)).collect::<serde_json::Map<_, _>>().into(),
                );
            }
            Event::Libxc(record) => {
                let fields = serde_json::to_value(record.describe()).unwrap();
                add(record.name().into_owned(), fields);
            }
            _ => {}
        }
    }
    shown
}

#[test]
fn every_field_of_every_record_is_named() {
    let fixtures = fixtures("xen").unwrap();
    assert!(!fixtures.is_empty());
    for fixture in fixtures {
        let report = report(&fixture);
        let told: Vec<_> =
            report.fields.iter().map(|line| (line.record.as_str(), line.field.as_str())).collect();
        for (record, field) in shown(&fixture) {
            // The chips of which a machine has one are told without an instance.
            let alone = record.strip_suffix("[0]").unwrap_or(&record);
            let named = told.iter().any(|(told, name)| (*told == record || *told == alone) && *name == field);
            assert!(named, "{}: nothing is said about {record}.{field}", fixture.path().display());
        }
    }
}

/// A report says of each field once where it went.
#[test]
fn no_field_has_two_fates() {
    let fixture = Fixture::named("xen/witness-1vcpu").unwrap();
    let mut seen = BTreeSet::new();
    for line in report(&fixture).fields {
        let key = (line.stage, line.record, line.field);
        assert!(seen.insert(key.clone()), "{key:?} is told twice");
    }
}

#[test]
fn every_field_of_every_section_of_a_qemu_is_named() {
    let fixtures = fixtures("qemu").unwrap();
    assert!(!fixtures.is_empty());
    for fixture in fixtures {
        let report = report(&fixture);
        let mut told: BTreeSet<(String, String)> = BTreeSet::new();
        for line in &report.fields {
            let new = told.insert((line.record.clone(), line.field.clone()));
            assert!(new, "{}: {}.{} is told twice", fixture.name, line.record, line.field);
        }
        let state = Template::from_stream(fixture.open().unwrap()).unwrap().state;
        for section in &state.sections {
            let record = format!("{} {}", section.idstr, section.instance_id);
            let fields = section.tree.fields.iter().map(|(name, _)| name);
            for name in fields.chain(section.tree.subsections.iter().map(|part| &part.name)) {
                let named = told.contains(&(record.clone(), name.clone()));
                assert!(named, "{}: nothing is said about {record}.{name}", fixture.name);
            }
        }
    }
}
