//! Streams cut short, changed and made up: always a typed error or a legal reading, never a panic.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may, their helpers too")]

mod common;

use common::{HVM_HEADER, MIXED_PFNS, Stream, hex, round_trip};
use hyperferry_wire::ErrorKind;
use hyperferry_wire::Strictness::{Strict, Tolerant};
use proptest::prelude::*;

/// Two records of pages around some entries of every kind, so that each reader is met.
fn sample() -> Stream {
    let mut context = hex(HVM_HEADER);
    for row in hyperferry_xen_stream::hvm::ROWS.iter().filter(|row| row.code > 1) {
        let length = match row.length {
            hyperferry_xen_stream::Length::Exact(size)
            | hyperferry_xen_stream::Length::AtMost(size)
            | hyperferry_xen_stream::Length::AtLeast(size) => size,
        };
        context.extend(u16::try_from(row.code).unwrap().to_le_bytes());
        context.extend([0; 2]);
        context.extend(u32::try_from(length).unwrap().to_le_bytes());
        context.resize(context.len() + length, 0);
    }
    context.extend([0; 8]);
    Stream::hvm()
        .pages(&MIXED_PFNS, 1)
        .record(0x09, &context)
        .pages(&[7], 3)
        .state()
        .record(2, &[&hex("02000000 00000000")[..], b"key\0value\0"].concat())
        .finish()
}

#[test]
fn truncation_at_every_byte() {
    let stream = sample();
    let (_, whole) = round_trip(&stream.bytes, Strict).unwrap();
    assert_eq!(whole, stream.bytes);
    for length in 0..stream.bytes.len() {
        for strictness in [Tolerant, Strict] {
            let error = round_trip(&stream.bytes[..length], strictness).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Truncated { .. }), "cut at {length:#x}: {error}");
            assert!(error.offset() <= length as u64, "cut at {length:#x}: {error}");
        }
    }
}

#[test]
fn flips_of_every_byte_outside_pages() {
    let stream = sample();
    for at in (0..stream.bytes.len()).filter(|at| !is_inside_a_page(&stream.bytes, *at)) {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = stream.bytes.clone();
            changed[at] ^= flip;
            if let Ok((_, bytes)) = round_trip(&changed, Strict) {
                assert!(bytes == changed, "{at:#x} ^ {flip:#x}: read, and written differently");
            }
            // A receiver may read what a judge refuses; it must not panic.
            if let Err(error) = round_trip(&changed, Tolerant) {
                assert!(!error.is_io(), "{at:#x} ^ {flip:#x}: {error}");
            }
        }
    }
}

/// Pages are runs of equal bytes, not zero, in `sample`.
fn is_inside_a_page(bytes: &[u8], at: usize) -> bool {
    let run = &bytes[at.saturating_sub(16)..(at + 16).min(bytes.len())];
    run[0] != 0 && run.iter().all(|byte| *byte == run[0])
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = round_trip(&bytes, Tolerant);
        let _ = round_trip(&Stream::start().raw(&bytes).bytes, Tolerant);
        let _ = round_trip(&Stream::hvm().raw(&bytes).bytes, Tolerant);
        let _ = round_trip(&Stream::hvm().record(9, &bytes).bytes, Tolerant);
        let _ = round_trip(&Stream::hvm().state().raw(&bytes).bytes, Tolerant);
    }

    /// What a judge accepts is written again as it was, whatever the records and entries are.
    #[test]
    fn what_a_judge_accepts_round_trips(
        records in proptest::collection::vec((0_u32..0x16, proptest::collection::vec(any::<u8>(), 0..64)), 0..6),
        entries in proptest::collection::vec((2_u16..24, any::<u16>(), proptest::collection::vec(any::<u8>(), 0..1100)), 0..6),
    ) {
        let mut context = hex(HVM_HEADER);
        for (typecode, instance, body) in &entries {
            context.extend(typecode.to_le_bytes());
            context.extend(instance.to_le_bytes());
            context.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
            context.extend(body);
        }
        context.extend([0; 8]);
        let mut stream = Stream::hvm().record(9, &context);
        for (kind, body) in &records {
            stream = stream.record(*kind, body);
        }
        let stream = stream.state().finish();
        if let Ok((_, bytes)) = round_trip(&stream.bytes, Strict) {
            prop_assert_eq!(bytes, stream.bytes);
        }
    }
}
