//! xen-sys, generated from Xen's own headers, as an oracle for the two layouts that it shares with a stream.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may, their helpers too")]

use std::mem::offset_of;

use hyperferry_xen_stream::libxc::{CpuidLeaf, MsrEntry, Record};
use hyperferry_xen_stream::{Event, StreamReader, StreamWriter};
use xen_sys::{xen_cpuid_leaf, xen_msr_entry};

mod common;

/// The body of the record of this type, with Xen's structures laid down in memory.
fn record(kind: u32, bytes: &[u8]) -> Record {
    let stream = common::Stream::start().image(3, 2).record(kind, bytes);
    let mut reader = StreamReader::new(&stream.bytes[..]);
    let mut writer = StreamWriter::new(Vec::new());
    let mut last = None;
    while stream.bytes.len() as u64 > reader.offset() {
        let event = reader.next_event().unwrap().unwrap();
        writer.write(&event).unwrap();
        if let Event::Libxc(record) = event {
            last = Some(record);
        }
    }
    assert_eq!(writer.into_inner(), stream.bytes);
    last.unwrap()
}

/// A body of `size` bytes with each field's number at its offset.
fn body(size: usize, fields: &[(usize, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (offset, value) in fields {
        bytes[*offset..*offset + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

#[test]
fn cpuid_leaf() {
    let body = body(
        size_of::<xen_cpuid_leaf>(),
        &[
            (offset_of!(xen_cpuid_leaf, leaf), 1),
            (offset_of!(xen_cpuid_leaf, subleaf), 2),
            (offset_of!(xen_cpuid_leaf, a), 3),
            (offset_of!(xen_cpuid_leaf, b), 4),
            (offset_of!(xen_cpuid_leaf, c), 5),
            (offset_of!(xen_cpuid_leaf, d), 6),
        ],
    );
    let Record::X86CpuidPolicy(policy) = record(0x11, &body) else { panic!("another record") };
    assert_eq!(policy.leaves, [CpuidLeaf { leaf: 1, subleaf: 2, a: 3, b: 4, c: 5, d: 6 }]);
}

#[test]
fn msr_entry() {
    let body = body(
        size_of::<xen_msr_entry>(),
        &[
            (offset_of!(xen_msr_entry, idx), 1),
            (offset_of!(xen_msr_entry, flags), 2),
            (offset_of!(xen_msr_entry, val), 3),
            (offset_of!(xen_msr_entry, val) + 4, 4),
        ],
    );
    let Record::X86MsrPolicy(policy) = record(0x12, &body) else { panic!("another record") };
    assert_eq!(policy.msrs, [MsrEntry { idx: 1, flags: 2, val: 4 << 32 | 3 }]);
}
