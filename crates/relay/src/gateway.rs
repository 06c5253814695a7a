//! A machine in the middle of an `xl migrate`: it passes on what the sender and the receiver say to each other, and looks at
//! it as it passes.
//!
//! ```text
//! sender (xl)                     gateway                            receiver (hyperferry receive)
//!    |  <------------------------------------------------------------------ BANNER
//!    |  configuration, pages, state, END --[read, counted]-----------------> translated there, into its QEMU
//!    |  <------------------------------------------------------------------ READY
//!    |  PERMISSION_TO_GO --------------------------------------------------> the guest is the receiver's
//!    |  <------------------------------------------------------------------ REPORT, status
//! ```
//!
//! The gateway owns nothing: no guest, no translation, no journal. What one side says reaches the other byte for byte, so
//! the two agree with each other and not with us, and a gateway that dies is a transport that died: before
//! PERMISSION_TO_GO the sender keeps its guest. The stream is read on the way, so damage, and a guest that no receiver could
//! take, end the move here. `docs/decisions/0016-relay.md`.

mod dialogue;
mod player;

use std::{
    fs::File,
    future::Future,
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hyperferry_translate::{
    refusal::{self, Policy},
    source::Source,
};
use hyperferry_vm_model::{PAGE_SIZE, Vm};
use tokio::time::timeout;

use self::dialogue::{Dialogue, Said};
pub use self::player::{Played, play};
use crate::{
    BoxError, Error, Result,
    lane::{self, Lane},
    link::FarEnd,
    progress::{Phase, Precopy, Progress},
    session::page_numbers,
};

/// How long the receiver may take to end once nobody speaks to it any more: it has a QEMU to end.
const END_TIMEOUT: Duration = Duration::from_secs(40);

/// How long the last words of a receiver that has ended may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The sender's side in messages.
const NEAR: &str = "the sender's side";

/// The sender of a guest: two pipes.
#[derive(Debug)]
pub struct NearEnd {
    /// What it says.
    pub from: File,
    /// What it hears.
    pub to: File,
}

impl NearEnd {
    /// The sender at the other end of standard input and output.
    pub fn standard() -> Result<Self> {
        let from = io::stdin().as_fd().try_clone_to_owned();
        let to = io::stdout().as_fd().try_clone_to_owned();
        Ok(Self {
            from: from.map_err(Error::system("opening standard input"))?.into(),
            to: to.map_err(Error::system("opening standard output"))?.into(),
        })
    }

    /// The sender at the other end of these pipes.
    pub fn pipes(from: PipeReader, to: PipeWriter) -> Self {
        Self { from: OwnedFd::from(from).into(), to: OwnedFd::from(to).into() }
    }
}

/// A move that passes through.
pub struct Passing {
    name: String,
    to: PipeWriter,
    ended: Ended,
    input: File,
    watched: Arc<Watched>,
    down: Lane<()>,
    source: Source<Tee>,
}

type Ended = Pin<Box<dyn Future<Output = Result<u8>> + Send>>;

impl std::fmt::Debug for Passing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passing").field("to", &self.name).finish_non_exhaustive()
    }
}

/// What both lanes see.
#[derive(Debug, Default)]
struct Watched {
    dialogue: Mutex<Dialogue>,
    progress: OnceLock<Progress>,
    /// Bytes that went to the receiver.
    passed: AtomicU64,
    /// The sender's permission has begun to pass.
    go: AtomicBool,
    /// The receiver does not read any more.
    far_broken: AtomicBool,
    /// The sender does not read any more.
    near_broken: AtomicBool,
}

/// Ends a move from outside.
#[derive(Clone, Debug)]
pub struct Brake(Arc<Watched>);

impl Brake {
    /// Ends it, if the sender has not heard that its guest is loaded. If it has, only the two may decide, and this says no.
    pub fn pull(&self) -> bool {
        self.0.dialogue().close()
    }
}

impl Passing {
    /// Lets the two speak, up to the first page. A guest that no receiver could take is refused by then.
    pub async fn open(near: NearEnd, far: FarEnd) -> Result<Self> {
        let FarEnd { name, to, from, mut ended } = far;
        let NearEnd { from: input, to: output } = near;
        let watched = Arc::new(Watched::default());
        let answered = Arc::clone(&watched);
        let down = lane::spawn("answers", move || Ok(answers(from, output, &answered)?))?;
        let tee = Tee {
            from: input.try_clone().map_err(Error::system("reading from the sender"))?,
            to: to.try_clone().map_err(Error::system("writing to the receiver"))?,
            watched: Arc::clone(&watched),
        };
        let opening =
            lane::spawn("opening", move || Ok(Source::open(tee, all_that_can_be_allowed())?.live()))?;
        let opened = tokio::select! {
            opened = opening.result() => opened,
            // It went away before the sender has said enough.
            code = &mut ended => return Err(watched.verdict(&name, code).err().unwrap_or_else(|| nothing(&name))),
        };
        match opened {
            Ok(source) => Ok(Self { name, to, ended, input, watched, down, source }),
            Err(error) => {
                drop(to);
                Err(watched.failure(&name, error, ended).await)
            }
        }
    }

    /// What is known of the guest before its memory.
    pub fn outline(&self) -> &Vm {
        self.source.outline()
    }

    /// To end it from outside.
    pub fn brake(&self) -> Brake {
        Brake(Arc::clone(&self.watched))
    }

    /// Lets the rest pass. Without an error the guest runs at the receiver, and the sender knows.
    ///
    /// [`Error::Unreported`] says that the sender gave its guest away, and that nobody knows what became of it.
    pub async fn run(self, progress: &Progress) -> Result<()> {
        let Self { name, to, mut ended, mut input, watched, down, source } = self;
        progress.enter(Phase::Stream);
        progress.expect(Precopy::of_xen(source.outline().memory.size() / PAGE_SIZE));
        drop(watched.progress.set(progress.clone()));
        let (seen, counter, mut permitted) = (Arc::clone(&watched), progress.clone(), to);
        let up = lane::spawn("stream", move || {
            let mut counted = 0;
            let mut count = || {
                let passed = seen.passed.load(Ordering::Relaxed);
                counter.add(passed - counted);
                counted = passed;
            };
            source.pump(|addresses, _| {
                counter.pages(page_numbers(addresses));
                count();
                Ok(())
            })?;
            count();
            seen.enter(Phase::Load);
            permission(&mut input, &mut permitted, &seen)?;
            Ok(())
        })?;
        let code = tokio::select! {
            code = &mut ended => code,
            passed = up.result() => match passed {
                Ok(()) => last_word(&name, &mut ended).await,
                Err(error) => return Err(watched.failure(&name, error, ended).await),
            },
        };
        // What it said last may still be in the pipe.
        drop(timeout(LAST_WORDS, down.result()).await);
        watched.verdict(&name, code)
    }
}

impl Watched {
    fn dialogue(&self) -> MutexGuard<'_, Dialogue> {
        self.dialogue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        if let Some(progress) = self.progress.get() {
            progress.enter(phase);
        }
    }

    /// What has come of it, now that the receiver has ended.
    fn verdict(&self, name: &str, code: Result<u8>) -> Result<()> {
        let (said, strange) = {
            let dialogue = self.dialogue();
            (dialogue.said(), dialogue.strange())
        };
        let far_end = match code {
            Ok(_) if strange.is_some() => {
                let why =
                    format!("it said \"{}\", which is no xl migrate-receive", strange.unwrap_or_default());
                hop(name, "listening to the receiver", io::Error::other(why))
            }
            Ok(code) => Error::FarEnd { hop: name.to_owned(), code },
            Err(error) => error,
        };
        match said {
            Said::Report(0) if !self.near_broken.load(Ordering::Acquire) => Ok(()),
            Said::Report(0) => {
                let why = io::Error::other("it went away; the guest runs at the receiver");
                Err(Error::Unreported(Box::new(hop(NEAR, "telling the sender so", why))))
            }
            // Given back: the receiver's copy is gone.
            Said::Report(_) => Err(far_end),
            _ if self.go.load(Ordering::Acquire) => Err(Error::Unreported(Box::new(far_end))),
            _ => Err(far_end),
        }
    }

    /// What has come of it, now that the way up has failed.
    async fn failure(&self, name: &str, error: BoxError, mut ended: Ended) -> Error {
        // Whoever it was: the receiver is left alone now, and has words of its own about it.
        let code = last_word(name, &mut ended).await;
        // A receiver that has not even asked for a guest is the reason, too.
        if self.far_broken.load(Ordering::Acquire) || self.dialogue().said() == Said::Nothing {
            return self.verdict(name, code).err().unwrap_or_else(|| nothing(name));
        }
        let error = Error::Hop { hop: NEAR.to_owned(), source: Box::new(Error::Stream(error)) };
        if self.go.load(Ordering::Acquire) { Error::Unreported(Box::new(error)) } else { error }
    }
}

/// Waits for the receiver's end.
async fn last_word(name: &str, ended: &mut Ended) -> Result<u8> {
    timeout(END_TIMEOUT, ended)
        .await
        .unwrap_or_else(|_| Err(hop(name, "waiting for the receiver's end", io::ErrorKind::TimedOut.into())))
}

fn hop(name: &str, doing: &'static str, source: io::Error) -> Error {
    Error::Hop { hop: name.to_owned(), source: Box::new(Error::System { doing, source }) }
}

/// A receiver that ended well with nothing done.
fn nothing(name: &str) -> Error {
    Error::FarEnd { hop: name.to_owned(), code: 0 }
}

/// What the user of the receiver allows is for the receiver to say.
fn all_that_can_be_allowed() -> Policy {
    let mut policy = Policy::default();
    for refusal in refusal::ALL.iter().filter(|refusal| refusal.can_allow) {
        // Only those that can be.
        drop(policy.allow(refusal.name));
    }
    policy
}

/// Reads from the sender, and passes on what was read, byte for byte and at once.
#[derive(Debug)]
struct Tee {
    from: File,
    to: PipeWriter,
    watched: Arc<Watched>,
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        pass(buffer.get(..count).unwrap_or_default(), &mut self.to, &self.watched)?;
        Ok(count)
    }
}

fn pass(bytes: &[u8], to: &mut PipeWriter, watched: &Watched) -> io::Result<()> {
    let passed = to.write_all(bytes);
    if passed.is_err() {
        watched.far_broken.store(true, Ordering::Release);
    }
    watched.passed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    passed
}

/// Passes on what the sender says behind its stream, to its end.
fn permission(from: &mut File, to: &mut PipeWriter, watched: &Watched) -> io::Result<()> {
    let mut buffer = [0; 64];
    loop {
        let count = from.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        if !watched.go.swap(true, Ordering::AcqRel) {
            watched.enter(Phase::Resume);
        }
        pass(bytes, to, watched)?;
    }
}

/// Passes on what the receiver says, to its end.
fn answers(mut from: PipeReader, mut to: File, watched: &Watched) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = from.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        let before = watched.dialogue().said();
        // Under the lock of the dialogue: what is closed stays unsaid.
        let Some(said) = watched.dialogue().hear(bytes) else { return Ok(()) };
        // Told before it is passed on: the sender may answer at once.
        match said {
            Said::Ready if before != said => watched.enter(Phase::HandOver),
            Said::Report(0) if before != said => watched.enter(Phase::Running),
            _ => {}
        }
        if to.write_all(bytes).is_err() {
            // On to its end all the same: it may have the guest by now.
            watched.near_broken.store(true, Ordering::Release);
        }
    }
}
