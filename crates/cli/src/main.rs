//! The hyperferry command.
fn main() {}
