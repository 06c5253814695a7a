//! A save file, or a recorded stream, in the place of a sender: what it holds goes the way of a live guest.

use std::{
    cell::Cell,
    io::{self, BufReader, BufWriter, PipeReader, PipeWriter, Read, Write},
    rc::Rc,
};

use hyperferry_xen_stream::{Event, StreamReader, libxl, xl::PERMISSION_TO_GO};

use crate::{
    BoxError, Error, Result,
    lane::{self, Lane, STEP},
    receive::{BANNER, READY},
};

/// Plays the sender of what `input` holds to whoever is at the other end of the pipes. Nothing behind the stream's end is sent.
pub fn play(input: impl Read + Send + 'static, from: PipeReader, to: PipeWriter) -> Result<Played> {
    Ok(Played(lane::spawn("file", move || send(input, from, to))?))
}

/// A file that is being played.
pub struct Played(Lane<()>);

impl std::fmt::Debug for Played {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Played")
    }
}

impl Played {
    /// Waits for its end. A receiver that went away is no error here: it has told its own side.
    pub async fn result(self) -> Result<()> {
        self.0.result().await.map_err(Error::Stream)
    }
}

fn send(input: impl Read, mut from: PipeReader, to: PipeWriter) -> std::result::Result<(), BoxError> {
    if !hears(&mut from, BANNER) {
        return Ok(());
    }
    let broken = Rc::new(Cell::new(false));
    let copy = Copy {
        input: BufReader::with_capacity(STEP, input),
        to: BufWriter::with_capacity(STEP, to),
        broken: Rc::clone(&broken),
    };
    let mut reader = StreamReader::new(copy);
    loop {
        match reader.next_event() {
            Ok(Some(Event::Libxl(libxl::Record::End)) | None) => break,
            Ok(Some(_)) => {}
            Err(_) if broken.get() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    let mut to = reader.into_inner().to;
    let loaded = to.flush().is_ok() && hears(&mut from, READY);
    if loaded && to.write_all(PERMISSION_TO_GO).and_then(|()| to.flush()).is_ok() {
        // The gateway hears how it went, too.
        io::copy(&mut from, &mut io::sink())?;
    }
    Ok(())
}

/// Whether the receiver says these words next.
fn hears(from: &mut PipeReader, words: &[u8]) -> bool {
    let mut found = Vec::new();
    from.take(words.len() as u64).read_to_end(&mut found).is_ok() && found == words
}

/// Reads from a file, and sends what was read and nothing more.
struct Copy<R> {
    input: BufReader<R>,
    to: BufWriter<PipeWriter>,
    broken: Rc<Cell<bool>>,
}

impl<R: Read> Read for Copy<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.to.write_all(buffer.get(..count).unwrap_or_default()).inspect_err(|_| self.broken.set(true))?;
        Ok(count)
    }
}
