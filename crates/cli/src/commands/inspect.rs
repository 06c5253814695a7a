//! `hyperferry inspect`: what a stream holds.

use hyperferry_relay::endpoint::open_input;

use crate::{
    args::Inspect,
    dump::{self, Printer},
    exit::{self, Result},
    output,
};

/// Shows the stream.
pub(super) fn run(arguments: &Inspect) -> Result<u8> {
    let input = open_input(&arguments.file)?;
    let mut printer = Printer::new(output::stdout(), arguments.json);
    dump::stream(input.reader, &mut printer)?;
    Ok(exit::OK)
}
