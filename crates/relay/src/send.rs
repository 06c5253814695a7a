//! The sending end of an `xl migrate`: a running QEMU moves to a Xen host, whose own `xl migrate-receive` takes it in.
//!
//! Source: Xen `tools/xl/xl.h`, `tools/xl/xl_migrate.c` (4.14 to 4.20 agree); `formats/xen/xl.md`.
//!
//! ```text
//! QEMU                     we                                              receiver
//!                          Departure::travel  <------------------ BANNER
//! migrate ---- pages ----> translated ---------------------------------->
//!   stands still, state -> translated, END ----------------------------->  (loaded, stopped)
//!                                             <------------------ READY
//! postmigrate <-- SHUT --- Departure::commit
//!                          PERMISSION_TO_GO ---------------------------->  the guest is theirs
//! quit <-----------------                     <---------------- REPORT 0
//! cont <-----------------                     <---------------- REPORT 1, PERMISSION_TO_GO
//! ```
//!
//! Before PERMISSION_TO_GO every failure gives the guest back to its QEMU ([`Departure::back`]), and the end of our
//! process does so too ([`guest`]). Behind it that QEMU never runs it again unless the receiver says, by status and
//! by PERMISSION_TO_GO in return, that its copy is gone. Each step is in the [`journal`](crate::journal) before it is
//! taken.

pub mod facts;
pub mod guest;
mod passage;
pub mod platform;
mod receiver;

use std::{
    fmt::Display,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyperferry_xen_stream::xl::PERMISSION_TO_GO;

pub use self::{
    facts::Facts,
    guest::{Guest, Pace},
    passage::{Passage, Xen},
    platform::Platform,
    receiver::Receiver,
};
use crate::{
    BoxError, Error, Result,
    journal::{Entry, Step},
    lane,
    metered::MeteredWriter,
    progress::{Phase, Progress},
    receive::{BANNER, READY, REPORT, failed},
};

/// A guest on its way, and both ends of it.
#[derive(Debug)]
pub struct Departure {
    guest: Guest,
    receiver: Receiver,
    progress: Progress,
}

/// A guest that runs at the destination.
#[derive(Debug)]
pub struct Sent {
    /// From its last step here to the destination's word.
    pub silence: Option<Duration>,
    /// Whether its QEMU here has ended. If not, it keeps its copy, stopped.
    pub ended: Result<()>,
}

impl Departure {
    /// Between this QEMU and this receiver.
    pub fn new(guest: Guest, receiver: Receiver, progress: Progress) -> Self {
        Self { guest, receiver, progress }
    }

    /// The source.
    pub fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }

    /// Sends the guest through `translate`, until the receiver has it in full and stopped.
    ///
    /// `translate` reads QEMU's stream and writes Xen's, on a thread of its own; it must not wait for the end of its
    /// input, which stays open. May be dropped at any time; [`Departure::back`] is then to be called.
    pub async fn travel<T, E>(
        &mut self,
        pace: &Pace,
        entry: &mut Entry,
        translate: impl FnOnce(FromQemu, &mut dyn Write) -> std::result::Result<T, E> + Send + 'static,
    ) -> Result<T>
    where
        T: Send + 'static,
        E: Into<BoxError>,
    {
        self.receiver.hear(BANNER, "its banner").await?;
        entry.note(Step::Sending { still: pace.still })?;
        self.progress.enter(Phase::Stream);
        let broken = Arc::new(AtomicBool::new(false));
        let mut out = MeteredWriter::new(self.receiver.input()?, self.progress.clone(), Arc::clone(&broken));
        let ended = Arc::new(AtomicBool::new(false));
        let from = FromQemu { inner: self.guest.migrate(pace).await?, ended: Arc::clone(&ended) };
        let lane = lane::spawn("stream", move || {
            let made = translate(from, &mut out).map_err(Into::into)?;
            out.flush()?;
            Ok(made)
        })?;
        let made = tokio::select! {
            made = lane.result() => made,
            error = self.guest.watch() => return Err(error),
        };
        let made = match made {
            Ok(made) => made,
            Err(_) if broken.load(Ordering::Acquire) => {
                return Err(self.receiver.ended("in the middle of the stream").await);
            }
            Err(_) if ended.load(Ordering::Acquire) => return Err(self.guest.failure().await),
            Err(error) => return Err(Error::Stream(error)),
        };
        self.progress.enter(Phase::Load);
        let ready = self.receiver.hear(READY, "its word that the guest is loaded");
        tokio::pin!(ready);
        tokio::select! {
            heard = &mut ready => heard?,
            error = self.guest.watch() => {
                if !self.guest.is_dead() {
                    return Err(error);
                }
                tracing::warn!(%error, "the destination has all of the guest, and nobody else has");
                ready.await?;
            }
        }
        Ok(made)
    }

    /// Gives the guest away. Not to be dropped before it is done: what the receiver knows by then cannot be taken back.
    ///
    /// An [`Error::Unreported`] says that nobody knows whether it runs there; its QEMU here keeps it, stopped.
    pub async fn commit(mut self, entry: &mut Entry, keep: bool) -> Result<Sent> {
        if let Err(error) = self.give(entry).await {
            return Err(self.returned(entry, error).await);
        }
        match self.report().await {
            Ok(None) => {}
            // It has destroyed its copy and said so twice.
            Ok(Some(status)) => {
                let why = format!("could not start the guest (status {status}) and has destroyed its copy");
                return Err(self.returned(entry, Error::Destination(why)).await);
            }
            Err(error) => {
                if let Err(error) = entry.note(Step::Unknown { why: error.to_string() }) {
                    tracing::warn!(%error, "the journal ends with `go`");
                }
                return Err(Error::Unreported(Box::new(error)));
            }
        }
        let silence = self.guest.stopped().map(|stopped| stopped.elapsed());
        if let Err(error) = entry.note(Step::Left) {
            tracing::warn!(%error, "the guest runs there, and the journal does not say so");
        }
        self.progress.enter(Phase::Running);
        let ended = if keep { Ok(()) } else { self.guest.quit().await };
        self.receiver.let_finish().await;
        Ok(Sent { silence, ended })
    }

    /// Up to the permission. After an error the receiver has not got it, not even a part.
    async fn give(&mut self, entry: &mut Entry) -> Result<()> {
        self.progress.enter(Phase::HandOver);
        entry.note(Step::Ready { pid: None })?;
        if !self.guest.is_dead()
            && let Err(error) = self.guest.let_go().await
            && !self.guest.is_dead()
        {
            return Err(error);
        }
        entry.note(Step::Go)?;
        self.progress.enter(Phase::Resume);
        if let Err(error) = self.receiver.say(PERMISSION_TO_GO) {
            tracing::debug!(%error, "the permission");
            return Err(self.receiver.ended("before it could be told to run the guest").await);
        }
        Ok(())
    }

    /// How it went there: nothing, or the status of a failure that has given the guest back.
    async fn report(&mut self) -> Result<Option<u8>> {
        self.receiver.hear(REPORT, "its report").await?;
        match self.receiver.read(1).await?.first() {
            None => Err(self.receiver.ended("in its report").await),
            Some(0) => Ok(None),
            Some(status) => {
                self.receiver.hear(PERMISSION_TO_GO, "its permission to have the guest back").await?;
                Ok(Some(*status))
            }
        }
    }

    /// Has the guest back: it runs in its QEMU when this returns well, if it ran there before.
    pub async fn back(mut self, entry: &mut Entry, why: &(impl Display + Sync)) -> Result<()> {
        let back = self.guest.back().await;
        self.receiver.leave().await;
        match &back {
            Ok(()) => failed(entry, why),
            Err(stranded) => failed(entry, &format!("{why}; and {stranded}")),
        }
        back
    }

    async fn returned(self, entry: &mut Entry, error: Error) -> Error {
        match self.back(entry, &error).await {
            Ok(()) => error,
            Err(stranded) => Error::Stranded { first: error.to_string(), stranded: Box::new(stranded) },
        }
    }
}

/// QEMU's stream.
#[derive(Debug)]
pub struct FromQemu {
    inner: UnixStream,
    /// Whether its end was seen, which a migration that goes well does not have.
    ended: Arc<AtomicBool>,
}

impl Read for FromQemu {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.inner.read(buffer);
        let over = match &result {
            Ok(count) => *count == 0 && !buffer.is_empty(),
            Err(error) => error.kind() != io::ErrorKind::Interrupted,
        };
        if over {
            self.ended.store(true, Ordering::Release);
        }
        result
    }
}
