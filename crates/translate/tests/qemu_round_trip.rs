//! `QEMU -> model -> QEMU` gives back what a QEMU wrote, field by field and page by page.
//!
//! The destination's template is the fixture's own with every value changed: what the translation does not put
//! there shows.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may, their helpers too"
)]

use std::collections::{BTreeMap, BTreeSet};

use hyperferry_qemu_stream::{DeviceState, Event, StreamReader, Template, Tree, Value};
use hyperferry_testkit::{Fixture, fixtures};
use hyperferry_translate::{
    qemu::{APIC_BUS_HZ, Accelerator, Destination, localise},
    refusal::Policy,
    report::Report,
    source::{CheckpointSink, Source},
};
use hyperferry_vm_model::Vm;
use hyperferry_wire::{Encoder, Endian};

fn accelerator(fixture: &Fixture) -> Accelerator {
    if fixture.name.contains("kvm") { Accelerator::Kvm } else { Accelerator::Tcg }
}

/// Takes a fixture into the model, and the model through a checkpoint.
fn through_model(fixture: &Fixture) -> Vm {
    let source = Source::open(fixture.open().unwrap(), Policy::default()).unwrap();
    let mut sink = CheckpointSink::new(Vec::new(), source.outline()).unwrap();
    let taken = source.pump(|addresses, data| sink.pages(addresses, data)).unwrap();
    let bytes = sink.finish(&taken.vm, &taken.held).unwrap();
    let again = Source::open(bytes.as_slice(), Policy::default()).unwrap().pump(|_, _| Ok(())).unwrap();
    assert_eq!(again.vm, taken.vm, "{}", fixture.name);
    again.vm
}

/// Changes every value but those by which a device is known.
fn scramble(tree: &mut Tree) {
    tree.subsections.clear();
    // How many wires the destination's chipset has is no state.
    for (name, value) in tree.fields.iter_mut().filter(|(name, _)| name != "nirq") {
        scramble_value(name, value);
    }
}

fn scramble_value(name: &str, value: &mut Value) {
    match value {
        Value::Unsigned { value, .. } => *value ^= 1,
        Value::Signed { value, .. } => *value ^= 1,
        Value::Bool(value) => *value = !*value,
        Value::Bytes(bytes) => {
            let known = if name == "config[0]" { 0x10 } else { 0 };
            bytes.iter_mut().skip(known).for_each(|byte| *byte ^= 1);
        }
        Value::Array(values) => values.iter_mut().for_each(|value| scramble_value(name, value)),
        Value::Struct(tree) => scramble(tree),
    }
}

/// Path and text of each value.
fn flatten(path: &str, tree: &Tree, into: &mut BTreeMap<String, String>) {
    for (name, value) in &tree.fields {
        flatten_value(&format!("{path}: {name}"), value, into);
    }
    for part in &tree.subsections {
        flatten(&format!("{path} {}", part.name), &part.tree, into);
    }
}

fn flatten_value(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Array(values) => values
            .iter()
            .enumerate()
            .for_each(|(index, value)| flatten_value(&format!("{path}[{index}]"), value, into)),
        Value::Struct(tree) => flatten(path, tree, into),
        other => drop(into.insert(path.to_owned(), format!("{other:02x?}"))),
    }
}

fn values(state: &DeviceState) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    for section in &state.sections {
        flatten(&format!("{} {}", section.idstr, section.instance_id), &section.tree, &mut values);
    }
    values
}

fn encode(state: &DeviceState) -> Vec<u8> {
    let mut encoder = Encoder::new(Endian::Big);
    let state = DeviceState { vmdesc: None, ..state.clone() };
    state.encode(&mut encoder).unwrap();
    encoder.into_bytes()
}

#[test]
fn device_state_comes_back_byte_for_byte() {
    let mut found = Vec::new();
    let fixtures = fixtures("qemu").unwrap();
    assert!(fixtures.len() >= 14);
    for fixture in fixtures {
        let vm = through_model(&fixture);
        let original = Template::from_stream(fixture.open().unwrap()).unwrap();
        let mut template = original.clone();
        template.state.sections.iter_mut().for_each(|section| scramble(&mut section.tree));
        let policy = Policy::default();
        let destination = Destination {
            template: &template,
            accelerator: accelerator(&fixture),
            apic_bus_hz: APIC_BUS_HZ,
            platform_hpet: false,
            wall_ns: 1,
            policy: &policy,
        };
        let mut report = Report::default();
        let state = localise(&vm, &destination, &mut report).unwrap();
        let (was, is) = (values(&original.state), values(&state));
        for (path, value) in &was {
            if is.get(path) != Some(value) {
                let other = is.get(path).map_or("absent", String::as_str);
                found.push(format!("{}: {path}: {value} -> {other}", fixture.name));
            }
        }
        for path in is.keys().filter(|path| !was.contains_key(*path)) {
            found.push(format!("{}: {path}: absent -> {}", fixture.name, is[path]));
        }
        if found.is_empty() {
            assert!(encode(&state) == encode(&original.state), "{}: the order differs", fixture.name);
        }
    }
    assert_eq!(found, [""; 0], "values that were there before and are not afterwards");
}

/// The last content of each page of each block.
fn blocks(fixture: &Fixture) -> BTreeMap<(String, u64), Vec<u8>> {
    let mut reader = StreamReader::new(fixture.open().unwrap());
    let (mut names, mut pages) = (Vec::new(), BTreeMap::new());
    while let Some(event) = reader.next_event().unwrap() {
        match event {
            Event::RamStart(ram) => names = ram.blocks.into_iter().map(|block| block.name).collect(),
            Event::RamBlock(block) => names.push(block.name),
            Event::RamPages(chunk) => {
                for (block, offset, data) in chunk.iter() {
                    let page = data.map_or(vec![0; 4096], <[u8]>::to_vec);
                    pages.insert((names[block].clone(), offset), page);
                }
            }
            _ => {}
        }
    }
    pages
}

#[test]
fn every_page_comes_where_the_guest_sees_it() {
    for fixture in fixtures("qemu").unwrap() {
        let source = Source::open(fixture.open().unwrap(), Policy::default()).unwrap();
        let mut ram = BTreeMap::new();
        let taken = source.pump(|addresses, data| {
            for (address, page) in addresses.iter().zip(data.chunks(4096)) {
                ram.insert(*address, page.to_vec());
            }
            Ok(())
        });
        let taken = taken.unwrap();
        let mut left_behind = BTreeSet::new();
        for ((block, offset), page) in blocks(&fixture) {
            let base = match block.as_str() {
                "pc.ram" => {
                    assert_eq!(ram[&offset], page, "{} {block} {offset:#x}", fixture.name);
                    continue;
                }
                "pc.bios" => 0xfffc_0000,
                _ if block.ends_with("vga.vram") => 0xfd00_0000,
                _ => {
                    left_behind.insert(block);
                    continue;
                }
            };
            let held = taken.held.page((base + offset) / 4096).unwrap_or(&[0; 4096]);
            assert!(held == page, "{} {block} {offset:#x}", fixture.name);
        }
        // What only the firmware reads; the report says so.
        for block in left_behind {
            let record = format!("ram > {block}");
            assert!(taken.report.fields.iter().any(|line| line.record == record), "{block}");
        }
    }
}
