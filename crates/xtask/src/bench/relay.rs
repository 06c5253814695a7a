//! Streams through sockets: a feeder, what is measured, and a sink.

use super::seat::{self, Seat};
use super::{Taken, finish, joined};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The step in which everybody here reads and writes: the relay's own (`crates/relay/src/lane.rs`), and that of `cat`.
pub(super) const STEP: usize = 128 << 10;

/// A command between two sockets.
pub(super) fn through(mut command: Command, from: File) -> Result<Taken> {
    let (input, feeder) = feed(from)?;
    let (output, sink) = sink()?;
    command.stdin(OwnedFd::from(input)).stdout(OwnedFd::from(output)).stderr(Stdio::piped());
    let child = seat::within(Seat::Measured, || command.spawn()).context("cannot start the relay")?;
    // The command holds the ends of the sockets as long as it lives.
    drop(command);
    let peak_kib = finish(child)?;
    joined(feeder)??;
    Ok(Taken { elapsed: joined(sink)??, peak_kib })
}

/// Writes a file into a socket.
fn feed(mut from: File) -> Result<(UnixStream, JoinHandle<Result<()>>)> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let writer = thread::spawn(move || {
        seat::take(Seat::Feeder);
        let mut buffer = vec![0; STEP];
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            ours.write_all(buffer.get(..count).unwrap_or_default())?;
        }
    });
    Ok((theirs, writer))
}

fn sink() -> Result<(UnixStream, JoinHandle<Result<Duration>>)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((theirs, thread::spawn(|| drain(ours))))
}

/// Reads to the end, or until no more comes in time, and says how long that took from the first byte to the last: what a
/// relay does before it has anything to say, such as asking QEMU for a template, is not its throughput. On a thread of its own.
pub(super) fn drain(mut from: impl Read) -> Result<Duration> {
    seat::take(Seat::Sink);
    let mut buffer = vec![0; STEP];
    let mut times: Option<(Instant, Instant)> = None;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {
                let now = Instant::now();
                times = Some((times.map_or(now, |(first, _)| first), now));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && times.is_some() => break,
            Err(error) => return Err(error.into()),
        }
    }
    let (first, last) = times.context("nothing came")?;
    Ok(last - first)
}
