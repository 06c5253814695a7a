//! Whole streams built by hand: what is legal reads and writes again byte for byte, what is not says why.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may, their helpers too")]

mod common;

use common::{HVM_CONTEXT, HVM_HEADER, MIXED_PFNS, Stream, fault, hex, round_trip};
use hyperferry_wire::ErrorKind;
use hyperferry_wire::Strictness::{Strict, Tolerant};
use hyperferry_xen_stream::{Event, StreamReader, StreamWriter, libxc, libxl, xl};

/// Round trip in both modes; the names of the events.
fn accepted(stream: &Stream) -> Vec<String> {
    for strictness in [Tolerant, Strict] {
        let (_, bytes) = round_trip(&stream.bytes, strictness).unwrap();
        assert!(bytes == stream.bytes, "bytes differ");
    }
    round_trip(&stream.bytes, Strict).unwrap().0
}

#[test]
fn a_plain_save() {
    let names = accepted(&Stream::hvm().pages(&MIXED_PFNS, 1).state().finish());
    let wanted = [
        "xl header",
        "libxl header",
        "LIBXC_CONTEXT",
        "libxc image header",
        "libxc domain header",
        "X86_CPUID_POLICY",
        "X86_MSR_POLICY",
        "STATIC_DATA_END",
        "PAGE_DATA",
        "2 pages",
        "X86_TSC_INFO",
        "HVM_CONTEXT",
        "HVM_PARAMS",
        "END",
        "EMULATOR_CONTEXT",
        "END",
    ];
    assert_eq!(names, wanted);
}

#[test]
fn a_live_stream_sends_pages_again() {
    let holes: Vec<u64> = (0x100..0x500).map(|pfn| 0xf << 60 | pfn).collect();
    let stream = Stream::hvm()
        .pages(&[0, 1, 2], 1)
        .pages(&holes, 0)
        .pages(&[1], 7)
        .pages(&[0xf000_0000_0000_0002], 0)
        .pages(&[1, 0xd000_0000_0000_0003, 0xe000_0000_0000_0004], 9)
        .state()
        .finish();
    let names = accepted(&stream);
    assert_eq!(names.iter().filter(|name| *name == "PAGE_DATA").count(), 5);

    let mut reader = StreamReader::new(&stream.bytes[..]);
    let mut last = Vec::new();
    while let Some(event) = reader.next_event().unwrap() {
        if let Event::Pages(chunk) = event {
            last.extend(chunk.entries.iter().map(|entry| (entry.pfn(), chunk.data[0])));
        }
    }
    assert_eq!(last, [(0, 1), (1, 1), (2, 1), (1, 7), (1, 9)]);
}

#[test]
fn pages_come_in_small_steps() {
    let pfns: Vec<u64> = (0..70).collect();
    let names = accepted(&Stream::hvm().pages(&pfns, 0).state().finish());
    assert_eq!(names[8..12], ["PAGE_DATA", "32 pages", "32 pages", "6 pages"]);
}

#[test]
fn params_may_come_before_the_context() {
    let stream = Stream::hvm()
        .pages(&[0], 1)
        .record(0x0a, &hex("00000000 00000000"))
        .record(0x09, &hex(HVM_CONTEXT))
        .record(0x00, &[])
        .finish();
    accepted(&stream);
}

#[test]
fn version_2_has_no_static_data_end() {
    accepted(&Stream::start().image(2, 2).pages(&[0], 1).state().finish());
    let stream = Stream::start().image(3, 2).pages(&[0], 1);
    assert_eq!(
        fault(&stream.bytes, Tolerant),
        format!(
            "libxl[0] LIBXC_CONTEXT > libxc[0] PAGE_DATA @{:#x}: \
             found PAGE_DATA, wanted static data or STATIC_DATA_END",
            stream.last()
        )
    );
}

#[test]
fn static_data_ends_once() {
    let twice = Stream::hvm().record(0x10, &[]);
    assert!(
        fault(&twice.bytes, Tolerant)
            .ends_with("found STATIC_DATA_END, wanted memory or state, as static data has ended")
    );
    let late = Stream::hvm().record(0x12, &[0; 16]);
    assert!(
        fault(&late.bytes, Tolerant)
            .ends_with("found X86_MSR_POLICY, wanted memory or state, as static data has ended")
    );
}

#[test]
fn unknown_records_are_kept() {
    let stream = Stream::hvm()
        .record(0x8000_0077, b"optional")
        .record(0x77, b"mandatory?")
        .state()
        .record(0x8000_0001, &[])
        .record(0x99, b"x")
        .finish();
    accepted(&stream);
    let mut reader = StreamReader::new(&stream.bytes[..]);
    let mut mandatory = Vec::new();
    while let Some(event) = reader.next_event().unwrap() {
        match event {
            Event::Libxc(record @ libxc::Record::Unknown { .. }) => mandatory.push(record.is_mandatory()),
            Event::Libxl(record @ libxl::Record::Unknown { .. }) => mandatory.push(record.is_mandatory()),
            _ => {}
        }
    }
    assert_eq!(mandatory, [false, true, false, true]);
}

#[test]
fn xenstore_data() {
    let body = [&hex("02000000 00000000")[..], b"physmap/f0000000/size\x00800000\0empty\0\0"].concat();
    let stream = Stream::hvm().state().record(2, &body).finish();
    accepted(&stream);
    let body = [&hex("02000000 00000000")[..], b"key\0no end"].concat();
    let stream = Stream::hvm().state().record(2, &body);
    assert_eq!(
        fault(&stream.bytes, Tolerant),
        format!(
            "libxl[1] EMULATOR_XENSTORE_DATA @{:#x}: \
             value: found \"no end\", wanted a string that ends in NUL",
            stream.last() + 20
        )
    );
}

#[test]
fn a_pv_domain_can_be_inspected() {
    let stream = Stream::start()
        .image(3, 1)
        .record(0x02, &hex("08 04 000000000000"))
        .record(0x10, &[])
        .record(0x03, &hex("00000000 ff010000 3412000000000000"))
        .pages(&[0x1000_0000_0000_0000, 0xc000_0000_0000_0001], 1)
        .record(0x07, &[5; 4096])
        .record(0x04, &hex("00000000 00000000 0102030405"))
        .record(0x0c, &hex("00000000 00000000"))
        .record(0x00, &[])
        .record(0, &[]);
    accepted(&stream);
    let stream = Stream::start().image(3, 1).record(0x10, &[]).record(0x0a, &[0; 8]);
    assert!(fault(&stream.bytes, Tolerant).ends_with("found HVM_PARAMS, wanted a record of a PV domain"));
    let stream = Stream::hvm().record(0x07, &[5; 4096]);
    assert!(fault(&stream.bytes, Tolerant).ends_with("found SHARED_INFO, wanted a record of an HVM domain"));
}

#[test]
fn a_checkpointed_stream_goes_back_and_forth() {
    let checkpoint = |stream: Stream| {
        stream
            .pages(&[0], 1)
            .record(0x09, &hex(HVM_CONTEXT))
            .record(0x0e, &[])
            .record(3, &hex("02000000 00000000 5145564d"))
            .record(4, &[])
    };
    accepted(&checkpoint(checkpoint(Stream::hvm())).state().finish());
    let early = Stream::hvm().record(0x0e, &[]);
    assert!(fault(&early.bytes, Tolerant).ends_with("found CHECKPOINT, wanted HVM_CONTEXT before it"));
}

#[test]
fn the_sender_of_a_migration_adds_its_permission() {
    let stream = Stream::hvm().state().finish();
    let names = accepted(&stream.clone().raw(xl::PERMISSION_TO_GO));
    assert_eq!(names.last().unwrap(), "permission to go");

    let end = stream.bytes.len();
    for rest in [&b"x"[..], &xl::PERMISSION_TO_GO[..43], &[&xl::PERMISSION_TO_GO[..], b"x"].concat()] {
        let more = stream.clone().raw(rest);
        let error = round_trip(&more.bytes, Strict).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Invalid { .. }), "{error}");
        assert!(error.offset() >= end as u64);
        round_trip(&more.bytes, Tolerant).unwrap();
    }
}

#[test]
fn nothing_is_read_behind_end() {
    let stream = Stream::hvm().state().finish().raw(b"handshake");
    let mut reader = StreamReader::new(&stream.bytes[..]);
    let mut ends = 0;
    while ends < 1 {
        ends += usize::from(matches!(reader.next_event().unwrap(), Some(Event::Libxl(libxl::Record::End))));
    }
    assert_eq!(reader.into_inner(), b"handshake");
}

#[test]
fn what_cannot_be_read_says_what_to_do() {
    let plain = Stream::hvm().state().finish();
    // Offset of a byte, its value, the elements still read, where the error stands and what it says.
    let cases = [
        (32, &hex("01020304")[..], 0, 32, "big-endian stream: written on a big-endian machine"),
        (36, &[1], 1, 36, "legacy stream without records: written by Xen 4.5 or older; restore it"),
        (36, &[7], 1, 36, "mandatory_flags 0x4: only a newer xl knows them"),
        (plain.starts[1] + 15, &[1], 2, plain.starts[1] + 12, "big-endian stream: written on"),
        (plain.starts[3] + 17, &[1], 4, plain.starts[3] + 16, "big-endian image: written on"),
    ];
    for (at, bytes, readable, offset, wanted) in cases {
        let mut changed = plain.bytes.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        let mut reader = StreamReader::new(&changed[..]);
        for _ in 0..readable {
            reader.next_event().unwrap().unwrap();
        }
        let error = reader.next_event().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unreadable { .. }), "{error}");
        assert_eq!(error.offset(), offset as u64);
        assert!(error.kind().to_string().starts_with(wanted), "{error}");
        assert!(reader.next_event().unwrap().is_none());
    }
}

#[test]
fn faults_say_where_and_what() {
    let pages = |body: &str| Stream::hvm().record(1, &hex(body)).bytes;
    let context = |body: &str| Stream::hvm().record(9, &hex(body)).bytes;
    let here = "libxl[0] LIBXC_CONTEXT > libxc[3]";
    let start = Stream::hvm().bytes.len();
    let cases = [
        (pages("00000000 00000000 0000000000000000"), "PAGE_DATA", 8, "count: found 0x0, wanted at least 1"),
        (pages("01000000 00000000"), "PAGE_DATA", 4, "body_length: found 8, wanted at least 16"),
        (
            pages("02000000 00000000 0000000000000000"),
            "PAGE_DATA",
            4,
            "body_length: found 16, wanted at least 24",
        ),
        (pages("01000000 00000000 0000000000000000"), "PAGE_DATA", 4, "body_length: found 16, wanted 4112"),
        (
            pages("01000000 00000000 0000000000000050"),
            "PAGE_DATA",
            16,
            "type of pfn[0]: found 0x5, wanted 0x0 to 0x4 or 0x9 to 0xf",
        ),
        (
            pages("ffffffff 00000000 0000000000000000"),
            "PAGE_DATA",
            8,
            "count: found 4294967295, wanted at most 32768",
        ),
        (
            context(
                "0100 0000 18000000 00000000 01000000 ffffffffffffffff 120f8000 189d2700 0000 0000 00000000",
            ),
            "HVM_CONTEXT > hvm[0] HEADER",
            16,
            "magic: found 0x0, wanted 0x54381286",
        ),
        (
            context(
                "0300 0000 08000000 0000000000000000 0000 0000 00000000 0000000000000000 0000000000000000",
            ),
            "HVM_CONTEXT",
            8,
            "found PIC, wanted HEADER",
        ),
        (
            context(&format!("{HVM_HEADER} 0300 0000 07000000 00000000000000 0000 0000 00000000")),
            "HVM_CONTEXT > hvm[1] PIC",
            44,
            "length: found 7, wanted 8",
        ),
    ];
    for (bytes, path, offset, wanted) in cases {
        let error = fault(&bytes, Tolerant);
        assert_eq!(error, format!("{here} {path} @{:#x}: {wanted}", start + offset));
    }
    let short = Stream::hvm().record(0x07, &[5; 4095]);
    assert_eq!(
        fault(&short.bytes, Tolerant),
        format!("{here} SHARED_INFO @{:#x}: body_length: found 4095, wanted 4096", start + 4)
    );
    let mut long = Stream::hvm().bytes;
    long.extend(hex("77000080 01000001"));
    assert_eq!(
        fault(&long, Tolerant),
        format!("{here} 0x80000077 @{:#x}: body_length: found 16777217, wanted at most 16777216", start + 4)
    );
}

#[test]
fn headers_are_of_a_known_kind() {
    let plain = Stream::hvm().state().finish();
    let (libxl, image, domain) = (plain.starts[1], plain.starts[3], plain.starts[4]);
    let cases = [
        (0, "magic: found Yen saved"),
        (32, "byteorder: found 0x1020305, wanted 0x1020304"),
        (libxl, "ident: found 0x4d6962786c466d74, wanted 0x4c6962786c466d74 (LibxlFmt)"),
        (libxl + 11, "version: found 0x3, wanted 0x2"),
        (image + 7, "marker: found 0xfffffffffffffffe, wanted 0xffffffffffffffff"),
        (image + 11, "id: found 0x58454e47, wanted 0x58454e46 (XENF)"),
        (image + 12, "version: found 0x1000003, wanted 0x2 or 0x3"),
        (domain, "type: found 0x3, wanted 0x1 (x86 PV) or 0x2 (x86 HVM)"),
        (domain + 4, "page_shift: found 0xd, wanted 0xc"),
    ];
    for (at, wanted) in cases {
        let mut changed = plain.bytes.clone();
        changed[at] ^= 1;
        let error = round_trip(&changed, Tolerant).unwrap_err();
        assert!(error.kind().to_string().starts_with(wanted), "{error}");
    }
}

#[test]
fn a_length_over_its_limit_is_not_believed() {
    let mut long = Stream::start().bytes;
    long[44..48].copy_from_slice(&0x10_0001_u32.to_le_bytes());
    assert_eq!(
        fault(&long, Tolerant),
        "xl header @0x2c: optional_data_len: found 1048577, wanted at most 1048576"
    );

    let libxl = Stream::hvm().state();
    let start = libxl.bytes.len() + 4;
    let error = fault(&libxl.raw(&hex("03000000 01000001")).bytes, Tolerant);
    assert!(error.ends_with(&format!("@{start:#x}: body_length: found 16777217, wanted at most 16777216")));

    let pages = Stream::hvm().raw(&hex("01000000 01000008 00100000 00000000"));
    let start = pages.last() + 4;
    let error = fault(&pages.bytes, Tolerant);
    assert!(error.ends_with(&format!("@{start:#x}: body_length: found 134217729, wanted at most 134217728")));

    let pairs = [&hex("02000000 00000000")[..], &vec![0; libxl::XENSTORE_DATA_LIMIT + 2]].concat();
    let error = fault(&Stream::hvm().state().record(2, &pairs).bytes, Tolerant);
    assert!(error.ends_with("xenstore data: found 262146, wanted at most 262144"), "{error}");
}

#[test]
fn only_a_judge_minds_reserved_bits() {
    let reserved = Stream::hvm().pages(&[0x0010_0000_0000_0000], 1).state().finish();
    round_trip(&reserved.bytes, Tolerant).unwrap();
    assert_eq!(
        fault(&reserved.bytes, Strict),
        format!(
            "libxl[0] LIBXC_CONTEXT > libxc[3] PAGE_DATA @{:#x}: \
             pfn[0]: found 0x10000000000000, wanted reserved bits 59:52 zero",
            Stream::hvm().bytes.len() + 16
        )
    );
    let plain = Stream::hvm().state().finish();
    for (at, bit) in [(40, 1), (plain.starts[1] + 15, 4), (plain.starts[3] + 17, 2)] {
        let mut changed = plain.bytes.clone();
        changed[at] |= bit;
        round_trip(&changed, Tolerant).unwrap();
        let error = round_trip(&changed, Strict).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Invalid { .. }), "{error}");
    }
    let mut padded = plain;
    let last = padded.last();
    padded.bytes[last - 1] = 1;
    round_trip(&padded.bytes, Tolerant).unwrap();
    assert!(fault(&padded.bytes, Strict).ends_with("padding: found 0x1, wanted 0x0"));
}

#[test]
fn the_configuration_is_json() {
    let stream = Stream::start();
    let config = |bytes: &[u8]| match StreamReader::new(bytes).next_event().unwrap().unwrap() {
        Event::XlHeader(header) => header.config(),
        other => panic!("{other:?}"),
    };
    assert_eq!(config(&stream.bytes).unwrap()["c_info"]["type"], "hvm");
    let mut broken = stream.bytes.clone();
    broken[0x37] = b'!';
    let error = config(&broken).unwrap_err();
    assert_eq!((error.offset(), error.path().to_string().as_str()), (0x37, "xl config"));
    let mut text = stream.bytes.clone();
    text[36] = 2;
    assert!(matches!(config(&text).unwrap_err().kind(), ErrorKind::Unreadable { .. }));
}

#[test]
fn a_header_made_here_reads_back() {
    let config = serde_json::json!({"c_info": {"type": "hvm", "name": "n1"}});
    let header = xl::Header::with_config(&config);
    assert_eq!(header.config().unwrap(), config);
    let mut writer = StreamWriter::new(Vec::new());
    writer.write(&Event::XlHeader(header.clone())).unwrap();
    let bytes = writer.into_inner();
    let mut reader = StreamReader::new(&bytes[..]);
    assert_eq!(reader.next_event().unwrap(), Some(Event::XlHeader(header)));
}

#[test]
fn the_writer_keeps_the_limits() {
    let stream = Stream::hvm();
    let mut reader = StreamReader::new(&stream.bytes[..]);
    let mut writer = StreamWriter::new(Vec::new());
    let header = xl::Header { config: Some(vec![0; 1 << 20]), ..xl::Header::default() };
    let error = writer.write(&Event::XlHeader(header)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Limit { found: 0x10_0004, .. }), "{error}");

    let mut writer = StreamWriter::new(Vec::new());
    for _ in 0..8 {
        writer.write(&reader.next_event().unwrap().unwrap()).unwrap();
    }
    let unknown = libxc::Record::Unknown { kind: 0x8000_0000, body: vec![0; 0x100_0001] };
    let error = writer.write(&Event::Libxc(unknown)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Limit { limit: 0x100_0000, .. }), "{error}");
    let entries = vec![libxc::PfnEntry::new(0, libxc::PageType::XTAB); 32_769];
    let error = writer.write(&Event::PageData(&entries)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Limit { limit: 32_768, .. }), "{error}");
    assert_eq!(writer.into_inner(), stream.bytes);
}

#[test]
fn the_writer_keeps_the_order() {
    let mut writer = StreamWriter::new(Vec::new());
    let error = writer.write(&Event::Libxl(libxl::Record::End)).unwrap_err();
    assert_eq!(error.to_string(), "output > END @0x0: found END, wanted the xl header");

    let entries = [libxc::PfnEntry::new(1, libxc::PageType::NOTAB)];
    let stream = Stream::hvm();
    let mut reader = StreamReader::new(&stream.bytes[..]);
    for _ in 0..8 {
        writer.write(&reader.next_event().unwrap().unwrap()).unwrap();
    }
    writer.write(&Event::PageData(&entries)).unwrap();
    let error = writer.write(&Event::Libxc(libxc::Record::Verify)).unwrap_err();
    assert!(error.to_string().ends_with("found VERIFY, wanted 1 more pages of PAGE_DATA"));
    let chunk = libxc::PageChunk { entries: &entries, data: &[0; 100] };
    let error = writer.write(&Event::Pages(chunk)).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("found 1 entries with 100 bytes, wanted at most 1 entries with 4096 bytes each")
    );
    writer.write(&Event::Pages(libxc::PageChunk { entries: &entries, data: &[0; 4096] })).unwrap();
    writer.write(&Event::Libxc(libxc::Record::Verify)).unwrap();
}
