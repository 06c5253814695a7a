//! A client of QEMU's machine protocol, as much of it as driving a migration takes.
//!
//! Source: `docs/interop/qmp-spec` of QEMU 7.2 and 10.0: one JSON object a line, a greeting, `qmp_capabilities`,
//! then a reply with the command's `id` for each command, and events in between.
//!
//! Commands, replies and events stay JSON values here: QEMU adds events and enum members with each release, and
//! none of them may break a client that did not ask about them.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, Interest},
    net::UnixStream,
    time::{Instant, timeout_at},
};

/// How long a command may take unless [`Client::execute_within`] says otherwise.
///
/// QEMU answers from its main loop, which a migration under emulation holds up for seconds at times.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest line we take; `query-qmp-schema`, the longest answer QEMU has, is 0.3 MiB.
const LINE_LIMIT: usize = 16 << 20;

/// Events kept for a reader who does not come; the oldest go first.
const EVENT_LIMIT: usize = 1024;

/// Why a command or the connection failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// QEMU understood the command and refused it.
    #[error("QEMU refused `{command}`: {desc} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's own words.
        desc: String,
    },
    /// QEMU did not answer in time. A late answer is thrown away, the connection stays usable.
    #[error("QEMU did not answer `{command}` within {} s", waited.as_secs_f32())]
    Timeout {
        /// The command.
        command: String,
        /// How long we waited.
        waited: Duration,
    },
    /// The connection ended.
    #[error("QEMU closed the connection while we waited for {waiting}")]
    Closed {
        /// What we waited for.
        waiting: String,
    },
    /// QEMU sent something that is not the protocol.
    #[error("not a QMP message: {0}")]
    Protocol(String),
    /// The operating system failed us.
    #[error("QMP socket: {0}")]
    Io(#[from] io::Error),
}

/// What a client's methods return.
pub type Result<T> = std::result::Result<T, Error>;

/// QEMU's version, as its greeting states it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub micro: u32,
    /// The packager's words, such as `Debian 1:7.2+dfsg-7`.
    pub package: String,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Something that happened in QEMU.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Event {
    /// `MIGRATION`, `RESUME`, `SHUTDOWN`, …
    #[serde(rename = "event")]
    pub name: String,
    /// What the event carries; null where it carries nothing.
    #[serde(default)]
    pub data: Value,
}

#[derive(Deserialize)]
struct Greeting {
    #[serde(rename = "QMP")]
    qmp: GreetingBody,
}

#[derive(Deserialize)]
struct GreetingBody {
    version: GreetingVersion,
}

#[derive(Deserialize)]
struct GreetingVersion {
    qemu: Numbers,
    #[serde(default)]
    package: String,
}

#[derive(Deserialize)]
struct Numbers {
    major: u32,
    minor: u32,
    micro: u32,
}

/// A connection to one QEMU, ready for commands.
///
/// Every method may be dropped before it is done (a timeout, a `select!`): what was received stays buffered, and the
/// reply to a command that nobody waits for any more is recognised by its id and thrown away.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    received: Vec<u8>,
    /// How much of `received` is known to hold no line end.
    searched: usize,
    events: VecDeque<Event>,
    version: Version,
    last_id: u64,
}

impl Client {
    /// Reads the greeting and negotiates.
    pub async fn handshake(socket: UnixStream) -> Result<Self> {
        let mut client = Self {
            socket,
            received: Vec::new(),
            searched: 0,
            events: VecDeque::new(),
            version: Version::default(),
            last_id: 0,
        };
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        let greeting = timeout_at(deadline, client.greeting())
            .await
            .map_err(|_| Error::Timeout { command: "(greeting)".to_owned(), waited: COMMAND_TIMEOUT })??;
        let greeting: Greeting = serde_json::from_value(greeting)
            .map_err(|error| Error::Protocol(format!("greeting: {error}")))?;
        let GreetingVersion { qemu, package } = greeting.qmp.version;
        client.version = Version { major: qemu.major, minor: qemu.minor, micro: qemu.micro, package };
        client.execute("qmp_capabilities", json!({})).await?;
        Ok(client)
    }

    /// The greeting. What was meant for the client before us may come first: QEMU sends an event to whoever is connected, and
    /// greets him only then (`monitor/qmp.c`, monitor_qmp_event).
    async fn greeting(&mut self) -> Result<Value> {
        loop {
            let message = self.message("the greeting").await?;
            let is_for_another = ["event", "return", "error"].iter().any(|key| message.get(key).is_some());
            if !is_for_another {
                return Ok(message);
            }
            tracing::debug!(%message, "for the monitor's client before us");
        }
    }

    /// What QEMU said of itself.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Executes a command within [`COMMAND_TIMEOUT`].
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_within(COMMAND_TIMEOUT, command, arguments).await
    }

    /// Executes a command: its return value, or QEMU's reason.
    pub async fn execute_within(
        &mut self,
        limit: Duration,
        command: &str,
        arguments: Value,
    ) -> Result<Value> {
        self.run(limit, command, arguments, None).await
    }

    /// Gives QEMU a file descriptor of ours under `name`, for an address `fd:name`.
    pub async fn send_fd(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        self.run(COMMAND_TIMEOUT, "getfd", json!({ "fdname": name }), Some(fd)).await?;
        Ok(())
    }

    /// The next event, in the order they came.
    pub async fn next_event(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let message = self.message("an event").await?;
            self.keep_event(message)?;
        }
    }

    async fn run(
        &mut self,
        limit: Duration,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value> {
        tracing::debug!(command, %arguments, "qmp");
        let exchange = self.exchange(command, arguments, fd);
        timeout_at(Instant::now() + limit, exchange)
            .await
            .map_err(|_| Error::Timeout { command: command.to_owned(), waited: limit })?
    }

    async fn exchange(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value> {
        self.last_id += 1;
        let id = self.last_id;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        self.send(command, line.as_bytes(), fd).await?;
        loop {
            let mut message = self.message(&format!("`{command}`")).await?;
            if message.get("event").is_some() {
                self.keep_event(message)?;
            } else if message.get("id").and_then(Value::as_u64) != Some(id) {
                tracing::debug!(%message, "qmp: late answer to a command that was given up");
            } else if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            } else if let Some(error) = message.get("error") {
                return Err(Error::Refused {
                    command: command.to_owned(),
                    class: text(error, "class"),
                    desc: text(error, "desc"),
                });
            } else {
                return Err(Error::Protocol(message.to_string()));
            }
        }
    }

    /// Sends one line; a descriptor travels with its first byte.
    async fn send(&mut self, command: &str, line: &[u8], mut fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let mut rest = line;
        while !rest.is_empty() {
            self.socket.writable().await?;
            let sent = self.socket.try_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                let fds = fd.as_slice();
                if !fds.is_empty() {
                    control.push(SendAncillaryMessage::ScmRights(fds));
                }
                let bytes = [IoSlice::new(rest)];
                Ok(sendmsg(self.socket.as_fd(), &bytes, &mut control, SendFlags::NOSIGNAL)?)
            });
            match sent {
                Ok(count) => {
                    fd = None;
                    rest = rest.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if hung_up(&error) => {
                    return Err(Error::Closed { waiting: format!("`{command}`") });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next line, as JSON.
    async fn message(&mut self, waiting: &str) -> Result<Value> {
        loop {
            let unseen = self.received.get(self.searched..).unwrap_or_default();
            if let Some(end) = unseen.iter().position(|byte| *byte == b'\n') {
                let rest = self.received.split_off(self.searched + end + 1);
                let line = std::mem::replace(&mut self.received, rest);
                self.searched = 0;
                return serde_json::from_slice(&line).map_err(|error| {
                    Error::Protocol(format!("{error}: {}", String::from_utf8_lossy(&line)))
                });
            }
            self.searched = self.received.len();
            if self.searched > LINE_LIMIT {
                return Err(Error::Protocol(format!("a line of more than {LINE_LIMIT} bytes")));
            }
            match self.socket.read_buf(&mut self.received).await {
                Ok(0) => return Err(Error::Closed { waiting: waiting.to_owned() }),
                Ok(_) => {}
                Err(error) if hung_up(&error) => return Err(Error::Closed { waiting: waiting.to_owned() }),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn keep_event(&mut self, message: Value) -> Result<()> {
        let event: Event =
            serde_json::from_value(message).map_err(|error| Error::Protocol(format!("event: {error}")))?;
        tracing::debug!(event = event.name, data = %event.data, "qmp");
        if self.events.len() == EVENT_LIMIT {
            self.events.pop_front();
        }
        self.events.push_back(event);
        Ok(())
    }
}

fn hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or("?").to_owned()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7},
        "package": "Debian"}, "capabilities": ["oob"]}}"#;

    /// What was for the client before, or for nobody.
    const LATE: &str = r#"{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}}"#;

    /// A QEMU that answers each command by `script`: lines with `ID` replaced.
    fn scripted(script: &'static [&'static [&'static str]]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            for line in [LATE, GREETING] {
                writer.write_all((line.replace('\n', "") + "\n").as_bytes()).await.unwrap();
            }
            let mut commands = BufReader::new(reader).lines();
            for replies in [&[r#"{"return": {}, "id": ID}"#][..]].iter().chain(script) {
                let Some(command) = commands.next_line().await.unwrap() else { return };
                let command: Value = serde_json::from_str(&command).unwrap();
                for reply in *replies {
                    if let Some(pause) = reply.strip_prefix("sleep ") {
                        tokio::time::sleep(Duration::from_millis(pause.parse().unwrap())).await;
                        continue;
                    }
                    let line = reply.replace("ID", &command["id"].to_string()) + "\n";
                    writer.write_all(line.as_bytes()).await.unwrap();
                }
            }
        });
        ours
    }

    #[tokio::test]
    async fn events_between_command_and_reply_are_kept_in_order() {
        let socket = scripted(&[&[
            r#"{"event": "BRAND_NEW", "timestamp": {"seconds": 1, "microseconds": 2}}"#,
            r#"{"event": "RESUME", "data": {"x": 1}}"#,
            r#"{"return": {"status": "brand-new"}, "id": ID}"#,
        ]]);
        let mut client = Client::handshake(socket).await.unwrap();
        assert_eq!(client.version().to_string(), "7.2.22");
        let status = client.execute("query-status", json!({})).await.unwrap();
        assert_eq!(status["status"], "brand-new");
        assert_eq!(client.next_event().await.unwrap().name, "BRAND_NEW");
        assert_eq!(client.next_event().await.unwrap().data["x"], 1);
    }

    #[tokio::test]
    async fn a_refusal_holds_the_command_and_qemus_words() {
        let socket =
            scripted(&[&[r#"{"error": {"class": "GenericError", "desc": "No such thing"}, "id": ID}"#]]);
        let mut client = Client::handshake(socket).await.unwrap();
        let error = client.execute("migrate", json!({ "uri": "x" })).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused `migrate`: No such thing (GenericError)");
    }

    #[tokio::test]
    async fn a_late_reply_does_not_answer_the_next_command() {
        let socket = scripted(&[
            &["sleep 100", r#"{"return": "late", "id": ID}"#],
            &[r#"{"return": "in time", "id": ID}"#],
        ]);
        let mut client = Client::handshake(socket).await.unwrap();
        let error = client.execute_within(Duration::from_millis(20), "slow", json!({})).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU did not answer `slow` within 0.02 s");
        assert_eq!(client.execute("quick", json!({})).await.unwrap(), "in time");
    }

    #[tokio::test]
    async fn a_closed_connection_is_an_error_and_not_a_hang() {
        let mut client = Client::handshake(scripted(&[&[]])).await.unwrap();
        let error = client.execute("quit", json!({})).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU closed the connection while we waited for `quit`");
        assert!(matches!(client.next_event().await, Err(Error::Closed { .. })));
    }

    #[tokio::test]
    async fn a_peer_that_is_no_qemu_is_named_as_such() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"SSH-2.0\n").await.unwrap();
        let error = Client::handshake(ours).await.unwrap_err();
        assert!(error.to_string().starts_with("not a QMP message: "), "{error}");
    }
}
