//! Streams that land in real QEMUs, and streams that do not.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod common;

use std::{
    io::{self, BufRead, Write},
    process::{Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use common::{MACHINE, accelerators, alive, launch, qemus, saved_firmware, talking, until_gone, until_says};
use hyperferry_relay::{
    Error, interrupted,
    landing::{Outcome, Waiting},
    progress::{Phase, Progress},
    template::capture,
};
use rustix::process::{Pid, Signal, getpgid, kill_process};
use serde_json::json;

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn a_saved_guest_goes_on_where_it_was() {
    for program in qemus() {
        let folder = tempfile::tempdir().unwrap();
        let stream = saved_firmware(&program, folder.path()).await;
        let length = stream.len();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&seen);
        let progress = Progress::new(move |update| keep.lock().unwrap().push(update));

        let log = folder.path().join("after.log");
        let waiting = Waiting::start(&talking(&program, &log), progress).await.unwrap();
        let (mut loaded, ()) = waiting.load(move |out| out.write_all(&stream)).await.unwrap();
        let state = loaded.qemu().run_state("test").await.unwrap();
        assert_eq!(state, "paused");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "", "the guest ran before it was told to");
        let mut running = loaded.resume().await.unwrap();
        println!("{:?} from cont to running", running.started_in());
        until_says(&log, "No bootable device").await;
        assert!(!std::fs::read_to_string(&log).unwrap().contains("SeaBIOS (version"), "it began anew");

        let outcome = running.follow(Some(Duration::from_millis(50))).await.unwrap();
        assert_eq!(outcome, Outcome::StillRunning);
        running.qemu().execute("test", "quit", json!({})).await.unwrap();
        let outcome = running.follow(None).await.unwrap();
        let Outcome::Ended { status, reason, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!((status.code(), reason.as_deref()), (Some(0), Some("host-qmp-quit")));

        let seen = seen.lock().unwrap();
        let mut phases: Vec<_> = seen.iter().map(|update| update.phase).collect();
        phases.dedup();
        let wanted = [Phase::Launch, Phase::Stream, Phase::Load, Phase::Resume, Phase::Running, Phase::Done];
        assert_eq!(phases, wanted);
        let sent = seen.iter().rfind(|update| update.phase == Phase::Stream).unwrap();
        assert_eq!(sent.bytes, length as u64);
    }
}

#[tokio::test]
async fn a_template_lands_in_the_machine_it_is_of() {
    for program in qemus() {
        for accelerator in accelerators() {
            let launch = launch(&program, &format!("-M pc -m 32 -accel {accelerator} -display none"));
            let template = capture(&launch, &Progress::silent()).await.unwrap().content;
            let waiting = Waiting::start(&launch, Progress::silent()).await.unwrap();
            let (loaded, ()) = waiting.load(move |out| out.write_all(&template)).await.unwrap();
            loaded.resume().await.unwrap().quit().await.unwrap();
        }
    }
}

#[tokio::test]
async fn why_a_stream_cannot_be_loaded_is_said_in_qemus_words() {
    for program in qemus() {
        let folder = tempfile::tempdir().unwrap();
        let stream = saved_firmware(&program, folder.path()).await;
        let change = |from: &[u8], to: &[u8]| {
            let at = stream.windows(from.len()).position(|bytes| bytes == from).unwrap();
            let mut changed = stream.clone();
            changed[at..at + to.len()].copy_from_slice(to);
            changed
        };
        let half = stream[..stream.len() / 2].to_vec();
        for (stream, words) in [
            (
                b"not a stream at all, but long enough to be read as the head of one".to_vec(),
                "Not a migration stream",
            ),
            (change(b"\x06pc.ram", b"\x06pc.mar"), "Unknown ramblock \"pc.mar\""),
            (change(b"\x0bmc146818rtc", b"\x0bmc146818xxx"), "Unknown savevm section"),
            (half, "load of migration failed"),
            (Vec::new(), "load of migration failed"),
        ] {
            let log = folder.path().join("after.log");
            let waiting = Waiting::start(&talking(&program, &log), Progress::silent()).await.unwrap();
            let pid = waiting.id().unwrap();
            let error = waiting.load(move |out| out.write_all(&stream)).await.unwrap_err();
            println!("{error}");
            let Error::Ended { stderr, .. } = &error else { panic!("{error:?}") };
            assert!(stderr.contains(words), "{stderr}");
            assert!(!alive(pid));
        }
    }
}

#[tokio::test]
async fn a_qemu_that_dies_in_the_middle_is_an_error_whatever_the_producer_waits_for() {
    for program in qemus() {
        let folder = tempfile::tempdir().unwrap();
        let stream = saved_firmware(&program, folder.path()).await;
        // One producer waits for more of its own input, the other keeps writing.
        for waits in [true, false] {
            let launch = launch(&program, &format!("{MACHINE} -accel tcg"));
            let waiting = Waiting::start(&launch, Progress::silent()).await.unwrap();
            let pid = waiting.id().unwrap();
            let half = stream[..stream.len() / 2].to_vec();
            let (never, input) = mpsc::channel::<()>();
            let produce = move |out: &mut dyn Write| {
                out.write_all(&half)?;
                out.flush()?;
                kill(pid, Signal::KILL);
                if waits {
                    let _ = input.recv();
                }
                loop {
                    out.write_all(&half)?;
                }
                #[allow(unreachable_code, reason = "says the type")]
                io::Result::Ok(())
            };
            let began = Instant::now();
            let error = waiting.load(produce).await.unwrap_err();
            assert!(
                error.to_string().starts_with("QEMU ended (signal: 9 (SIGKILL)) while loading"),
                "{error}"
            );
            assert!(began.elapsed() < Duration::from_secs(5));
            drop(never);
        }
    }
}

#[tokio::test]
async fn a_producers_own_error_comes_back_as_it_is() {
    for program in qemus() {
        let launch = launch(&program, &format!("{MACHINE} -accel tcg"));
        let waiting = Waiting::start(&launch, Progress::silent()).await.unwrap();
        let pid = waiting.id().unwrap();
        let produce = |out: &mut dyn Write| {
            out.write_all(b"QEVM")?;
            Err::<(), _>(io::Error::other("no more pages"))
        };
        let error = waiting.load(produce).await.unwrap_err();
        let Error::Stream(cause) = &error else { panic!("{error:?}") };
        assert_eq!(cause.downcast_ref::<io::Error>().unwrap().to_string(), "no more pages");
        until_gone(pid).await;
    }
}

#[tokio::test]
async fn dropped_is_killed_and_released_is_not() {
    for program in qemus() {
        let launch = launch(&program, &format!("{MACHINE} -accel tcg"));
        let waiting = Waiting::start(&launch, Progress::silent()).await.unwrap();
        let pid = waiting.id().unwrap();
        assert!(alive(pid));
        // A terminal's Ctrl-C must not reach it behind our back.
        let raw = Pid::from_raw(pid.try_into().unwrap());
        assert_eq!(getpgid(raw).unwrap(), raw.unwrap());
        drop(waiting);
        until_gone(pid).await;

        let template = capture(&launch, &Progress::silent()).await.unwrap().content;
        let waiting = Waiting::start(&launch, Progress::silent()).await.unwrap();
        let (loaded, ()) = waiting.load(move |out| out.write_all(&template)).await.unwrap();
        let pid = loaded.resume().await.unwrap().release().unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(alive(pid));
        kill(pid, Signal::TERM);
        until_gone(pid).await;
    }
}

#[tokio::test]
async fn options_that_are_ours_to_give_are_refused() {
    let launch = hyperferry_relay::qemu::Launch::new("/nowhere/qemu", ["-incoming", "tcp::1"]);
    let error = Waiting::start(&launch, Progress::silent()).await.unwrap_err().to_string();
    assert!(error.starts_with("QEMU option -incoming: where the stream comes from"), "{error}");
}

#[tokio::test]
async fn a_serial_line_may_go_to_our_standard_output() {
    for program in qemus() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "run_firmware_on_the_console", "--ignored", "--nocapture"])
            .env("PROGRAM", &program)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("SeaBIOS (version"), "{text}");
    }
}

/// A program of its own, whose standard output can be read; run by the test above.
#[tokio::test]
#[ignore = "run by another test"]
async fn run_firmware_on_the_console() {
    let Some(program) = std::env::var_os("PROGRAM") else { return };
    let line =
        format!("{MACHINE} -accel tcg -chardev stdio,id=log -device isa-debugcon,iobase=0x402,chardev=log");
    let launch = launch(program.as_ref(), &line).with_console();
    let template = capture(&launch, &Progress::silent()).await.unwrap().content;
    let waiting = Waiting::start(&launch, Progress::silent()).await.unwrap();
    let (loaded, ()) = waiting.load(move |out| out.write_all(&template)).await.unwrap();
    let mut running = loaded.resume().await.unwrap();
    running.follow(Some(Duration::from_secs(1))).await.unwrap();
}

/// A program of its own, as a user would stop it; run by the test below.
#[tokio::test]
#[ignore = "run by another test"]
async fn land_what_never_comes() {
    let Some(program) = std::env::var_os("PROGRAM") else { return };
    let waiting = Waiting::start(&launch(program.as_ref(), MACHINE), Progress::silent()).await.unwrap();
    eprintln!("waits: {}", waiting.id().unwrap());
    let produce = |out: &mut dyn Write| io::copy(&mut io::stdin(), out);
    tokio::select! {
        landed = waiting.load(produce) => panic!("{landed:?}"),
        signal = interrupted() => panic!("stopped by {}", signal.unwrap()),
    }
}

#[tokio::test]
async fn a_signal_ends_qemu_too() {
    for program in qemus() {
        for (signal, name) in [(Signal::INT, "SIGINT"), (Signal::TERM, "SIGTERM")] {
            let folder = tempfile::tempdir().unwrap();
            let mut us = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "land_what_never_comes", "--ignored", "--nocapture"])
                .env("PROGRAM", &program)
                .env("TMPDIR", folder.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = io::BufReader::new(us.stderr.take().unwrap()).lines().map(Result::unwrap);
            let pid = lines.find_map(|line| line.strip_prefix("waits: ")?.parse().ok()).unwrap();
            assert!(alive(pid));
            // It listens for signals once it waits for the stream.
            tokio::time::sleep(Duration::from_millis(200)).await;
            kill(us.id(), signal);
            assert!(lines.any(|line| line.contains(&format!("stopped by {name}"))));
            assert!(!us.wait().unwrap().success());
            until_gone(pid).await;
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
