//! Data on standard output, words on standard error.

use std::io::{self, BufWriter, Write};

use crate::exit::{Error, Result};

/// Says a line on standard error, in one write: a gateway and the receiver behind it may share the terminal. Where nobody is
/// left to hear it (an ssh that is gone) `eprintln!` would end us, and the guest with us.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = std::io::stderr().write_all(format!("{}\n", format_args!($($words)*)).as_bytes());
    }};
}

/// Standard output, buffered: it is for programs as much as for people.
pub(crate) fn stdout() -> BufWriter<io::Stdout> {
    BufWriter::with_capacity(64 << 10, io::stdout())
}

/// Writes text to standard output.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::stdout)
}

/// Writes a JSON document to standard output.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::stdout(error.into()))?;
    print(&format!("{text}\n"))
}
