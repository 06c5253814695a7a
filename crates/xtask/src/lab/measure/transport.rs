//! What carries a stream from host to host, through this machine.

use anyhow::Result;
use clap::ValueEnum;
use hyperferry_testkit::lab::{
    Host,
    network::{MACHINE, forward, ssh_to},
};

use super::DIR;

/// Where a host listens, inside.
const PORT: u16 = 7100;

/// What carries it.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Transport {
    /// A cipher costs an emulated processor much.
    Ssh,
    /// As bare as QEMU's own migration.
    Tcp,
}

/// The way to a command on a host.
pub(super) struct Lead {
    /// What brings a stream there; words without quotes.
    pub(super) command: String,
    /// Where what it says is, unless that comes back by itself.
    words: Option<(Host, String)>,
}

impl Lead {
    /// For what needs none.
    pub(super) fn nowhere() -> Self {
        Self { command: String::new(), words: None }
    }

    /// What the other end has said that did not come back by itself.
    pub(super) fn said(&self) -> Result<Vec<(f64, String)>> {
        let Some((host, file)) = &self.words else { return Ok(Vec::new()) };
        let said = host.run(&format!("cat {file}"))?;
        Ok(said.lines().map(|line| (super::clock::now(), line.to_owned())).collect())
    }
}

impl Transport {
    /// Opens a way to a command there, for one stream.
    pub(super) fn lead_to(self, host: Host, receive: &str) -> Result<Lead> {
        match self {
            Self::Ssh => Ok(Lead { command: format!("{} {MACHINE} {receive}", ssh_to(host)), words: None }),
            Self::Tcp => {
                let port = forward(host, PORT)?;
                let (script, words) = (format!("{DIR}/receive"), format!("{DIR}/received"));
                host.install(format!("#!/bin/sh\nexec {receive}\n").as_bytes(), &script)?;
                // It listens, by /proc/net/tcp, in the state 0A.
                host.run(&format!(
                    "setsid socat -b 131072 TCP-LISTEN:{PORT},reuseaddr EXEC:{script} >{words} 2>&1 </dev/null &
                     for i in $(seq 50); do
                       grep -q ':{PORT:04X} 00000000:0000 0A' /proc/net/tcp && exit 0
                       sleep 0.2
                     done
                     exit 1"
                ))?;
                let command = format!("socat -b 131072 - TCP:{MACHINE}:{port}");
                Ok(Lead { command, words: Some((host, words)) })
            }
        }
    }
}
