//! The one door for developers: demo, test, ci, lab, golden, fixtures.
fn main() {}
