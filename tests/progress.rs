//! What a move tells about itself while it goes on: lines of JSON, plain lines, metrics.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may, their helpers too"
)]

mod common;
#[path = "common/sender.rs"]
mod sender;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    path::Path,
};

use common::{command, fixture, qemus, run, slim, text};
use sender::{Cleanup, Sender, kill, qemus_of, wait_for};
use serde_json::Value;

/// A receiver with these options, and the folder it may use.
fn receive(qemu: &Path, more: &[&str]) -> (Sender, tempfile::TempDir, Cleanup) {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let (lines, metrics) = (folder.path().join("{name}.ndjson"), folder.path().join("{name}.prom"));
    let options = ["--accel", "tcg", "--allow", "tsc-frequency,lapic-timer", "--journal", text(&journal)];
    let files = ["--progress-file", text(&lines), "--metrics-file", text(&metrics)];
    let arguments = [&["receive", "--qemu", text(qemu)], &options[..], &files, more].concat();
    let sender = Sender::of(&mut command(&arguments), folder.path());
    (sender, folder, Cleanup(journal))
}

fn documents(lines: &str) -> Vec<Value> {
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

/// The phases of these documents, each once.
fn phases(documents: &[Value]) -> Vec<&str> {
    let mut phases: Vec<_> = documents.iter().filter_map(|document| document["phase"].as_str()).collect();
    phases.dedup();
    phases
}

/// Samples of Prometheus' text format, by name and labels; a line that is none fails.
fn metrics(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut typed = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge"].contains(&kind), "{line}");
            typed.push(name.to_owned());
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(typed.iter().any(|typed| name.starts_with(&format!("{typed}{{"))), "{line}");
            samples.insert(name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}")));
        }
    }
    samples
}

#[test]
fn a_live_move_counts_its_rounds_its_pages_and_its_bytes() {
    for (qemu, name) in qemus().iter().zip(["xen/witness-live", "xen/witness-live-2vcpu"]) {
        let stream = fixture(name);
        let (mut sender, folder, _cleanup) = receive(qemu, &[]);
        sender.sends(&stream);
        sender.gives_away();
        let said = sender.ends(0);

        let lines = documents(&fs::read_to_string(folder.path().join("fixture.ndjson")).unwrap());
        assert_eq!(lines[0]["schema"], "hyperferry-progress");
        assert_eq!(lines[0]["guest"], "fixture");
        assert_eq!(
            phases(&lines),
            ["template", "launch", "stream", "load", "hand-over", "resume", "running", "done"]
        );
        let memories: Vec<_> =
            lines.iter().map(|line| &line["memory"]).filter(|memory| !memory.is_null()).collect();
        let counts =
            |name: &str| memories.iter().map(|memory| memory[name].as_u64().unwrap()).collect::<Vec<_>>();
        for name in ["pages_sent", "pages_resent", "round"] {
            assert!(counts(name).is_sorted(), "{name} never falls");
        }
        let last = lines.last().unwrap();
        assert_eq!(last["outcome"], "done");
        let memory = &last["memory"];
        assert!((2..=6).contains(&memory["round"].as_u64().unwrap()), "{memory}");
        let (sent, again) =
            (memory["pages_sent"].as_u64().unwrap(), memory["pages_resent"].as_u64().unwrap());
        assert!(sent <= memory["pages_total"].as_u64().unwrap() && again > 0, "{memory}");
        assert!(memory["dirty_pages_per_second"].is_u64() && last["pause_ms"].is_u64(), "{last}");

        // QEMU's stream has every page that is not all zeros in full, and little else.
        let streamed =
            last["phases"].as_array().unwrap().iter().find(|phase| phase["phase"] == "stream").unwrap();
        let bytes = streamed["bytes"].as_u64().unwrap();
        assert!(bytes <= (sent + again) * (4096 + 64) + (1 << 20), "{bytes} for {memory}");
        let reported =
            lines.iter().filter(|line| line["phase"] == "stream").map(|line| line["bytes"].as_u64().unwrap());
        assert_eq!(reported.max(), Some(bytes));

        let samples = metrics(&fs::read_to_string(folder.path().join("fixture.prom")).unwrap());
        let of = |name: &str| samples[&format!("hyperferry_{name}{{guest=\"fixture\"}}")];
        assert_eq!(of("pages_sent_total"), sent as f64);
        assert_eq!(of("pages_resent_total"), again as f64);
        assert!(of("bytes_total") >= bytes as f64 && of("pause_seconds") > 0.0);
        assert_eq!(samples["hyperferry_outcome{guest=\"fixture\",outcome=\"done\"}"], 1.0);
        assert!(common::names(folder.path()).iter().all(|name| !name.starts_with(".hyperferry")));

        assert!(said.contains(&format!("{sent} pages, {again} again")), "{said}");
        assert!(said.contains("round 2 of at most 6"), "{said}");
        assert!(said.contains("it stood still for about"), "{said}");
    }
}

#[test]
fn metrics_are_served_as_long_as_it_lasts() {
    for qemu in qemus().iter().take(1) {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (mut sender, _folder, _cleanup) = receive(qemu, &["--metrics-listen", &address.to_string()]);
        sender.sends(&slim(&fixture("xen/witness-1vcpu")));
        let ask = |path: &str| {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        let answer = ask("/metrics");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
        let samples = metrics(body);
        assert_eq!(samples["hyperferry_phase{guest=\"fixture\",phase=\"hand-over\"}"], 1.0);
        assert_eq!(samples["hyperferry_outcome{guest=\"fixture\",outcome=\"running\"}"], 1.0);
        assert!(ask("/").starts_with("HTTP/1.1 404"));
        sender.goes_away();
        sender.ends(5);
        // Somebody else has the port.
        let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let busy = busy.local_addr().map(|address| (address, busy)).unwrap();
        let (mut sender, _folder, _cleanup) = receive(qemu, &["--metrics-listen", &busy.0.to_string()]);
        sender.hears(sender::BANNER);
        sender.says(&slim(&fixture("xen/witness-1vcpu")));
        assert!(sender.ends(5).contains("--metrics-listen"));
    }
}

#[test]
fn standard_error_can_have_the_lines_and_a_failure_is_the_last_of_them() {
    for qemu in qemus().iter().take(1) {
        let (mut sender, folder, cleanup) = receive(qemu, &["--progress", "json"]);
        let stream = fixture("xen/witness-live");
        sender.hears(sender::BANNER);
        sender.says(&stream[..stream.len() / 2]);
        wait_for("pages", || sender.stderr().contains(r#""round":1"#));
        kill("-TERM", sender.child.id());
        let said = sender.ends(5);
        assert!(said.contains("stopped by SIGTERM; nothing was changed at the source"), "{said}");
        wait_for("the end of QEMU", || qemus_of(&cleanup.0).is_empty());
        let json: Vec<_> = said.lines().filter(|line| line.starts_with('{')).collect();
        let lines = documents(&json.join("\n"));
        assert_eq!(phases(&lines), ["template", "launch", "stream"]);
        assert_eq!(lines.last().unwrap()["outcome"], "failed");
        let samples = metrics(&fs::read_to_string(folder.path().join("fixture.prom")).unwrap());
        assert_eq!(samples["hyperferry_outcome{guest=\"fixture\",outcome=\"failed\"}"], 1.0);
    }
}

#[test]
fn a_conversion_tells_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let stream = common::file(folder.path(), "in", &slim(&fixture("xen/witness-1vcpu")));
    let (out, lines) = (folder.path().join("out"), folder.path().join("lines"));
    let words = ["convert", &stream, text(&out), "--to", "model", "--progress-file", text(&lines)];
    run(&words).expect(0);
    let lines = documents(&fs::read_to_string(&lines).unwrap());
    assert_eq!(phases(&lines), ["stream", "done"]);
    let last = lines.last().unwrap();
    assert_eq!((&last["memory"]["round"], &last["memory"]["pages_sent"]), (&1.into(), &1.into()));
    assert_eq!(last["phases"][0]["bytes"], fs::metadata(&out).unwrap().len());
}

#[test]
fn a_file_that_cannot_be_written_is_an_error_before_anything_moves() {
    let folder = tempfile::tempdir().unwrap();
    let stream = common::file(folder.path(), "in", &slim(&fixture("xen/witness-1vcpu")));
    let (out, nowhere) = (folder.path().join("out"), folder.path().join("no/where"));
    for option in ["--progress-file", "--metrics-file"] {
        let words = ["convert", &stream, text(&out), "--to", "model", option, text(&nowhere)];
        run(&words).expect(5).says("no/where");
        assert!(!out.exists());
    }
}
