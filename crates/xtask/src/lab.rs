//! The lab: real Xen hosts and a real KVM host, all under software emulation on this machine.

mod build;
mod guests;
mod host;
mod live;
mod measure;
mod send;

pub(crate) use guests::witness;
pub(crate) use host::{describe, down};

use crate::sh::step;
use anyhow::Result;
use clap::Subcommand;
use hyperferry_testkit::lab::Host;
use std::fs;

/// What can be done with the lab.
#[derive(Subcommand)]
pub(crate) enum Action {
    /// Build the disk images from Debian packages (about 2 min each; done again only when their recipe in
    /// tests/lab changed).
    Build {
        /// Which hosts: xen, kvm, and the other senders xen-4.14 and xen-4.20; xen and kvm when none is named.
        hosts: Vec<Host>,
    },
    /// Boot the hosts, building them first where needed (about 1 min; 2 cores and 3 GiB each).
    Up {
        /// Which hosts; xen and kvm when none is named.
        hosts: Vec<Host>,
        /// A feature that their processors are to lack, by QEMU's name.
        #[arg(long)]
        without: Vec<String>,
    },
    /// Tell which hosts run and how to reach them.
    Status,
    /// Stop the hosts. What was changed inside them is forgotten.
    Down {
        /// Which hosts; all when none is named.
        hosts: Vec<Host>,
    },
    /// Run the tests of tests/lab against both hosts, booting them where needed.
    Test {
        /// How often tests that failed are run again, on hosts booted anew.
        #[arg(long, default_value_t = 0)]
        again: u32,
        /// Names of tests, and other arguments of the test program.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Move a guest live from the Xen host to the KVM host, again and again, booting them where needed. One line a move;
    /// fails if one went wrong.
    Move(live::Moves),
    /// Move a guest live from QEMU on the KVM host to the Xen host by `hyperferry send`, booting them where needed. One line a
    /// move; fails if one went wrong.
    Send(send::Options),
    /// Move a Linux guest from Xen to Xen, from Xen to QEMU and from QEMU to QEMU, and print what each costs: silence on
    /// the serial port and on pings, total time, bytes, rounds (about 5 min a round).
    Measure(measure::Options),
    /// Run a command in a host: `lab ssh xen -- xl list`. Without a command, a shell.
    Ssh {
        /// The host.
        host: Host,
        /// The command and its arguments.
        #[arg(last = true)]
        command: Vec<String>,
    },
}

/// Does it.
pub(crate) fn act(action: Action) -> Result<()> {
    match action {
        Action::Build { hosts } => named(hosts, &Host::PAIR).into_iter().try_for_each(build::provide),
        Action::Up { hosts, without } => up_without(&named(hosts, &Host::PAIR), &without),
        Action::Status => {
            for host in Host::EVERY {
                step(host::status(host));
            }
            Ok(())
        }
        Action::Down { hosts } => named(hosts, &Host::EVERY).into_iter().try_for_each(down),
        Action::Test { arguments, again } => crate::ci::lab_test(&arguments, again),
        Action::Move(moves) => live::run(&moves),
        Action::Send(options) => send::run(&options),
        Action::Measure(options) => measure::run(&options),
        Action::Ssh { host, command } => {
            let status = host.ssh(&command.join(" ")).status()?;
            std::process::exit(status.code().unwrap_or(1));
        }
    }
}

/// Boots `hosts` side by side; those that run already are left alone.
pub(crate) fn up(hosts: &[Host]) -> Result<()> {
    up_without(hosts, &[])
}

fn up_without(hosts: &[Host], features: &[String]) -> Result<()> {
    let mut booted = Vec::new();
    for host in hosts {
        build::provide(*host)?;
        if host::start(*host, features)? {
            booted.push(*host);
        }
    }
    booted.into_iter().try_for_each(|host| {
        host::wait(host)?;
        provide_guests(host)
    })
}

/// Puts the guests where every host has them: `/guest/{vmlinuz,initrd.gz,witness.bzimage}`.
fn provide_guests(host: Host) -> Result<()> {
    let linux = guests::linux()?;
    for name in ["vmlinuz", "initrd.gz"] {
        host.send(&fs::read(linux.join(name))?, &format!("/guest/{name}"))?;
    }
    host.send(&guests::witness()?, "/guest/witness.bzimage")
}

fn named(hosts: Vec<Host>, otherwise: &[Host]) -> Vec<Host> {
    if hosts.is_empty() { otherwise.to_vec() } else { hosts }
}
