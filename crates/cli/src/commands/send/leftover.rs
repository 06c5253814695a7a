//! The copy that an `xl migrate-receive` leaves.
//!
//! Source: Xen `tools/xl/xl_migrate.c`, `migrate_receive` (4.14 to 4.23). A guest that comes in is called
//! `NAME--incoming`, and gets its own name once permission has come and before it runs. An `xl` that is killed leaves it
//! paused; so does one whose connection breaks while it waits for permission, for it cannot report and ends there.

use std::time::Duration;

use tokio::{process::Command, time::timeout};

use crate::exit::Error;

/// How long the destination may take to end the copy; the guest runs here meanwhile.
const PATIENCE: Duration = Duration::from_secs(20);
/// ssh's own exit code, where it did not come to run anything.
pub(in crate::commands) const SSH_FAILED: i32 = 255;
/// What a receiver appends to the name of a guest that it has no permission to run.
pub(in crate::commands) const INCOMING: &str = "--incoming";

/// What the destination calls a guest that has never run there.
pub(in crate::commands) fn name_of(guest: &str) -> String {
    format!("{guest}{INCOMING}")
}

/// The part of a command that reaches the host on which xl is.
pub(in crate::commands) fn before_xl(command: &[String]) -> Option<&[String]> {
    command.get(..command.iter().rposition(|word| word == "xl")?)
}

/// A guest's copy at a destination, and the command that ends it; without a command it is none of an `xl`.
#[derive(Debug)]
pub(super) struct Copy {
    name: String,
    end: Option<Vec<String>>,
}

impl Copy {
    /// At the host that a command reaches.
    pub(super) fn of(command: &[String], guest: &str) -> Self {
        let name = name_of(guest);
        let words = ["xl", "destroy", &name].map(str::to_owned);
        let end = before_xl(command).map(|reach| [reach, &words].concat());
        Self { name, end }
    }

    /// Ends what a destination leaves that ended before its time. One that was told to run the guest is left alone.
    pub(super) async fn end_if_left(&self, error: Error) -> Error {
        let ended = matches!(&error, Error::Relay(hyperferry_relay::Error::Destination(_)));
        if let Some([program, arguments @ ..]) = self.end.as_deref().filter(|_| ended) {
            let mut command = Command::new(program);
            let output = command.args(arguments).kill_on_drop(true).output();
            match timeout(PATIENCE, output).await {
                Ok(Ok(output)) if output.status.success() => {
                    say!("the destination had left its copy, {}, which never ran: it is gone", self.name);
                }
                // It was gone already.
                Ok(Ok(output)) if output.status.code() != Some(SSH_FAILED) => {}
                _ => {
                    say!("note: a copy that never ran may be left there: {} {}", program, arguments.join(" "))
                }
            }
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_xl_leaves_a_copy_and_it_is_ended_where_it_is() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let copy = Copy::of(&words("ssh -p 22 xen xl migrate-receive -p"), "web");
        assert_eq!(copy.end.unwrap().join(" "), "ssh -p 22 xen xl destroy web--incoming");
        assert!(Copy::of(&words("ssh kvm2 hyperferry receive"), "web").end.is_none());
        let here = Copy::of(&words("xl migrate-receive"), "web");
        assert_eq!(here.end.unwrap().join(" "), "xl destroy web--incoming");
    }
}
