//! An HVM_CONTEXT of any content behind a sound beginning.
#![no_main]

use std::sync::LazyLock;

use hyperferry_fuzz::{parts, slim_streams, with_context, xen_stream};

static BEFORE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let streams = slim_streams("xen").expect("the fixtures are in the checkout");
    let (_, stream) = streams.first().expect("there is one");
    parts(stream).expect("a fixture is sound").0
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| xen_stream(&with_context(&BEFORE, bytes)));
