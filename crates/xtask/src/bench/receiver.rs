//! The receiver that `hyperferry send` is measured with: it says what `xl migrate-receive` says, and keeps nothing.
//!
//! Source: `formats/xen/xl.md`, `formats/xen/libxl.md`, `formats/xen/libxc.md`. It reads in the steps of
//! whoever drains `cat`, and looks at no more of the stream than where each record ends, so that what is measured is the sender.

use super::relay::STEP;
use super::seat::{self, Seat};
use anyhow::{Context, Result, ensure};
use hyperferry_testkit::cut::{BANNER, GO, READY, REPORT};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

/// The xl header, and where in it stands the length of what follows.
const XL_HEADER: usize = 48;
const XL_OPTIONAL_LENGTH: usize = 44;
/// The libxl header, and the libxc image and domain headers together.
const LIBXL_HEADER: u64 = 16;
const LIBXC_HEADERS: u64 = 24 + 16;
/// Types of records.
const END: u32 = 0;
const LIBXC_CONTEXT: u32 = 1;

/// Takes a guest, and leaves in a file how many microseconds lay between the first byte and the last.
pub(crate) fn run(took: &Path) -> Result<()> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    seat::take(Seat::Sink);
    say(BANNER)?;
    let mut stream = Stream { input: BufReader::with_capacity(STEP, input), began: None };
    stream.pass_over()?;
    let began = stream.began.context("nothing came")?;
    fs::write(took, began.elapsed().as_micros().to_string())?;
    say(READY)?;
    let mut heard = vec![0; GO.len()];
    stream.input.read_exact(&mut heard)?;
    ensure!(heard == GO, "{} is no permission", heard.escape_ascii());
    say(&[REPORT, &[0]].concat())
}

fn say(words: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(words)?;
    Ok(out.flush()?)
}

/// A stream that is passed over.
struct Stream {
    input: BufReader<File>,
    began: Option<Instant>,
}

impl Stream {
    fn pass_over(&mut self) -> Result<()> {
        let header = self.take::<XL_HEADER>()?;
        let (_, optional) = header.split_at(XL_OPTIONAL_LENGTH);
        self.skip(u32::from_le_bytes(optional.try_into()?).into())?;
        self.skip(LIBXL_HEADER)?;
        loop {
            match self.record()? {
                END => return Ok(()),
                LIBXC_CONTEXT => {
                    self.skip(LIBXC_HEADERS)?;
                    while self.record()? != END {}
                }
                _ => {}
            }
        }
    }

    /// Passes over a record, and gives its type. libxl's and libxc's are framed alike.
    fn record(&mut self) -> Result<u32> {
        let [kind, length] = [self.take::<4>()?, self.take::<4>()?].map(u32::from_le_bytes);
        self.skip(u64::from(length).next_multiple_of(8))?;
        Ok(kind)
    }

    fn take<const COUNT: usize>(&mut self) -> Result<[u8; COUNT]> {
        let mut bytes = [0; COUNT];
        self.input.read_exact(&mut bytes)?;
        self.began.get_or_insert_with(Instant::now);
        Ok(bytes)
    }

    fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            let found = self.input.fill_buf()?.len();
            ensure!(found > 0, "the stream ends early");
            let passed = found.min(usize::try_from(count)?);
            self.input.consume(passed);
            count -= u64::try_from(passed)?;
        }
        Ok(())
    }
}
