//! `--listen`: the same command for each dialler, in a process of its own.

use std::{env, ffi::OsString, os::unix::ffi::OsStrExt};

use hyperferry_relay::link::{self, Address, Command, Files, Identity};

use crate::{
    args::Tls,
    exit::{self, Error, Result},
    runtime,
};

/// The option that a command for one dialler lacks.
const LISTEN: &str = "--listen";

impl Tls {
    /// Reads the files that were named.
    pub(crate) fn identity(&self) -> Result<Option<Identity>> {
        let (Some(certificate), Some(key), Some(authority)) = (&self.tls_cert, &self.tls_key, &self.tls_ca)
        else {
            return Ok(None);
        };
        let files =
            Files { certificate: certificate.clone(), key: key.clone(), authority: authority.clone() };
        Ok(Some(Identity::read(&files)?))
    }
}

/// Listens until a signal comes.
pub(super) fn run(address: &Address, tls: &Tls) -> Result<u8> {
    let identity = tls.identity()?;
    let program =
        env::current_exe().map_err(|error| Error::Host(format!("finding our own program: {error}")))?;
    let command = Command { program, arguments: without_listen(env::args_os().skip(1)) };
    say!("listening at {address}");
    runtime::run(async { Ok(link::listen(address, identity.as_ref(), command).await?) })?;
    Ok(exit::OK)
}

/// Who sends: as named, or as ssh knows it.
pub(super) fn sender(named: Option<&str>) -> Option<String> {
    let by_ssh = || {
        let connection = env::var("SSH_CONNECTION").ok()?;
        connection.split(' ').next().map(str::to_owned)
    };
    named.map(str::to_owned).or_else(by_ssh)
}

/// The name of a sender on the command line.
pub(super) fn sender_name(name: &str) -> std::result::Result<String, String> {
    if link::is_sender(name) {
        Ok(name.to_owned())
    } else {
        Err("wanted a host's name or address".to_owned())
    }
}

/// Our arguments but for `--listen ADDRESS`; behind `--` they are QEMU's.
fn without_listen(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            kept.push(argument);
            kept.extend(arguments);
            break;
        }
        if argument == LISTEN {
            arguments.next();
        } else if !argument.as_bytes().starts_with(b"--listen=") {
            kept.push(argument);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialler_gets_our_arguments_without_the_listening() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        for line in [
            "receive --listen unix:/x --paused -- --listen y",
            "receive --listen=unix:/x --paused -- --listen y",
        ] {
            assert_eq!(without_listen(words(line).into_iter()), words("receive --paused -- --listen y"));
        }
    }
}
