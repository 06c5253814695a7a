//! QEMU's command line, taken apart far enough to exchange an option.
//!
//! Source: `qemu-options.hx` and `util/keyval.c`, `util/qemu-option.c` of QEMU 7.2 and 10.0. One dash or two; an
//! option takes one value or none; a word that is neither is a disk image. Which options take none is the table
//! below, checked against both programs by a test.

use std::fmt;

use crate::{Error, Result};

/// Options without a value in QEMU 7.2 or 10.0, on x86.
pub const FLAGS: &[&str] = &[
    "S",
    "async-teardown",
    "audio-help",
    "daemonize",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "jitdump",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-hpet",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nographic",
    "old-param",
    "one-insn-per-tcg",
    "only-migratable",
    "perfmap",
    "portrait",
    "preconfig",
    "s",
    "semihosting",
    "singlestep",
    "snapshot",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-domid-restrict",
];

/// One option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opt {
    /// Its name, without dashes.
    pub name: String,
    /// Its value, where it takes one.
    pub value: Option<String>,
}

impl Opt {
    /// An option with a value.
    pub fn new(name: &str, value: impl Into<String>) -> Self {
        Self { name: name.to_owned(), value: Some(value.into()) }
    }

    /// The value, or nothing.
    pub fn text(&self) -> &str {
        self.value.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for Opt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-{}", self.name)?;
        self.value.as_ref().map_or(Ok(()), |value| write!(f, " {value}"))
    }
}

/// A command line as a list of options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine(pub Vec<Opt>);

impl CommandLine {
    /// Takes arguments apart.
    pub fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Vec::new();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                options.push(Opt::new("hda", word));
                continue;
            };
            let value = if FLAGS.contains(&name) {
                None
            } else {
                Some(words.next().ok_or_else(|| Error::option(word, "needs a value"))?.clone())
            };
            options.push(Opt { name: name.to_owned(), value });
        }
        Ok(Self(options))
    }

    /// Puts the arguments together again.
    pub fn into_arguments(self) -> Vec<String> {
        let words = |option: Opt| std::iter::once(format!("-{}", option.name)).chain(option.value);
        self.0.into_iter().flat_map(words).collect()
    }

    /// Whether an option of this name is given.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|option| option.name == name)
    }
}

/// The inside of a value: `key=value,key=value`, a comma in a value written twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Properties(Vec<(String, Option<String>)>);

impl Properties {
    /// Takes a value apart; a first word without `=` is the value of `implied`.
    pub(crate) fn parse(text: &str, implied: &str) -> Self {
        let mut pairs = Vec::new();
        for (index, part) in split(text).into_iter().enumerate() {
            pairs.push(match part.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None if index == 0 && !implied.is_empty() => (implied.to_owned(), Some(part)),
                None => (part, None),
            });
        }
        Self(pairs)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key)?.1.as_deref()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }

    /// Only these keys, in their order.
    pub(crate) fn only(mut self, keys: &[&str]) -> Self {
        self.0.retain(|(key, _)| keys.contains(&key.as_str()));
        self
    }

    /// All but these keys.
    pub(crate) fn without(mut self, keys: &[&str]) -> Self {
        self.0.retain(|(key, _)| !keys.contains(&key.as_str()));
        self
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.push(key, value);
        self
    }

    pub(crate) fn push(&mut self, key: &str, value: impl Into<String>) {
        self.0.push((key.to_owned(), Some(value.into())));
    }

    /// The same pairs after the implied first key's new value, as text.
    pub(crate) fn led_by(mut self, implied: &str, value: &str) -> String {
        self.0.retain(|(key, _)| key != implied);
        if self.is_empty() { value.to_owned() } else { format!("{value},{self}") }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match value {
                Some(value) => write!(f, "{comma}{key}={}", value.replace(',', ",,"))?,
                None => write!(f, "{comma}{key}")?,
            }
        }
        Ok(())
    }
}

/// Splits at single commas and turns double ones into one.
fn split(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            ',' if characters.next_if_eq(&',').is_some() => part.push(','),
            ',' => parts.push(std::mem::take(&mut part)),
            other => part.push(other),
        }
    }
    parts.push(part);
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn values_that_look_like_options_stay_values() {
        let line = CommandLine::parse(&words("-append -s --m 16 -nographic disk.img")).unwrap();
        let shown: Vec<_> = line.0.iter().map(Opt::to_string).collect();
        assert_eq!(shown, ["-append -s", "-m 16", "-nographic", "-hda disk.img"]);
        let error = CommandLine::parse(&words("-m 16 -drive")).unwrap_err();
        assert_eq!(error.to_string(), "QEMU option -drive: needs a value");
    }

    #[test]
    fn commas_in_values_are_written_twice() {
        let text = "user,id=n,hostname=a,,b,restrict";
        let properties = Properties::parse(text, "type");
        assert_eq!(properties.get("type"), Some("user"));
        assert_eq!(properties.get("hostname"), Some("a,b"));
        assert_eq!(properties.to_string(), format!("type={text}"));
    }
}
