//! `hyperferry qemu-args`: the command line of a QEMU that can take the guest.

use hyperferry_translate::qemu::args;

use super::open;
use crate::{
    args::QemuArgs,
    destination::say_what_to_map,
    exit::{self, Result},
    host, output,
};

/// Prints it.
pub(super) fn run(arguments: &QemuArgs) -> Result<u8> {
    let source = open(&arguments.input, arguments.allow.policy())?;
    let options = arguments.destination.options(host::accelerator(arguments.destination.accel));
    let vm = source.outline();
    args::know_devices(vm)?;
    say_what_to_map(vm, &options);
    let program = arguments.destination.qemu.as_ref().map(|program| program.display().to_string());
    let words: Vec<String> = program.into_iter().chain(args::command_line(vm, &options)).collect();
    if arguments.json {
        output::print_json(&words)?;
    } else {
        let quoted: Vec<_> = words.iter().map(|word| quote(word)).collect();
        output::print(&format!("{}\n", quoted.join(" ")))?;
    }
    Ok(exit::OK)
}

/// A word as a POSIX shell reads it back.
pub(crate) fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=,.:/@%+".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_words_back_as_they_were() {
        for (word, quoted) in
            [("-m", "-m"), ("a b", "'a b'"), ("", "''"), ("it's", r"'it'\''s'"), ("$x", "'$x'"), ("~", "'~'")]
        {
            assert_eq!(quote(word), quoted);
        }
    }
}
