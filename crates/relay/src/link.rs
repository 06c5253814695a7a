//! A link: what ssh does for a receiver on another host, over a socket of our own, UNIX or TLS 1.3.
//!
//! ```text
//! dialler                                                          listener
//! connect, authenticate ------------------------------------------>  starts a command
//! HELLO  {"hyperferry-link":2,"sender":"192.0.2.7","paused":false} LF ->
//! bytes, as they are, to the end ---------------------------------->  its standard input
//!         <---------- frame 1: bytes -------------------------------  its standard output
//!         <---------- frame 2: bytes -------------------------------  its standard error
//!         <---------- frame 3: one byte ----------------------------  its exit code, and nothing behind it
//! ```
//!
//! A frame is a kind (one byte), a length (`u16`, big-endian) and as many bytes. The way up has no frames: that is where memory
//! goes. A connection that ends without frame 3 broke.

mod dial;
mod listen;
mod tls;

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

pub use self::{
    dial::{Address, FarEnd, dial},
    listen::{Command, listen},
    tls::{Files, Identity},
};

/// The protocol's version.
const VERSION: u32 = 2;

/// The longest HELLO that is read.
const HELLO_MAX: usize = 512;

/// The longest name of a sender.
const SENDER_MAX: usize = 128;

/// What a dialler wants of the receiver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who sends the guest, as far as the dialler knows.
    pub sender: Option<String>,
    /// The guest is to be left paused.
    pub paused: bool,
}

/// What a dialler says first.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hello {
    /// The protocol's version.
    #[serde(rename = "hyperferry-link")]
    version: u32,
    /// What it wants. A later version may want more.
    #[serde(flatten)]
    request: Request,
}

impl Hello {
    fn encode(request: &Request) -> io::Result<Vec<u8>> {
        let hello = Self { version: VERSION, request: request.clone() };
        let mut line = serde_json::to_vec(&hello)?;
        line.push(b'\n');
        Ok(line)
    }

    /// Reads one, and not a byte behind it.
    async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Request> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let mut line = Vec::new();
        loop {
            match from.read_u8().await? {
                b'\n' => break,
                byte => line.push(byte),
            }
            if line.len() > HELLO_MAX {
                return Err(invalid("no HELLO: the first line has no end"));
            }
        }
        // The version first: another one may have other fields.
        let hello: serde_json::Value =
            serde_json::from_slice(&line).map_err(|error| invalid(&format!("no HELLO: {error}")))?;
        let version = hello.get("hyperferry-link").and_then(serde_json::Value::as_u64);
        let Some(found) = version else { return Err(invalid("no HELLO: it has no version")) };
        if found != u64::from(VERSION) {
            let wanted = VERSION;
            return Err(invalid(&format!(
                "HELLO: version {found}, wanted {wanted}: use the same hyperferry on both hosts"
            )));
        }
        let Self { request, .. } =
            serde_json::from_value(hello).map_err(|error| invalid(&format!("HELLO: {error}")))?;
        match &request.sender {
            Some(sender) if !is_sender(sender) => Err(invalid("HELLO: the sender's name is none")),
            _ => Ok(request),
        }
    }
}

/// Whether this can be the name or the address of a host: it goes into command lines and journals.
pub fn is_sender(name: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || ".:_-%@".contains(c);
    (1..=SENDER_MAX).contains(&name.len()) && name.chars().all(part) && !name.starts_with('-')
}

/// A piece of what the command at the other end says.
#[derive(Debug, PartialEq, Eq)]
enum Frame {
    /// From its standard output.
    Output(Vec<u8>),
    /// From its standard error.
    Words(Vec<u8>),
    /// Its exit code.
    Exit(u8),
}

impl Frame {
    /// The next frame; none at the end of the connection.
    async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let kind = match from.read_u8().await {
            Ok(kind) => kind,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut body = vec![0; from.read_u16().await?.into()];
        from.read_exact(&mut body).await?;
        match (kind, body.as_slice()) {
            (1, _) => Ok(Some(Self::Output(body))),
            (2, _) => Ok(Some(Self::Words(body))),
            (3, [code]) => Ok(Some(Self::Exit(*code))),
            _ => {
                let why = format!("frame of kind {kind} with {} bytes, wanted kind 1 to 3", body.len());
                Err(io::Error::new(io::ErrorKind::InvalidData, why))
            }
        }
    }

    /// At most 65535 bytes of body.
    fn encode(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
        let mut bytes = vec![kind];
        bytes.extend(length.to_be_bytes());
        bytes.extend(body.iter().take(length.into()));
        bytes
    }

    fn output(bytes: &[u8]) -> Vec<u8> {
        Self::encode(1, bytes)
    }

    fn words(bytes: &[u8]) -> Vec<u8> {
        Self::encode(2, bytes)
    }

    fn exit(code: u8) -> Vec<u8> {
        Self::encode(3, &[code])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_back_as_they_went() {
        let bytes = [Frame::output(b"abc"), Frame::words(b""), Frame::exit(4)].concat();
        let mut from = bytes.as_slice();
        for wanted in [Frame::Output(b"abc".to_vec()), Frame::Words(Vec::new()), Frame::Exit(4)] {
            assert_eq!(Frame::read(&mut from).await.unwrap(), Some(wanted));
        }
        assert_eq!(Frame::read(&mut from).await.unwrap(), None);
        for end in 1..bytes.len() {
            let mut cut = &bytes[..end];
            while let Ok(Some(_)) = Frame::read(&mut cut).await {}
        }
        assert!(Frame::read(&mut &b"\x04\0\0"[..]).await.unwrap_err().to_string().contains("kind 4"));
        assert!(Frame::read(&mut &b"\x03\0\x02ab"[..]).await.is_err());
    }

    #[tokio::test]
    async fn a_hello_is_one_line_and_no_byte_more() {
        let request = Request { sender: Some("192.0.2.7".to_owned()), paused: true };
        let mut line = Hello::encode(&request).unwrap();
        line.extend(b"rest");
        let mut from = line.as_slice();
        assert_eq!((Hello::read(&mut from).await.unwrap(), from), (request, &b"rest"[..]));
        for (line, why) in [
            (&b"SSH-2.0-OpenSSH\n"[..], "no HELLO"),
            (b"{\"hyperferry-link\":1,\"sender\":null}\n", "version 1, wanted 2"),
            (b"{\"sender\":null}\n", "no version"),
            (
                b"{\"hyperferry-link\":2,\"sender\":\"-oProxyCommand=x\",\"paused\":false}\n",
                "the sender's name",
            ),
            (&[b'x'; 1000], "has no end"),
        ] {
            let error = Hello::read(&mut &*line).await.unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
