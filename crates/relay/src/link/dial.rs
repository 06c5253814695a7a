//! The side of a link that connects: to a host over ssh, to a UNIX socket, to a TLS port.

use std::{
    fmt,
    future::Future,
    io::{self, PipeReader, PipeWriter, Write, pipe},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    pin::Pin,
    process::Stdio,
    str::FromStr,
    time::Duration,
};

use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::{TcpStream, UnixStream, lookup_host, unix::pipe as asynchronous},
    process::Command,
    time::timeout,
};

use super::{Frame, Hello, Identity, Request, tls};
use crate::{Error, Result, lane};

/// How long it may take to be connected and known to each other.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A peer that does not acknowledge for this long is gone: as long as what ssh is told below, and short against the time for
/// which a suspended guest can be missed.
const SILENCE: Duration = Duration::from_secs(15);

/// ssh: no questions, and no waiting for a host that has vanished.
const SSH_OPTIONS: [&str; 4] =
    ["BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3"];

/// The terminal's Ctrl-C is ours to obey: behind "go" nobody may end the ssh that carries the answer.
const SHIELD: &str = "trap '' INT QUIT HUP; exec \"$@\"";

/// Where a receiver is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `ssh:HOST` or `ssh:USER@HOST`: a command is started there.
    Ssh(String),
    /// `unix:PATH`: somebody listens there.
    Unix(PathBuf),
    /// `tls:HOST:PORT`: somebody listens there.
    Tls {
        /// Name or address; the certificate must have it.
        host: String,
        /// Port.
        port: u16,
    },
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        const WANTED: &str = "wanted ssh:HOST, unix:PATH or tls:HOST:PORT";
        let (kind, rest) = text.split_once(':').ok_or(WANTED)?;
        match kind {
            "ssh" if super::is_sender(rest) => Ok(Self::Ssh(rest.to_owned())),
            "ssh" => Err(format!("{rest:?} is no host; {WANTED}")),
            "unix" if !rest.is_empty() => Ok(Self::Unix(rest.into())),
            "tls" => {
                let (host, port) = rest.rsplit_once(':').ok_or(WANTED)?;
                let port = port.parse().map_err(|_| format!("{port:?} is no port; {WANTED}"))?;
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                if host.is_empty() { Err(WANTED.to_owned()) } else { Ok(Self::Tls { host, port }) }
            }
            _ => Err(WANTED.to_owned()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh(host) => write!(f, "ssh:{host}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tls { host, port } if host.contains(':') => write!(f, "tls:[{host}]:{port}"),
            Self::Tls { host, port } => write!(f, "tls:{host}:{port}"),
        }
    }
}

/// A receiver on another host: two pipes, and how its command ends.
pub struct FarEnd {
    /// What it is called in messages.
    pub name: String,
    /// Its standard input. Dropped, it sees the end.
    pub to: PipeWriter,
    /// Its standard output. Its standard error has become ours.
    pub from: PipeReader,
    /// Its exit code, once it has ended.
    pub ended: Pin<Box<dyn Future<Output = Result<u8>> + Send>>,
}

impl fmt::Debug for FarEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FarEnd").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Connects to a receiver. `command` is what ssh starts; `request` is told to those who listen.
pub async fn dial(
    address: &Address,
    identity: Option<&Identity>,
    command: &str,
    request: &Request,
) -> Result<FarEnd> {
    let hello = Hello::encode(request).map_err(Error::system("preparing the link"))?;
    match address {
        Address::Ssh(host) => ssh(address, host, command),
        Address::Unix(path) => {
            let failed = |error: io::Error| far_error(address, "connecting", error);
            let stream = UnixStream::connect(path).await.map_err(failed)?;
            join(address, stream, hello).await
        }
        Address::Tls { host, port } => {
            let Some(identity) = identity else {
                return Err(Error::option("--to tls:", "needs --tls-cert, --tls-key and --tls-ca"));
            };
            let connector = identity.connector()?;
            let failed = |error: io::Error| far_error(address, "connecting", error);
            let name = match host.parse::<IpAddr>() {
                Ok(ip) => ServerName::from(ip),
                Err(_) => ServerName::try_from(host.clone())
                    .map_err(|error| far_error(address, "its name", io::Error::other(error)))?,
            };
            let shaken = async {
                let stream = connect(host, *port).await.map_err(failed)?;
                let shaken = connector.connect(name, stream).await;
                shaken.map_err(|error| far_error(address, "TLS", io::Error::other(tls::explain(&error))))
            };
            let late = || far_error(address, "connecting", io::ErrorKind::TimedOut.into());
            let stream = timeout(CONNECT_TIMEOUT, shaken).await.map_err(|_| late())??;
            join(address, stream, hello).await
        }
    }
}

fn ssh(address: &Address, host: &str, command: &str) -> Result<FarEnd> {
    let made = |source| Error::System { doing: "making a pipe", source };
    let (stdin, to) = pipe().map_err(made)?;
    let (from, stdout) = pipe().map_err(made)?;
    let mut shielded = Command::new("sh");
    shielded.args(["-c", SHIELD, "sh", "ssh"]);
    for option in SSH_OPTIONS {
        shielded.args(["-o", option]);
    }
    let child = shielded.args([host, command]).stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).spawn();
    let mut child = child.map_err(|source| Error::Start { program: "sh".into(), source })?;
    let name = address.to_string();
    let ended = Box::pin(async move {
        let status = child.wait().await.map_err(Error::system("waiting for ssh"))?;
        // Without a code it died of a signal; ssh's own word for a failure of its own is 255.
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
    });
    Ok(FarEnd { name, to, from, ended })
}

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for address in lookup_host((host, port)).await? {
        match TcpStream::connect::<SocketAddr>(address).await {
            Ok(stream) => {
                watch(&stream)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Lets the kernel end a connection whose peer has vanished without a word.
pub(super) fn watch(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    let every = Duration::from_secs(5);
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, every)?;
    sockopt::set_tcp_keepintvl(socket, every)?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    let silence = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket, silence)?;
    Ok(())
}

/// A connection as two pipes: a page lane blocks, and a TLS stream cannot.
async fn join<S>(address: &Address, mut stream: S, hello: Vec<u8>) -> Result<FarEnd>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let made = |source| Error::System { doing: "making a pipe", source };
    let written = async {
        stream.write_all(&hello).await?;
        stream.flush().await
    };
    written.await.map_err(|error| far_error(address, "the link", error))?;
    let (up, to) = pipe().map_err(made)?;
    let (from, down) = pipe().map_err(made)?;
    let up = asynchronous::Receiver::from_owned_fd(OwnedFd::from(up)).map_err(made)?;
    let (reading, writing) = split(stream);
    let raising = tokio::spawn(raise(up, writing));
    let lowering = tokio::spawn(lower(reading, down));
    let (name, address) = (address.to_string(), address.clone());
    let ended = Box::pin(async move {
        let lowered = lowering.await.map_err(io::Error::other).and_then(|code| code);
        raising.abort();
        let broken = lowered.and_then(|code| code.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()));
        broken.map_err(|error| far_error(&address, "the link", io::Error::other(tls::explain(&error))))
    });
    Ok(FarEnd { name, to, from, ended })
}

/// Bytes of the sender's, to the end.
async fn raise(mut from: asynchronous::Receiver, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; lane::STEP];
    loop {
        let count = from.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return to.shutdown().await;
        };
        to.write_all(bytes).await?;
        to.flush().await?;
    }
}

/// Frames of the receiver's, to its exit code.
async fn lower(mut from: impl AsyncRead + Unpin, mut to: PipeWriter) -> io::Result<Option<u8>> {
    while let Some(frame) = Frame::read(&mut from).await? {
        match frame {
            // Far fewer bytes than a pipe holds: this does not block.
            Frame::Output(bytes) => to.write_all(&bytes)?,
            Frame::Words(bytes) => io::stderr().write_all(&bytes)?,
            Frame::Exit(code) => return Ok(Some(code)),
        }
    }
    Ok(None)
}

/// A failure of the link.
fn far_error(address: &Address, doing: &'static str, source: io::Error) -> Error {
    Error::Hop { hop: address.to_string(), source: Box::new(Error::System { doing, source }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["ssh:root@kvm", "unix:/run/x.sock", "tls:kvm:7000", "tls:[::1]:7000"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in
            ["kvm", "ssh:", "ssh:-oProxyCommand=x", "unix:", "tls:kvm", "tls:kvm:x", "tls::1", "tcp:kvm:1"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
