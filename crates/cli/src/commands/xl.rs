//! The name `xl`: what `xl migrate GUEST HOST` calls on the host that it names. That is the destination, or a gateway in front
//! of it; its file of options says which (`docs/live-move.md`).

use std::{fs, io, path::Path};

use clap::Parser;

use crate::{
    args::Cli,
    exit::{Error, Result},
};

/// Where a destination and a gateway find the options that their caller cannot give.
const FILES: [(&str, &str); 2] =
    [("receive", "/etc/hyperferry/receive.toml"), ("relay", "/etc/hyperferry/relay.toml")];

/// `xl [-v…] [-t] [-T] migrate-receive [-e] [-d] [-p]`, as the sender of an `xl migrate` calls it.
#[derive(Debug, PartialEq, Eq)]
struct Xl {
    verbose: usize,
    paused: bool,
}

impl Xl {
    fn parse(words: &[String]) -> std::result::Result<Self, String> {
        let mut xl = Self { verbose: 0, paused: false };
        let mut words = words.iter();
        let command = loop {
            match words.next().map(String::as_str) {
                // Progress for a terminal and times in front of messages: xl's own words have them, ours do not.
                Some("-t" | "-T" | "-tT" | "-Tt") => {}
                Some(word) if word.strip_prefix('-').is_some_and(|rest| only(rest, 'v')) => {
                    xl.verbose += word.len() - 1;
                }
                other => break other,
            }
        };
        if command != Some("migrate-receive") {
            let found = command.unwrap_or("nothing");
            return Err(format!(
                "this xl belongs to hyperferry and knows only `migrate-receive`, not `{found}`; there is no Xen here"
            ));
        }
        for word in words {
            match word.as_str() {
                // -e: do not wait for the domain's end; we never do.
                "-e" => {}
                "-d" => xl.verbose += 1,
                "-p" => xl.paused = true,
                "-r" | "--colo" | "--userspace-colo-proxy" => {
                    return Err(format!("{word}: checkpointed streams (Remus, COLO) cannot move to QEMU"));
                }
                other => return Err(format!("xl migrate-receive: {other} is unknown here")),
            }
        }
        Ok(xl)
    }

    /// The command line that this stands for, with the options of the configuration.
    fn arguments(&self, command: &str, config: &str) -> std::result::Result<Vec<String>, String> {
        let mut arguments = vec!["hyperferry".to_owned(), command.to_owned()];
        arguments.extend(vec!["-v".to_owned(); self.verbose]);
        if self.paused {
            arguments.push("--paused".to_owned());
        }
        let mut last = Vec::new();
        let table: toml::Table = config.parse().map_err(|error: toml::de::Error| error.to_string())?;
        for (key, value) in table {
            let mut option = |value: String| arguments.push(format!("--{key}={value}"));
            match value {
                toml::Value::Array(values) if key == "qemu-arguments" => {
                    last.extend(values.iter().map(text).collect::<std::result::Result<Vec<_>, _>>()?);
                }
                toml::Value::Array(values) => {
                    for value in &values {
                        option(text(value)?);
                    }
                }
                toml::Value::Table(pairs) => {
                    for (from, to) in &pairs {
                        option(format!("{from}={}", text(to)?));
                    }
                }
                value => option(text(&value)?),
            }
        }
        if !last.is_empty() {
            arguments.push("--".to_owned());
            arguments.extend(last);
        }
        Ok(arguments)
    }
}

fn only(text: &str, letter: char) -> bool {
    !text.is_empty() && text.chars().all(|c| c == letter)
}

fn text(value: &toml::Value) -> std::result::Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("wanted a string, found {value}"))
}

/// What was asked for, if it was asked for under the name `xl`.
pub(crate) fn as_xl(words: impl IntoIterator<Item = std::ffi::OsString>) -> Option<Result<Cli>> {
    let mut words = words.into_iter();
    let name = words.next()?;
    if Path::new(&name).file_name() != Some("xl".as_ref()) {
        return None;
    }
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    Some(from_xl(&words))
}

fn from_xl(words: &[String]) -> Result<Cli> {
    let xl = Xl::parse(words).map_err(Error::Usage)?;
    let mut found = Vec::new();
    for (command, file) in FILES {
        match fs::read_to_string(file) {
            Ok(config) => found.push((command, file, config)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::Host(format!("{file}: {error}"))),
        }
    }
    let (command, file, config) = match found.as_slice() {
        [] => ("receive", FILES[0].1, ""),
        [(command, file, config)] => (*command, *file, config.as_str()),
        _ => {
            let [(_, receive), (_, relay)] = FILES;
            let why = format!("{receive} makes this host a destination and {relay} a gateway: take one away");
            return Err(Error::Host(why));
        }
    };
    let arguments = xl.arguments(command, config).map_err(|why| Error::Host(format!("{file}: {why}")))?;
    Cli::try_parse_from(arguments).map_err(|error| Error::Host(format!("{file}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Command;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn xl_is_answered_as_its_senders_call_it() {
        let parse = |line: &str| Xl::parse(&words(line));
        assert_eq!(parse("migrate-receive"), Ok(Xl { verbose: 0, paused: false }));
        assert_eq!(parse("-t -T -vv migrate-receive -e -d -p"), Ok(Xl { verbose: 3, paused: true }));
        assert!(parse("list").unwrap_err().contains("`list`"));
        assert!(parse("migrate-receive -r").unwrap_err().contains("Remus"));
        assert!(parse("migrate-receive --nonsense").unwrap_err().contains("--nonsense"));
    }

    #[test]
    fn keys_of_the_configuration_are_options_of_receive() {
        let config = r#"
            qemu = "/opt/qemu"
            serial = "/var/log/{name}.log"
            allow = ["hpet", "intx"]
            qemu-arguments = ["-monitor", "none"]
            [map-disk]
            hda = "/dev/vg/disk"
        "#;
        let cli = Cli::try_parse_from(Xl { verbose: 1, paused: true }.arguments("receive", config).unwrap())
            .unwrap();
        let Command::Receive(receive) = cli.command else { panic!("not receive") };
        assert_eq!(receive.destination.qemu.as_deref(), Some(Path::new("/opt/qemu")));
        assert_eq!(receive.destination.map_disk, [("hda".to_owned(), "/dev/vg/disk".to_owned())]);
        assert_eq!(receive.loss.allow.allow, ["hpet", "intx"]);
        assert_eq!(receive.extra, ["-monitor", "none"]);
        assert!(receive.paused && cli.words.verbose == 1);
        let unknown = Xl { verbose: 0, paused: false }.arguments("receive", "colour = \"red\"").unwrap();
        assert!(Cli::try_parse_from(unknown).unwrap_err().to_string().contains("--colour"));
        assert!(
            Xl { verbose: 0, paused: false }
                .arguments("receive", "qemu = 3")
                .unwrap_err()
                .contains("found 3")
        );
    }

    #[test]
    fn a_gateway_answers_to_the_name_too() {
        let config = "to = \"tls:kvm:7000\"\ntls-cert = \"c\"\ntls-key = \"k\"\ntls-ca = \"a\"\n";
        let arguments = Xl { verbose: 0, paused: true }.arguments("relay", config).unwrap();
        let Command::Relay(relay) = Cli::try_parse_from(arguments).unwrap().command else {
            panic!("not relay")
        };
        assert!(relay.paused && relay.to.to_string() == "tls:kvm:7000");
    }
}
