#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hyperferry_fuzz::qemu_stream(bytes));
