//! The side of a link that listens: a command for each dialler that is who it should be.
//!
//! The command is a process of its own: one move cannot harm another, and the end of its standard input tells it that its
//! sender is gone, as under ssh.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::{TcpListener, UnixListener, UnixStream},
    process,
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Address, Frame, Hello, Identity, Request,
    dial::{CONNECT_TIMEOUT, watch},
    tls,
};
use crate::{Error, Result, interrupted, lane};

/// Moves at a time. Each has a QEMU and all of a guest's memory.
const MOVES_MAX: usize = 32;

/// How long the last words of a command may take to be read once it has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Bytes of a command's words in one frame.
const WORDS: usize = 4096;

/// What is started for each dialler. What it asks for (`--sender NAME`, `--paused`) is added to its arguments, in front of
/// those behind `--`.
#[derive(Clone, Debug)]
pub struct Command {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

impl Command {
    /// Its arguments for one dialler.
    fn asked_for(&self, request: Request, peer: Option<String>) -> Vec<OsString> {
        let ours = self.arguments.iter().position(|word| word == "--").unwrap_or(self.arguments.len());
        let (ours, last) = self.arguments.split_at(ours);
        let mut arguments = ours.to_vec();
        if let Some(sender) = request.sender.or(peer).filter(|sender| super::is_sender(sender)) {
            arguments.extend(["--sender".into(), sender.into()]);
        }
        arguments.extend(request.paused.then(|| "--paused".into()));
        arguments.extend_from_slice(last);
        arguments
    }
}

/// Listens until a signal comes, then waits for the moves under way; a second signal leaves them alone.
pub async fn listen(address: &Address, identity: Option<&Identity>, command: Command) -> Result<()> {
    const DOING: &str = "listening";
    let failed = |source| Error::File { path: address.to_string().into(), doing: DOING, source };
    let room = Arc::new(Semaphore::new(MOVES_MAX));
    let mut moves = JoinSet::new();
    let stop = interrupted();
    tokio::pin!(stop);
    match address {
        Address::Ssh(_) => {
            return Err(Error::option(
                "--listen ssh:",
                "sshd listens there; wanted unix:PATH or tls:ADDRESS:PORT",
            ));
        }
        Address::Unix(path) => {
            let listener = bind(path).map_err(failed)?;
            tracing::info!(%address, "listening");
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.map_err(failed)?.0,
                    signal = &mut stop => { signal?; break }
                };
                if let Err(why) = ours(&stream) {
                    tracing::warn!(%why, "refused");
                    continue;
                }
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                    tracing::warn!("refused: {MOVES_MAX} moves are under way");
                    continue;
                };
                let command = command.clone();
                moves.spawn(async move {
                    let _permit = permit;
                    told("a local process", serve(stream, None, command).await);
                });
            }
            drop(listener);
            if let Err(error) = fs::remove_file(path) {
                tracing::debug!(%error, "the socket stays");
            }
        }
        Address::Tls { host, port } => {
            let Some(identity) = identity else {
                return Err(Error::option("--listen tls:", "needs --tls-cert, --tls-key and --tls-ca"));
            };
            let acceptor = identity.acceptor()?;
            let listener = TcpListener::bind((host.as_str(), *port)).await.map_err(failed)?;
            tracing::info!(%address, "listening");
            loop {
                let (stream, peer) = tokio::select! {
                    // A dialler that was gone before we looked is no reason to stop.
                    accepted = listener.accept() => match accepted {
                        Ok(accepted) => accepted,
                        Err(error) => { tracing::warn!(%error, "accepting"); sleep(LAST_WORDS).await; continue }
                    },
                    signal = &mut stop => { signal?; break }
                };
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                    tracing::warn!(%peer, "refused: {MOVES_MAX} moves are under way");
                    continue;
                };
                let (command, acceptor) = (command.clone(), acceptor.clone());
                moves.spawn(async move {
                    let _permit = permit;
                    let shaken = async {
                        watch(&stream)?;
                        acceptor.accept(stream).await.map_err(|error| io::Error::other(tls::explain(&error)))
                    };
                    let ended = match timeout(CONNECT_TIMEOUT, shaken).await {
                        Ok(Ok(stream)) => serve(stream, Some(peer.ip().to_string()), command).await,
                        Ok(Err(error)) => Err(error),
                        Err(_) => Err(io::ErrorKind::TimedOut.into()),
                    };
                    told(&peer.to_string(), ended);
                });
            }
        }
    }
    tokio::select! {
        () = async { while moves.join_next().await.is_some() {} } => {}
        signal = interrupted() => { signal?; }
    }
    Ok(())
}

fn told(peer: &str, ended: io::Result<u8>) {
    match ended {
        Ok(code) => tracing::info!(peer, code, "ended"),
        Err(error) => tracing::warn!(peer, %error, "refused"),
    }
}

/// A socket for us alone. One that nobody listens at any more is replaced.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether the dialler is we ourselves, or root.
fn ours(stream: &UnixStream) -> std::result::Result<(), String> {
    let (uid, ours) = match stream.peer_cred() {
        Ok(peer) => (peer.uid(), rustix::process::geteuid().as_raw()),
        Err(error) => return Err(error.to_string()),
    };
    if uid == ours || uid == 0 { Ok(()) } else { Err(format!("user {uid}, wanted {ours} or 0")) }
}

/// One dialler, from its HELLO to its command's exit code.
async fn serve<S>(stream: S, peer: Option<String>, command: Command) -> io::Result<u8>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reading, writing) = split(stream);
    let request = timeout(CONNECT_TIMEOUT, Hello::read(&mut reading)).await;
    let request = request.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let mut process = process::Command::new(&command.program);
    process.args(command.asked_for(request, peer)).env_remove("SSH_CONNECTION");
    // A terminal's Ctrl-C is for us; the command is to see the end of its input.
    process.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process.spawn()?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let raising = tokio::spawn(raise(reading, stdin));
    let (frames, mut queue) = mpsc::channel::<Vec<u8>>(8);
    let writing = tokio::spawn(async move {
        let mut to = Some(writing);
        while let Some(frame) = queue.recv().await {
            // A dialler that is gone is no reason to hold the command up: it may own the guest by now.
            if let Some(open) = &mut to
                && let Err(error) = async {
                    open.write_all(&frame).await?;
                    open.flush().await
                }
                .await
            {
                tracing::warn!(%error, "the dialler does not hear us any more");
                to = None;
            }
        }
        match to {
            Some(mut open) => open.shutdown().await,
            None => Ok(()),
        }
    });
    let output = tokio::spawn(frame(stdout, Frame::output, frames.clone()));
    let words = tokio::spawn(frame(stderr, Frame::words, frames.clone()));
    let status = child.wait().await?;
    // QEMU lives on and may hold on to the pipes.
    let last_words = async { drop((output.await, words.await)) };
    drop(timeout(LAST_WORDS, last_words).await);
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
    drop(frames.send(Frame::exit(code)).await);
    drop(frames);
    drop(timeout(CONNECT_TIMEOUT, writing).await);
    // A connection closed on bytes that nobody has read is reset, and takes our last words with it.
    let stop = raising.abort_handle();
    drop(timeout(CONNECT_TIMEOUT, raising).await);
    stop.abort();
    Ok(code)
}

/// Bytes of the sender's, to the end; broken off or ended, the command sees the end of its input. What it does not read any
/// more goes nowhere.
async fn raise(mut from: impl AsyncRead + Unpin, to: process::ChildStdin) {
    let mut to = Some(to);
    let mut buffer = vec![0; lane::STEP];
    while let Ok(count) = from.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return };
        if let Some(open) = &mut to
            && open.write_all(bytes).await.is_err()
        {
            to = None;
        }
    }
}

/// What a command says, as frames.
async fn frame(mut from: impl AsyncRead + Unpin, make: fn(&[u8]) -> Vec<u8>, to: mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; WORDS];
    while let Ok(count) = from.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return };
        if to.send(make(bytes)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dialler_asks_for_is_not_taken_for_an_argument_of_qemu() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let command =
            Command { program: "hyperferry".into(), arguments: words("receive --serial x -- -vnc :1") };
        let request = Request { sender: Some("xen".to_owned()), paused: true };
        let wanted = words("receive --serial x --sender xen --paused -- -vnc :1");
        assert_eq!(command.asked_for(request, None), wanted);
        let plain = words("receive --serial x --sender 192.0.2.7 -- -vnc :1");
        assert_eq!(command.asked_for(Request::default(), Some("192.0.2.7".to_owned())), plain);
    }
}
