//! Streams made after a template: the destination's own dialect with another guest's state.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on has failed")]

mod common;

use common::{load, round_trip, streams};
use hyperferry_qemu_stream::{
    Absent, Event, SectionKind, StreamReader, StreamWriter, Subsection, Template, Tree, Value,
};

/// A whole stream after the template: its prologue, RAM as given, these sections.
fn write(template: &Template, trees: Vec<((String, u32), Tree)>, absent: Absent) -> Vec<u8> {
    let mut writer = StreamWriter::new(Vec::new());
    writer.header(hyperferry_qemu_stream::Header).unwrap();
    writer.configuration(template.configuration.as_ref().unwrap()).unwrap();
    writer.ram_start(&template.ram).unwrap();
    writer.ram_end(template.footers).unwrap();
    writer.ram_section(SectionKind::End).unwrap();
    let mut data = vec![0; 4 << 12];
    data[2 << 12] = 7;
    writer.run(0, 0x10000, &data).unwrap();
    writer.ram_end(template.footers).unwrap();
    writer.bytes(&template.encode_device_state(trees, absent).unwrap()).unwrap();
    writer.into_inner()
}

#[test]
fn an_unchanged_template_says_what_it_said() {
    for (name, bytes) in streams() {
        let template = Template::from_stream(&bytes[..]).unwrap();
        assert!(template.machine().starts_with("pc-i440fx-"), "{name}");
        assert!(template.blocks().iter().any(|block| block.name == "pc.ram"), "{name}");
        let (state, _) = round_trip(&write(&template, Vec::new(), Absent::AsTemplate)).unwrap();
        assert_eq!(state.sections.len(), template.state.sections.len(), "{name}");
        for (left, right) in state.sections.iter().zip(&template.state.sections) {
            assert_eq!(left.tree, right.tree, "{name}: {}", left.idstr);
            assert_eq!(left.section_id, right.section_id, "{name}: {}", left.idstr);
            assert_eq!(left.schema(), right.schema(), "{name}: {}", left.idstr);
        }
    }
}

#[test]
fn state_of_one_version_goes_into_the_dialect_of_the_other() {
    let (source, _) = round_trip(&load("pc-7.2-x86_64-ran")).unwrap();
    let bytes = load("pc-10.0-x86_64-ran");
    let template = Template::from_stream(&bytes[..]).unwrap();
    let trees = source.sections.iter().filter(|section| section.idstr != "globalstate");
    let trees: Vec<_> =
        trees.map(|section| ((section.idstr.clone(), section.instance_id), section.tree.clone())).collect();
    let (state, _) = round_trip(&write(&template, trees, Absent::Omit)).unwrap();
    let order: Vec<_> = state.sections.iter().map(|section| &section.idstr).collect();
    let wanted = template.state.sections.iter().map(|section| &section.idstr);
    assert_eq!(order, wanted.filter(|idstr| *idstr != "globalstate").collect::<Vec<_>>());
    for section in &source.sections {
        if let Some(arrived) = state.section(&section.idstr, section.instance_id) {
            assert_eq!(arrived.tree, section.tree, "{}", section.idstr);
        }
    }
}

#[test]
fn a_subsection_that_the_template_lacks_is_written_by_our_schema() {
    let bytes = load("pc-7.2-x86_64-kvm");
    let template = Template::from_stream(&bytes[..]).unwrap();
    let mut cpu = template.section("cpu", 0).unwrap().tree.clone();
    assert!(cpu.subsection("cpu/msr_tscdeadline").is_none());
    let mut tree = Tree::new("cpu/msr_tscdeadline");
    tree.fields.push(("env.tsc_deadline".to_owned(), Value::Unsigned { width: 8, value: 0x1234_5678 }));
    cpu.put_subsection(Subsection { name: "cpu/msr_tscdeadline".to_owned(), version: 1, tree });
    cpu.set_u64("env.eip", 0xfff0).unwrap();
    let trees = vec![(("cpu".to_owned(), 0), cpu.clone())];
    let (state, _) = round_trip(&write(&template, trees, Absent::AsTemplate)).unwrap();
    assert_eq!(state.section("cpu", 0).unwrap().tree, cpu);
}

#[test]
fn what_does_not_fit_is_named() {
    let bytes = load("pc-7.2-x86_64-kvm");
    let template = Template::from_stream(&bytes[..]).unwrap();
    let fault = |key: (&str, u32), tree: &Tree| {
        let trees = vec![((key.0.to_owned(), key.1), tree.clone())];
        template.encode_device_state(trees, Absent::AsTemplate).unwrap_err().to_string()
    };
    let mut cpu = template.section("cpu", 0).unwrap().tree.clone();
    assert!(fault(("cpu", 7), &cpu).starts_with("cpu 7: found no such section"), "absent device");
    cpu.fields.retain(|(name, _)| name != "env.eip");
    assert!(fault(("cpu", 0), &cpu).starts_with("cpu: env.eip: found no such field"), "missing field");
    cpu = template.section("cpu", 0).unwrap().tree.clone();
    cpu.fields.push(("env.extra".to_owned(), Value::Bool(true)));
    assert!(fault(("cpu", 0), &cpu).starts_with("cpu: env.extra: found bool, wanted no such field"));
    cpu = template.section("cpu", 0).unwrap().tree.clone();
    *cpu.field_mut("env.eip").unwrap() = Value::Unsigned { width: 4, value: 0 };
    assert_eq!(fault(("cpu", 0), &cpu), "cpu: env.eip: found uint32 0, wanted uint64");
    *cpu.field_mut("env.eip").unwrap() = Value::Unsigned { width: 8, value: 0 };
    *cpu.field_mut("env.hflags").unwrap() = Value::Unsigned { width: 4, value: 1 << 32 };
    assert_eq!(fault(("cpu", 0), &cpu), "cpu: env.hflags: found uint32 4294967296, wanted uint32");
    *cpu.field_mut("env.hflags").unwrap() = Value::Unsigned { width: 4, value: 0 };
    *cpu.field_mut("env.eip").unwrap() = Value::Unsigned { width: 8, value: 0 };
    *cpu.field_mut("env.mtrr_fixed").unwrap() = Value::Array(Vec::new());
    assert_eq!(fault(("cpu", 0), &cpu), "cpu: env.mtrr_fixed: found array of 0, wanted array of 11");
}

#[test]
fn zero_pages_are_seen_and_names_are_sent_once() {
    let bytes = load("pc-7.2-x86_64-kvm");
    let template = Template::from_stream(&bytes[..]).unwrap();
    let stream = write(&template, Vec::new(), Absent::AsTemplate);
    let mut reader = StreamReader::new(&stream[..]);
    let mut pages = Vec::new();
    while let Some(event) = reader.next_event().unwrap() {
        if let Event::RamPages(chunk) = event {
            pages.extend(
                chunk
                    .pages()
                    .iter()
                    .map(|page| (page.offset, page.continues, chunk.data(page).map(|bytes| bytes[0]))),
            );
        }
    }
    let wanted =
        [(0x10000, false, None), (0x11000, true, None), (0x12000, true, Some(7)), (0x13000, true, None)];
    assert_eq!(pages, wanted);
}
