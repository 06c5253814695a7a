//! The destination of a move: a command with an `xl migrate-receive` at its other end.

use std::{
    io::{self, PipeReader, Read, Write, pipe},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::Stdio,
    time::Duration,
};

use rustix::net::sockopt;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::{BoxError, Error, Result, lane};

/// How long a receiver may take to end once it has closed its end, or has to end its copy; `xl` waits as long.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// How long one may take whose guest runs.
const FINISH_TIMEOUT: Duration = Duration::from_secs(30);

/// Room in the socket for a few records of pages, bytes. Only root gets as much.
///
/// A record is collected before it is written. With room for all of it the destination reads while we collect the next;
/// with the usual 208 KiB either waits for the other. It is no pipe: there the one who writes and the one who reads lock each
/// other out for as long as either copies, and a quarter of the throughput goes.
const ROOM: usize = 1 << 20;

/// The terminal's Ctrl-C is ours to obey: an ssh that dies of it behind "go" would leave nobody knowing what became
/// of the guest. Ignored signals stay ignored across `exec`, and ssh keeps them so.
const SHIELD: &str = "trap '' INT QUIT HUP; exec \"$@\"";

/// The receiver of a guest, at the other end of a socket and a pipe.
#[derive(Debug)]
pub struct Receiver {
    child: Child,
    to: Option<UnixStream>,
    from: PipeReader,
}

impl Receiver {
    /// Starts a command and talks to its standard input and output. Its standard error is ours.
    pub fn start(command: &[String]) -> Result<Self> {
        let (stdin, to) = UnixStream::pair().map_err(Error::system("making a socket pair"))?;
        let (from, stdout) = pipe().map_err(Error::system("making a pipe"))?;
        if let Err(error) = sockopt::set_socket_send_buffer_size_force(&to, ROOM)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&to, ROOM))
        {
            tracing::debug!(%error, "the socket to the destination keeps its size");
        }
        let child = Command::new("sh")
            .args(["-c", SHIELD, "sh"])
            .args(command)
            .stdin(Stdio::from(OwnedFd::from(stdin)))
            .stdout(Stdio::from(stdout))
            .spawn()
            .map_err(|source| Error::Start { program: "sh".into(), source })?;
        Ok(Self { child, to: Some(to), from })
    }

    /// A second handle to its standard input.
    pub(super) fn input(&self) -> Result<UnixStream> {
        const DOING: &str = "writing to the destination";
        let to = self.to.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe));
        to.and_then(UnixStream::try_clone).map_err(Error::system(DOING))
    }

    /// Waits until it says these words, however long that takes.
    pub(super) async fn hear(&mut self, wanted: &'static [u8], name: &str) -> Result<()> {
        let found = self.read(wanted.len()).await?;
        if found == wanted {
            return Ok(());
        }
        if found.is_empty() {
            return Err(self.ended(&format!("before {name}")).await);
        }
        Err(Error::Destination(format!("said \"{}\" instead of {name}", found.escape_ascii())))
    }

    /// The next bytes, fewer at the end.
    pub(super) async fn read(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut from = self.from.try_clone().map_err(Error::system("reading from the destination"))?;
        let answer = lane::spawn("answer", move || {
            let mut found = Vec::new();
            (&mut from).take(count as u64).read_to_end(&mut found)?;
            Ok::<_, BoxError>(found)
        })?;
        answer.result().await.map_err(Error::Stream)
    }

    /// Says these words whole, or not at all: they are far shorter than what a socket takes in one piece.
    pub(super) fn say(&mut self, words: &[u8]) -> io::Result<()> {
        let to = self.to.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))?;
        to.write_all(words)
    }

    /// Why it does not listen or speak any more.
    pub(super) async fn ended(&mut self, when: &str) -> Error {
        let how = match timeout(END_TIMEOUT, self.child.wait()).await {
            Ok(Ok(status)) => format!("ended {when} ({status})"),
            _ => format!("closed its end {when}"),
        };
        Error::Destination(how)
    }

    /// Leaves it alone: without permission it ends its copy.
    pub(super) async fn leave(&mut self) {
        self.end_within(END_TIMEOUT).await;
    }

    /// Leaves it alone with a guest that runs: it may have files to write, a service to make known.
    pub(super) async fn let_finish(&mut self) {
        self.end_within(FINISH_TIMEOUT).await;
    }

    async fn end_within(&mut self, patience: Duration) {
        self.to = None;
        if timeout(patience, self.child.wait()).await.is_err()
            && let Err(error) = self.child.start_kill()
        {
            tracing::debug!(%error, "the receiver's command was gone already");
        }
    }
}
