//! The two-host lab: a real Xen host and a real KVM host, both under software emulation on this machine.

mod build;
mod host;

pub(crate) use host::Host;

use crate::sh::step;
use anyhow::Result;
use clap::Subcommand;

/// What can be done with the lab.
#[derive(Subcommand)]
pub(crate) enum Action {
    /// Build the disk images from Debian packages (about 3 min; done again only when tests/lab changed).
    Build,
    /// Boot the hosts, building them first where needed (about 1 min; 2 cores and 3 GiB each).
    Up {
        /// Which hosts; both when none is named.
        hosts: Vec<Host>,
    },
    /// Tell which hosts run and how to reach them.
    Status,
    /// Stop the hosts. What was changed inside them is forgotten.
    Down {
        /// Which hosts; both when none is named.
        hosts: Vec<Host>,
    },
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
        Action::Build => Host::ALL.into_iter().try_for_each(build::provide),
        Action::Up { hosts } => up(&named(hosts)),
        Action::Status => {
            for host in Host::ALL {
                step(host.status());
            }
            Ok(())
        }
        Action::Down { hosts } => named(hosts).into_iter().try_for_each(Host::down),
        Action::Ssh { host, command } => {
            let status = host.ssh(&command.join(" ")).status()?;
            std::process::exit(status.code().unwrap_or(1));
        }
    }
}

/// Boots `hosts` side by side; those that run already are left alone.
pub(crate) fn up(hosts: &[Host]) -> Result<()> {
    for host in hosts {
        build::provide(*host)?;
        host.start()?;
    }
    hosts.iter().try_for_each(|host| host.wait())
}

fn named(hosts: Vec<Host>) -> Vec<Host> {
    if hosts.is_empty() { Host::ALL.to_vec() } else { hosts }
}
