//! Which QEMU there is to test with, and what a real one saves.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::print_stdout, reason = "says what is skipped")]

use std::{
    io::Read,
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hyperferry_relay::qemu::{Launch, Process};
use serde_json::json;

/// A small machine whose firmware says what it does, on a port that the test reads as a file.
pub(crate) const MACHINE: &str =
    "-M pc -m 16 -nodefaults -vga none -display none -boot menu=on,splash-time=3000";

/// Each QEMU that is here; says what is skipped if one is not.
pub(crate) fn qemus() -> Vec<PathBuf> {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/lab/qemu");
    let mut found = Vec::new();
    for (version, variable) in [("7.2", "HYPERFERRY_QEMU_72"), ("10.0", "HYPERFERRY_QEMU_100")] {
        let named = std::env::var_os(variable).map(PathBuf::from);
        let in_lab = lab.join(version).join("qemu-system-x86_64");
        match named.or_else(|| in_lab.exists().then_some(in_lab)) {
            Some(program) => found.push(program),
            None => println!("no QEMU {version}: set {variable} or run the lab; trying the one in PATH"),
        }
    }
    if found.is_empty() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let programs = std::env::split_paths(&path).map(|folder| folder.join("qemu-system-x86_64"));
        found.extend(programs.filter(|program| program.exists()).take(1));
    }
    if found.is_empty() {
        println!("SKIPPED: there is no QEMU here");
    }
    found
}

/// The accelerators that work here.
pub(crate) fn accelerators() -> Vec<&'static str> {
    match hyperferry_relay::qemu::kvm_usable() {
        Ok(()) => vec!["tcg", "kvm"],
        Err(why) => {
            println!("SKIPPED under KVM: {why}");
            vec!["tcg"]
        }
    }
}

pub(crate) fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

pub(crate) fn launch(program: &Path, line: &str) -> Launch {
    Launch::new(program, words(line))
}

/// A machine as [`MACHINE`], whose firmware writes into `log`.
pub(crate) fn talking(program: &Path, log: &Path) -> Launch {
    let debug = format!(
        "{MACHINE} -accel tcg -chardev file,id=log,path={} -device isa-debugcon,iobase=0x402,chardev=log",
        log.display()
    );
    launch(program, &debug)
}

/// Waits until a file holds these words.
pub(crate) async fn until_says(log: &Path, wanted: &str) {
    let began = Instant::now();
    loop {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        if text.contains(wanted) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "no {wanted:?} in {text:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Lets a QEMU save what it has, by QEMU's own means, and ends it.
pub(crate) async fn save(mut qemu: Process) -> Vec<u8> {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    qemu.send_fd("saving", "save", theirs.as_fd()).await.unwrap();
    drop(theirs);
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        ours.read_to_end(&mut bytes).unwrap();
        bytes
    });
    qemu.execute("saving", "migrate", json!({ "uri": "fd:save" })).await.unwrap();
    let bytes = tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    qemu.quit().await.unwrap();
    bytes
}

/// A guest in the middle of its firmware, as QEMU saves it.
pub(crate) async fn saved_firmware(program: &Path, folder: &Path) -> Vec<u8> {
    let log = folder.join("before.log");
    let mut qemu = Process::start(&talking(program, &log)).await.unwrap();
    qemu.execute("running", "cont", json!({})).await.unwrap();
    until_says(&log, "Press ESC for boot menu").await;
    assert!(!std::fs::read_to_string(&log).unwrap().contains("No bootable device"));
    save(qemu).await
}

pub(crate) fn alive(pid: u32) -> bool {
    // A process that nobody has waited for yet is not alive any more.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

/// Waits until a process is gone.
pub(crate) async fn until_gone(pid: u32) {
    let began = Instant::now();
    while alive(pid) {
        assert!(began.elapsed() < Duration::from_secs(10), "process {pid} is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
