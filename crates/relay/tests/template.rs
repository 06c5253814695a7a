//! Templates from real QEMUs.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use common::{accelerators, launch, qemus, save};
use hyperferry_relay::{
    Error,
    progress::Progress,
    qemu::{CommandLine, FLAGS, Process},
    template::{self, capture},
};
use rustix::process::{Pid, Signal, kill_process};

#[tokio::test]
async fn a_template_is_a_whole_stream_of_the_machine_asked_for() {
    for program in qemus() {
        for accelerator in accelerators() {
            let launch = launch(&program, &format!("-M pc -m 16 -accel {accelerator} -smp 2"));
            let template = capture(&launch, &Progress::silent()).await.unwrap();
            let bytes = &template.content;
            println!("{} {accelerator}: {} bytes", template.version, bytes.len());
            assert_eq!(bytes[..8], *b"QEVM\0\0\0\x03");
            let machine = format!("pc-i440fx-{}.{}", template.version.major, template.version.minor);
            assert!(bytes[13..].starts_with(machine.as_bytes()), "{:?}", &bytes[8..40]);
            // EOF, then the description of the machine to the end.
            let from = (0..bytes.len() - 6).rfind(|at| {
                let length = u32::try_from(bytes.len() - at - 6).unwrap().to_be_bytes();
                bytes[*at..*at + 2] == [0, 6] && bytes[at + 2..at + 6] == length
            });
            let from = from.unwrap();
            let json: serde_json::Value = serde_json::from_slice(&bytes[from + 6..]).unwrap();
            assert!(json["devices"].as_array().unwrap().len() > 20);
        }
    }
}

/// Which bytes of the device state differ; where the clock has moved on, some do.
///
/// The list of memory blocks, at the beginning, must be the same. Pages are sent in as many sections as time allows.
fn differences(one: &[u8], other: &[u8]) -> Vec<usize> {
    assert_eq!(one[..256], other[..256]);
    let devices = |stream: &[u8]| {
        let first = stream.windows(10).position(|bytes| bytes == b"\x05timer\0\0\0\0").unwrap();
        stream[first..].to_vec()
    };
    let (one, other) = (devices(one), devices(other));
    assert_eq!(one.len(), other.len());
    (0..one.len()).filter(|index| one[*index] != other[*index]).collect()
}

#[tokio::test]
async fn a_template_takes_nothing_that_a_running_qemu_holds() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("disk"), vec![0; 4 << 20]).unwrap();
    let line = format!(
        "-M pc,memory-backend=m -m 16 -accel tcg -display none -monitor none \
         -object memory-backend-file,id=m,size=16M,mem-path={},share=on \
         -drive file={},format=raw,if=ide,index=0,media=disk \
         -serial file:{} -chardev socket,id=c,path={},server=on,wait=off -device isa-serial,chardev=c \
         -netdev socket,id=n,udp=127.0.0.1:9,localaddr=127.0.0.1:0 -device e1000,netdev=n",
        at("memory"),
        at("disk"),
        at("serial"),
        at("socket"),
    );
    for program in qemus() {
        let launch = launch(&program, &line);
        // This one holds the lock on the disk, the socket and the memory file.
        let holder = Process::start(&launch).await.unwrap();
        let error = Process::start(&launch).await.unwrap_err().to_string();
        assert!(error.contains("Failed to get \"write\" lock"), "{error}");
        let template = capture(&launch, &Progress::silent()).await.unwrap().content;
        let differences = differences(&save(holder).await, &template);
        assert!(differences.len() < 64, "{differences:?}");
        assert_eq!(std::fs::metadata(at("serial")).unwrap().len(), 0);
    }
}

#[tokio::test]
async fn a_template_says_what_the_machine_with_its_backends_would() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, size: usize| {
        let path = folder.path().join(name).display().to_string();
        std::fs::write(&path, vec![0; size]).unwrap();
        path
    };
    let (disk, disc, floppy) = (file("disk", 8 << 20), file("disc", 2 << 20), file("floppy", 1_474_560));
    let flash = file("flash", 256 << 10);
    let lines = [
        format!("-hda {disk} -cdrom {disc} -fda {floppy} -nographic"),
        format!(
            "{disk} -nodefaults -display none -vga std -nic socket,udp=127.0.0.1:9,localaddr=127.0.0.1:0,model=rtl8139"
        ),
        format!("-nodefaults -drive if=pflash,format=raw,file={flash},readonly=on -display none -net none"),
        format!(
            "-nodefaults -display none -blockdev raw,node-name=d,file.driver=file,file.filename={disk} \
             -device virtio-blk-pci,drive=d -device ich9-ahci,id=a -device ide-cd,bus=a.0 \
             -drive if=floppy,format=raw,file={floppy} -drive if=ide,media=cdrom"
        ),
        "-nodefaults -display none -audiodev wav,id=a,path=/dev/null -device AC97,audiodev=a -usb \
         -device usb-tablet -chardev pty,id=c -device virtio-serial -device virtconsole,chardev=c"
            .to_owned(),
        "-nodefaults -display none -serial pty -parallel null -overcommit mem-lock=off,cpu-pm=off".to_owned(),
        "-display none -net socket,udp=127.0.0.1:9,localaddr=127.0.0.1:0".to_owned(),
    ];
    for program in qemus() {
        for line in &lines {
            let launch = launch(&program, &format!("-M pc -m 16 -accel tcg {line}"));
            let plain = save(Process::start(&launch).await.unwrap()).await;
            let template = capture(&launch, &Progress::silent()).await.unwrap().content;
            let differences = differences(&plain, &template);
            assert!(differences.len() < 64, "{line}: {differences:?}");
        }
    }
}

#[tokio::test]
async fn why_qemu_cannot_write_one_is_said_in_its_own_words() {
    for program in qemus() {
        let error = capture(&launch(&program, "-M nonsense"), &Progress::silent()).await.unwrap_err();
        println!("{error}");
        let Error::Ended { stderr, .. } = &error else { panic!("{error:?}") };
        assert!(stderr.contains("unsupported machine type"), "{stderr}");

        // A device that blocks migration.
        let blocked = "-M pc -m 16 -accel tcg -device nvme,serial=x";
        let error = capture(&launch(&program, blocked), &Progress::silent()).await.unwrap_err();
        println!("{error}");
        assert!(error.to_string().starts_with("QEMU refused `migrate`: State blocked by"), "{error}");
    }
}

#[tokio::test]
async fn a_reader_may_stop_early_or_fail() {
    for program in qemus() {
        let launch = launch(&program, "-M pc -m 64 -accel tcg");
        let read_some = |stream: &mut dyn std::io::Read| {
            let mut magic = [0; 4];
            stream.read_exact(&mut magic).map(|()| magic)
        };
        let template = template::capture_with(&launch, &Progress::silent(), read_some).await.unwrap();
        assert_eq!(template.content, *b"QEVM");
        let fail = |_: &mut dyn std::io::Read| Err::<(), _>("not for me");
        let error = template::capture_with(&launch, &Progress::silent(), fail).await.unwrap_err();
        assert_eq!(error.to_string(), "not for me");
    }
}

#[tokio::test]
async fn a_template_that_qemu_did_not_finish_is_none() {
    for program in qemus() {
        let name = format!("unfinished-{}", std::process::id());
        let launch = launch(&program, &format!("-M pc -m 64 -accel tcg -name {name}"));
        let read = move |stream: &mut dyn std::io::Read| {
            let mut bytes = vec![0; 64];
            stream.read_exact(&mut bytes)?;
            kill_process(running(&name), Signal::KILL)?;
            stream.read_to_end(&mut bytes)
        };
        let error = template::capture_with(&launch, &Progress::silent(), read).await.unwrap_err();
        assert!(error.to_string().starts_with("QEMU ended (signal: 9 (SIGKILL)) while writing"), "{error}");
    }
}

/// The process with this name on its command line.
fn running(name: &str) -> Pid {
    let mut numbers = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let number = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(format!("/proc/{number}/cmdline")).ok()?;
        line.split(|byte| *byte == 0).any(|word| word == name.as_bytes()).then_some(number)
    });
    Pid::from_raw(numbers.next().unwrap()).unwrap()
}

/// The table of options without a value is QEMU's own: it is asked for each option it lists.
#[tokio::test]
async fn which_options_take_a_value() {
    let run = |program: &std::path::Path, words: &[&str]| {
        let output = std::process::Command::new(program).args(words).output().unwrap();
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    for program in qemus() {
        let (help, _) = run(&program, &["-help"]);
        let mut names: Vec<_> = help
            .lines()
            .flat_map(|line| line.split([' ', '/']).take_while(|word| word.starts_with('-') || *word == "or"))
            .map(|word| word.trim_start_matches('-'))
            .filter(|name| !name.is_empty() && *name != "or")
            .collect();
        names.extend(FLAGS);
        names.sort_unstable();
        names.dedup();
        assert!(names.len() > 100, "{names:?}");
        for name in names {
            if ["h", "help", "version", "audio-help"].contains(&name) {
                continue;
            }
            let option = format!("-{name}");
            // QEMU looks at all options before it does anything.
            let (words, wanted) = if FLAGS.contains(&name) {
                (vec![&*option, "-no-such-option"], "-no-such-option: invalid option".to_owned())
            } else {
                (vec!["-M", "no-such-machine", &*option], format!("{option}: requires an argument"))
            };
            let (_, complaint) = run(&program, &words);
            let unknown_here = complaint.contains(&format!("{option}: invalid option"));
            assert!(unknown_here || complaint.contains(&wanted), "{words:?}: {complaint}");
        }
        assert!(CommandLine::parse(&common::words("-S -m 16")).is_ok());
    }
}
