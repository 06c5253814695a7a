//! `hyperferry resolve` on the KVM host, which asks the Xen host; and what it advises, carried out.

use std::{thread::sleep, time::Duration};

use anyhow::Result;
use serde::Deserialize;

use super::hosts::until;
use crate::lab::{
    Host,
    network::{MACHINE, ssh_to},
};

/// How often it is asked: an emulated host may take longer for an ssh than `resolve` waits.
const ATTEMPTS: u32 = 6;
/// How long a receiver may go on reading, each time it is asked.
const DRAINS: Duration = Duration::from_secs(3);
/// How long what it advises may fail: a copy that is about to vanish cannot be destroyed.
const SETTLES: Duration = Duration::from_secs(30);

/// What it writes with `--json`, as much as we need.
#[derive(Deserialize)]
struct Document {
    guests: Vec<Guest>,
}

#[derive(Deserialize)]
struct Guest {
    there: Option<There>,
    commands: Vec<Command>,
}

#[derive(Deserialize)]
struct There {
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Command {
    Shell { shell: String },
    Qmp { qmp: String, execute: String },
}

impl Command {
    /// For a shell on the KVM host.
    fn line(self) -> String {
        match self {
            Self::Shell { shell } => shell,
            Self::Qmp { qmp, execute } => {
                let words = format!(r#"{{"execute":"qmp_capabilities"}}{{"execute":"{execute}"}}"#);
                format!("printf '%s' '{words}' | socat -t 2 - unix-connect:{qmp}")
            }
        }
    }
}

/// What it says once the Xen host has answered, and the receiver is through with what was on its way when its sender
/// died: behind a gateway that can be megabytes.
pub(in crate::lab) fn resolve() -> Result<String> {
    let mut said = String::new();
    for _ in 0..ATTEMPTS {
        said = run("2>&1; true")?;
        if said.contains("under way: wait for it") {
            sleep(DRAINS);
        } else if !said.contains("could not be asked") {
            break;
        }
    }
    Ok(said)
}

/// Does what it advises, command by command, on the KVM host; gives what was done.
pub(in crate::lab) fn carry_out() -> Result<Vec<String>> {
    let mut done = Vec::new();
    until(SETTLES, || {
        for command in commands()? {
            let line = command.line();
            if Host::Kvm.run(&line).is_err() {
                return Ok(false);
            }
            done.push(line);
        }
        Ok(true)
    })?;
    Ok(done)
}

/// The commands for every guest of the journal.
fn commands() -> Result<Vec<Command>> {
    let mut guests = Vec::new();
    for _ in 0..ATTEMPTS {
        guests = serde_json::from_str::<Document>(&run("--json 2>/dev/null; true")?)?.guests;
        if guests.iter().all(|guest| guest.there.as_ref().is_none_or(|there| there.error.is_none())) {
            break;
        }
    }
    Ok(guests.into_iter().flat_map(|guest| guest.commands).collect())
}

fn run(more: &str) -> Result<String> {
    let peer = format!("{} {MACHINE}", ssh_to(Host::Xen));
    Host::Kvm.run(&format!("/root/live/hyperferry resolve /root/live/journal --peer '{peer}' {more}"))
}
