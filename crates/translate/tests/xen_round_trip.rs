//! Xen to model to Xen: the stream that comes out is the one that went in, but for what is listed here.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may, their helpers too")]

use std::collections::BTreeSet;

use hyperferry_testkit::{Fixture, fixtures, said::Said};
use hyperferry_translate::{
    refusal::Policy,
    report::Report,
    source::Source,
    xen::{Destination, Relocation, Template, XenSink},
};
use hyperferry_vm_model::Vm;
use hyperferry_xen_stream::{Event, StreamReader, libxc};

/// Every difference in every fixture: the place of a value, and why it is another one.
const DIFFERENCES: [(&str, &str); 3] = [
    (
        "HVM_CONTEXT.MTRR[*].msr_mtrr_var[2..16]",
        "Xen has written variable range 0 into all eight places; the others are unused",
    ),
    ("EMULATOR_CONTEXT.timer 0", "the virtual clock of the device model: nothing of the guest under Xen"),
    ("EMULATOR_CONTEXT.section_id", "labels, which count on here; the device model left some out"),
];

/// The listed difference that a place is one of.
fn listed(place: &str) -> Option<&'static str> {
    let of = |index: usize| DIFFERENCES.get(index).map(|(place, _)| *place);
    if let Some(rest) = place.strip_prefix("HVM_CONTEXT.MTRR[") {
        let (_, number) = rest.trim_end_matches(']').split_once("].msr_mtrr_var[")?;
        return of(0).filter(|_| number.parse::<u32>().is_ok_and(|number| number >= 2));
    }
    match place {
        _ if place.starts_with("EMULATOR_CONTEXT.timer 0.") => of(1),
        _ if place.starts_with("EMULATOR_CONTEXT.") && place.ends_with(".section_id") => of(2),
        _ => None,
    }
}

fn home(fixture: &Fixture) -> Vec<u8> {
    told(fixture).0
}

/// The stream, the model that it was made of, and the account of the second half.
fn told(fixture: &Fixture) -> (Vec<u8>, Vm, Report) {
    let (relocation, policy) = (Relocation::default(), Policy::default());
    let source = Source::open(fixture.open().unwrap(), policy.clone()).unwrap();
    // The bundled templates are of this Xen; to another one a guest goes by a save file of its own.
    let template = match source.outline().origin.as_str() {
        "Xen 4.17" => Template::bundled(&source.outline().config).unwrap(),
        _ => Template::from_stream(fixture.open().unwrap()).unwrap(),
    };
    let destination = Destination { template: &template, relocation: &relocation, policy: &policy };
    let mut report = Report::default();
    let mut sink = XenSink::new(Vec::new(), source.outline(), destination, &mut report).unwrap();
    let taken = source.pump(|addresses, data| sink.pages(addresses, data)).unwrap();
    let bytes = sink.finish(&taken.vm, &taken.held, &mut report).unwrap();
    (bytes, taken.vm, report)
}

/// Every field of the model is named by the report.
#[test]
fn every_field_of_the_model_is_accounted_for() {
    for name in ["xen/witness-2vcpu", "xen/witness-avx"] {
        let (_, vm, report) = told(&Fixture::named(name).unwrap());
        let json = serde_json::to_value(&vm).unwrap();
        let parts = [
            ("vcpu[0]", "/vcpus/0"),
            ("lapic[0]", "/vcpus/0/lapic"),
            ("irq.pic[1]", "/irq/pic/1"),
            ("irq.ioapic", "/irq/ioapic"),
            ("irq", "/irq"),
            ("timers.pit", "/timers/pit"),
            ("timers.rtc", "/timers/rtc"),
            ("timers.hpet", "/timers/hpet"),
            ("timers.pm_timer", "/timers/pm_timer"),
            ("clock", "/clock"),
            ("cpuid", "/cpuid"),
            ("xen", "/xen"),
        ];
        for (record, pointer) in parts {
            for field in json.pointer(pointer).unwrap().as_object().unwrap().keys() {
                // Told under their own names.
                let elsewhere = matches!(
                    (record, field.as_str()),
                    ("vcpu[0]", "id" | "lapic") | ("irq", "pic" | "ioapic")
                );
                let names = |line: &str| {
                    line.split(", ").any(|name| name == field || name.starts_with(&format!("{field}.")))
                };
                let told = report.fields.iter().any(|line| line.record == record && names(&line.field));
                assert!(told || elsewhere, "{name}: nothing is said about {record}.{field}");
            }
        }
    }
}

#[test]
fn every_fixture_comes_out_as_it_went_in_but_for_what_is_listed() {
    let mut met = BTreeSet::new();
    let all = fixtures("xen").unwrap();
    assert!(all.len() >= 12, "fixtures are missing: {}", all.len());
    for fixture in all {
        let before = Said::of(&fixture.stream().unwrap()).unwrap();
        let after = Said::of(&home(&fixture)).unwrap();
        assert_eq!(before.frames, after.frames, "{}: memory", fixture.name);
        for (place, was, is) in before.differences(&after) {
            match listed(place) {
                Some(difference) => met.insert(difference),
                None => panic!("{}: {place}: {was:?} became {is:?}", fixture.name),
            };
        }
    }
    // The list is exact: nothing stands in it that no fixture shows.
    assert_eq!(met, DIFFERENCES.iter().map(|(place, _)| *place).collect());
}

/// Memory is framed anew: no entry for a frame without a page, and as many pages a record as came at once.
#[test]
fn records_of_memory_hold_pages_alone() {
    let bytes = home(&Fixture::named("xen/witness-1vcpu").unwrap());
    let mut reader = StreamReader::new(bytes.as_slice());
    while let Some(event) = reader.next_event().unwrap() {
        if let Event::PageData(entries) = event {
            assert!((1..=1024).contains(&entries.len()));
            assert!(entries.iter().all(|entry| entry.page_type() == libxc::PageType::NOTAB));
        }
    }
}
