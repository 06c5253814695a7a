//! The command as such: help, codes for wrong arguments, pipes, completions, the manual page.

mod common;

use std::os::{fd::OwnedFd, unix::net::UnixDatagram};

use common::{command, finish, pipe, plain, run, slim, text};
use hyperferry_translate::refusal;

#[test]
fn help_teaches_and_names_every_refusal_and_exit_code() {
    for arguments in [&["--help"][..], &["convert", "--help"], &["land", "--help"]] {
        let help = run(arguments).expect(0).stdout;
        let joined = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for refusal in refusal::ALL {
            assert!(
                joined.contains(&format!("{} {}", refusal.name, refusal.effect)),
                "{arguments:?} {}",
                refusal.name
            );
        }
        for code in 0..=6 {
            assert!(help.contains(&format!("\n  {code}  ")), "{arguments:?}: exit code {code}");
        }
    }
    assert!(run(&["--help"]).stdout.contains("hyperferry land guest.save"));
}

#[test]
fn arguments_that_make_no_sense_are_code_2() {
    run(&[]).expect(2);
    run(&["fly"]).expect(2);
    run(&["convert", "a", "b"]).expect(2).says("--to");
    run(&["convert", "a", "b", "--to", "vmware"]).expect(2).says("possible values: qemu, xen, kvm, model");
    run(&["convert", "a", "b", "--to", "model", "--allow", "nonsense"])
        .expect(2)
        .says("no refusal is called");
    run(&["land", "a", "--allow", "memory-layout"]).expect(2).says("cannot be allowed");
    run(&["land", "a", "--map-disk", "hda"]).expect(2).says("`=`");
    run(&["land", "a", "--json", "--serial", "-"]).expect(2).says("standard output");
    run(&["land", "a", "--detach", "--seconds", "3"]).expect(2);
}

#[test]
fn an_input_that_is_not_there_is_code_5() {
    for name in ["inspect", "verify", "land", "qemu-args", "libvirt-xml"] {
        run(&[name, "/nowhere/guest.save"])
            .expect(5)
            .says("/nowhere/guest.save: opening it to read: No such file");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_code_5() {
    let stream = slim(&plain());
    pipe(&["convert", "-", "/nowhere/out", "--to", "model"], &stream).expect(5).says("/nowhere/out");
    pipe(&["convert", "-", "/dev/full", "--to", "model"], &stream).expect(5).says("No space left");
}

#[test]
fn a_qemu_that_is_not_there_is_code_5_with_a_remedy() {
    let stream = slim(&plain());
    let mut command = command(&["land", "-", "--accel", "tcg"]);
    finish(command.env("PATH", "/nowhere"), Some(&stream)).expect(5).says("--qemu PATH");
    pipe(&["land", "-", "--accel", "tcg", "--qemu", "/nowhere/q"], &stream)
        .expect(5)
        .says("cannot start /nowhere/q");
}

#[test]
fn words_come_in_whole_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    std::fs::write(&input, slim(&plain())).unwrap();
    for progress in ["plain", "json"] {
        // A datagram for each write.
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut convert = command(&["convert", text(&input), text(&output), "--to", "model", "-v"]);
        convert.args(["--progress", progress]).stderr(OwnedFd::from(theirs));
        assert!(convert.status().unwrap().success());
        drop(convert);
        ours.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        let mut count = 0;
        while let Ok(length @ 1..) = ours.recv(&mut buffer) {
            let written = String::from_utf8_lossy(&buffer[..length]);
            assert!(written.ends_with('\n'), "{progress}: {written}");
            count += 1;
        }
        assert!(count > 2, "{progress}: {count}");
    }
}

#[test]
fn a_reader_that_has_had_enough_is_no_fault() {
    let mut child = command(&["inspect", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    let _ = std::io::Write::write_all(&mut stdin, &slim(&plain()));
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn completions_and_the_manual_page_know_every_command() {
    let page = run(&["man"]).expect(0).stdout;
    let bash = run(&["completions", "bash"]).expect(0).stdout;
    for name in
        ["inspect", "verify", "convert", "qemu-args", "libvirt-xml", "land", "diff", "completions", "man"]
    {
        assert!(page.contains(&format!("HYPERFERRY {}", name.to_uppercase())), "{name} in the manual page");
        assert!(bash.contains(name), "{name} in the completions");
    }
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(!run(&["completions", shell]).expect(0).stdout.is_empty());
    }
}

#[test]
fn the_documents_name_every_command_and_exit_code() {
    let docs = hyperferry_testkit::checkout().join("docs");
    let page = std::fs::read_to_string(docs.join("cli.md")).unwrap();
    for name in
        ["inspect", "verify", "convert", "qemu-args", "libvirt-xml", "land", "diff", "completions", "man"]
    {
        assert!(page.contains(&format!("\n## {name}\n")), "{name} in docs/cli.md");
    }
    let codes = std::fs::read_to_string(docs.join("exit-codes.md")).unwrap();
    for code in 0..=6 {
        assert!(codes.contains(&format!("\n| {code} |")), "{code} in docs/exit-codes.md");
    }
}

#[test]
fn the_log_is_json_where_asked() {
    let folder = tempfile::tempdir().unwrap();
    let stream = common::file(folder.path(), "s", &slim(&plain()));
    let stderr =
        run(&["qemu-args", &stream, "--accel", "tcg", "-v", "--log-format", "json"]).expect(0).stderr;
    let line = stderr.lines().find(|line| line.starts_with('{')).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["fields"]["message"], "opened");
}
