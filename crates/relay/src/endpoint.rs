//! Where bytes come from and where they go: files, pipes, standard streams.

mod input;
mod output;

pub use input::{Compression, Input, open_input};
pub use output::{Output, open_output};

/// The name of standard input and standard output.
pub const STANDARD: &str = "-";
