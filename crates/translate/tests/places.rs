//! From a QEMU that was asked where the guest sees its video memory: pages go there with the rounds, and the state at the
//! end has to agree.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may, their helpers too"
)]

use std::ops::Range;

use hyperferry_testkit::{Fixture, said::Said};
use hyperferry_translate::{
    Error, Result,
    qemu::Hint,
    refusal::Policy,
    report::Report,
    source::{Source, survey},
    xen::{Destination, Relocation, Template, XenSink},
};

/// Guests with a standard VGA, sent live.
const FIXTURES: [&str; 2] = ["qemu/7.2-kvm-devices", "qemu/10.0-tcg-devices"];
const VIDEO: &str = "0000:00:02.0/vga.vram";
/// Where SeaBIOS puts it.
const VIDEO_MEMORY: Range<u64> = 0xfd00_0000..0xfe00_0000;

/// A Xen stream.
struct Stream {
    bytes: Vec<u8>,
    /// Where what is written of a guest that stands still begins.
    end: usize,
}

/// To Xen, from a QEMU that has said that video memory is seen here.
fn to_xen(fixture: &Fixture, base: Option<u64>) -> Result<Stream> {
    let (relocation, policy) = (Relocation::default(), Policy::allow_all());
    let known = survey(fixture.open().unwrap())?;
    let hint = Hint { places: base.map(|base| (VIDEO.to_owned(), base)).into_iter().collect(), ..known };
    let source = Source::open_with(fixture.open().unwrap(), policy.clone(), hint)?;
    let template = Template::bundled(&source.outline().config)?;
    let destination = Destination { template: &template, relocation: &relocation, policy: &policy };
    let mut report = Report::default();
    let mut sink = XenSink::new(Vec::new(), source.outline(), destination, &mut report)?;
    let taken = source.pump(|addresses, data| sink.pages(addresses, data))?;
    let held = taken.held.range(VIDEO_MEMORY.start, VIDEO_MEMORY.end).count();
    assert_eq!(held == 0, base.is_some(), "{}: {held} pages of video memory held", fixture.name);
    let end = usize::try_from(sink.offset()).unwrap();
    let bytes = sink.finish(&taken.vm, &taken.held, &mut report)?;
    Ok(Stream { bytes, end })
}

/// What is written of a guest that stands still has to be small: 64 KiB of pages that Xen wants for itself, and the state,
/// most of which is the buffers of an IDE drive.
#[test]
fn video_memory_goes_with_the_rounds_where_its_place_is_known() {
    for name in FIXTURES {
        let fixture = Fixture::named(name).unwrap();
        let [live, file] = [Some(VIDEO_MEMORY.start), None].map(|base| to_xen(&fixture, base).unwrap());
        let frames = |stream: &Stream| Said::of(&stream.bytes).unwrap().frames;
        assert!(frames(&live) == frames(&file), "{name}: another memory");
        let size = |stream: &Stream| stream.bytes.len() - stream.end;
        assert!(size(&live) < 512 << 10, "{name}: {} bytes", size(&live));
        assert!(size(&file) > 16 << 20, "{name}: {} bytes", size(&file));
    }
}

#[test]
fn video_memory_that_was_moved_meanwhile_is_refused() {
    let fixture = Fixture::named(FIXTURES[1]).unwrap();
    let Err(Error::Refused(report)) = to_xen(&fixture, Some(0xe000_0000)) else { panic!("it went wrong") };
    let refused: Vec<_> = report.refusals().map(ToString::to_string).collect();
    let [refused] = &refused[..] else { panic!("{refused:?}") };
    let what = "refused [memory-layout]: the guest saw 0000:00:02.0/vga.vram at 0xe0000000 when the move began, and sees \
                it at 0xfd000000 now";
    assert!(refused.starts_with(what) && refused.contains("try again"), "{refused}");
}
