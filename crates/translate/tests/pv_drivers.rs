//! A guest with paravirtual drivers is refused while its pages come, before its sender pauses it.
//!
//! `data/` holds parts of a real stream: Xen 4.17's `xl migrate` of Debian's Linux 6.1 with its PV drivers, one vCPU,
//! 256 MiB. Headers and entries are as they were sent. Of the pages' contents only the xenstore ring's indices are kept.
//!
//! * `linux-pv-first-record.zst`: all up to the first PAGE_DATA record, frames 0x0 to 0x3ff.
//! * `linux-pv-xenstore-record.zst`: in its place the last record of the first round, frames 0xfec00 to 0xfefff.

#![allow(clippy::unwrap_used, reason = "tests may, their helpers too")]

use std::{fs::File, path::Path};

use hyperferry_testkit::Fixture;
use hyperferry_translate::{Error, refusal::Policy, source::Source};

/// What a stream is refused for, and how many pages of RAM went on by then.
fn judged(name: &str, allow: bool) -> (Result<String, String>, usize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let mut policy = Policy::default();
    if allow {
        policy.allow("pv-drivers").unwrap();
    }
    let stream = zstd::Decoder::new(File::open(path).unwrap()).unwrap();
    let source = Source::open(stream, policy).unwrap().live();
    let mut pages = 0;
    let pumped = source.pump(|addresses, _| {
        pages += addresses.len();
        Ok(())
    });
    let found = match pumped.unwrap_err() {
        Error::Refused(report) => {
            assert!(!report.paused, "the guest runs on");
            Ok(report.refusals().map(ToString::to_string).collect())
        }
        error => Err(error.to_string()),
    };
    (found, pages)
}

#[test]
fn shared_info_in_ram_is_seen_before_a_page_is_taken() {
    let (found, pages) = judged("linux-pv-first-record.zst", false);
    let found = found.unwrap();
    assert!(found.starts_with("refused [pv-drivers]: pv uses") && found.contains("page 0x10000"), "{found}");
    assert_eq!(pages, 0);
}

#[test]
fn a_xenstore_ring_in_use_is_seen_when_its_page_comes() {
    let found = judged("linux-pv-xenstore-record.zst", false).0.unwrap();
    assert!(found.contains("its xenstore ring is in use"), "{found}");
}

#[test]
fn what_is_allowed_goes_on() {
    for name in ["linux-pv-first-record.zst", "linux-pv-xenstore-record.zst"] {
        let error = judged(name, true).0.unwrap_err();
        assert!(error.contains("found 0 bytes"), "{name}: {error}");
    }
}

/// The same kernel's machine without its drivers keeps its pages; so does everything else that we have captured.
#[test]
fn no_other_guest_is_taken_for_one() {
    for fixture in hyperferry_testkit::fixtures("xen").unwrap() {
        assert!(no_sign(&fixture), "{}", fixture.name);
    }
}

fn no_sign(fixture: &Fixture) -> bool {
    let source = match Source::open(fixture.open().unwrap(), Policy::default()) {
        Ok(source) => source,
        Err(error) => return !error.to_string().contains("pv-drivers"),
    };
    match source.pump(|_, _| Ok(())) {
        Ok(taken) => taken.report.findings.iter().all(|finding| finding.name != "pv-drivers"),
        Err(error) => !error.to_string().contains("pv-drivers"),
    }
}
