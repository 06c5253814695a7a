//! `hyperferry convert` and what depends on it: what is refused, what is written, what is the same afterwards.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may, their helpers too"
)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
};

use common::{file, insert, names, patch, pipe, plain, qemus, run, slim, start_of, text, with_config};
use serde_json::{Value, json};

/// A conversion of a stream that must be refused by this name, with nothing written.
#[track_caller]
fn refused(stream: &[u8], to: &[&str], name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let arguments = [&["convert", "-", text(&out)], to].concat();
    let run = pipe(&arguments, stream).expect(4).says(&format!("refused [{name}]: "));
    assert_eq!(names(folder.path()), [""; 0], "nothing is written: {}", run.stderr);
}

const MODEL: [&str; 2] = ["--to", "model"];

#[test]
fn guests_that_cannot_move_are_refused_before_memory() {
    let stream = slim(&plain());
    // type, in the domain header: 1 is PV.
    refused(&patch(&stream, start_of(&stream, "libxc domain header"), &[1]), &MODEL, "domain-type");
    let passthrough = with_config(&stream, |json| {
        json["pcidevs"] = json!([{ "domain": 0, "bus": 3, "dev": 0, "func": 0 }]);
    });
    refused(&passthrough, &MODEL, "passthrough");
    let viridian = with_config(&stream, |json| json["b_info"]["type.hvm"]["viridian"] = "True".into());
    refused(&viridian, &MODEL, "viridian");
    let nested = with_config(&stream, |json| json["b_info"]["nested_hvm"] = "True".into());
    refused(&nested, &MODEL, "nested");
}

#[test]
fn a_pvh_guest_has_no_device_model_and_cannot_move() {
    let stream = slim(&plain());
    let (from, to) = (start_of(&stream, "EMULATOR_CONTEXT"), stream.len() - 8);
    let pvh = [&stream[..from], &stream[to..]].concat();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    pipe(&["convert", "-", text(&out), "--to", "model"], &pvh).expect(4).says("PVH");
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn a_signal_leaves_no_output() {
    let stream = slim(&plain());
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut child = common::command(&["convert", "-", text(&out), "--to", "model", "--progress", "plain"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut pipe, &stream[..stream.len() - 8]).unwrap();
    // Once it says so, it moves bytes, and listens for signals.
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "moving memory and state\n");
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(5));
    said.read_to_string(&mut line).unwrap();
    assert!(line.contains("stopped by SIGTERM"), "{line}");
    drop(pipe);
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn what_is_allowed_by_name_goes_on() {
    let viridian =
        with_config(&slim(&plain()), |json| json["b_info"]["type.hvm"]["viridian"] = "True".into());
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let arguments = ["convert", "-", text(&out), "--to", "model", "--allow", "viridian"];
    pipe(&arguments, &viridian).expect(0).says("allowed [viridian]: ");
    assert!(out.exists());
}

#[test]
fn a_mandatory_record_that_nobody_knows_is_refused() {
    let stream = slim(&plain());
    let at = start_of(&stream, "X86_TSC_INFO");
    refused(&insert(&stream, at, &[0x70, 0, 0, 0, 0, 0, 0, 0]), &MODEL, "record");
}

#[test]
fn a_layout_that_qemu_cannot_have_is_refused_before_it_is_started() {
    let large = with_config(&slim(&plain()), |json| json["b_info"]["max_memkb"] = json!(5 << 20));
    refused(&large, &["--to", "qemu", "--qemu", "/nowhere/qemu", "--accel", "tcg"], "memory-layout");
}

#[test]
fn a_guest_goes_home_to_xen_by_way_of_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let [save, model, home, again] = ["save", "model", "home", "again"].map(|name| folder.path().join(name));
    fs::write(&save, plain()).unwrap();
    run(&["convert", text(&save), text(&model), "--to", "model"]).expect(0);
    run(&["convert", text(&model), text(&home), "--to", "xen"]).expect(0);
    run(&["verify", text(&home)]).expect(0);
    run(&["diff", text(&save), text(&home)]).expect(0);
    // A save file is a template for its own host.
    run(&["convert", text(&save), text(&again), "--to", "xen", "--template", text(&save)]).expect(0);
    run(&["diff", text(&save), text(&again)]).expect(0);
}

#[test]
fn a_template_that_is_no_save_file_leaves_no_output() {
    let folder = tempfile::tempdir().unwrap();
    let (out, template) = (folder.path().join("out"), folder.path().join("template"));
    fs::write(&template, b"no stream at all, and long enough for a header").unwrap();
    let arguments = ["convert", "-", text(&out), "--to", "xen", "--template", text(&template)];
    pipe(&arguments, &slim(&plain())).expect(3).says("magic");
    assert_eq!(names(folder.path()), ["template"]);
}

#[test]
fn a_checkpoint_is_the_same_vm() {
    let folder = tempfile::tempdir().unwrap();
    let (save, out) = (file(folder.path(), "save", &plain()), folder.path().join("out"));
    run(&["convert", &save, text(&out), "--to", "model"]).expect(0);
    assert_eq!(run(&["diff", &save, text(&out)]).expect(0).stdout, "");
    // The same once more, from the checkpoint, through a pipe.
    let again = folder.path().join("again");
    pipe(&["convert", "-", text(&again), "--to", "model"], &fs::read(&out).unwrap()).expect(0);
    assert_eq!(fs::read(&again).unwrap(), fs::read(&out).unwrap());
}

#[test]
fn diff_tells_fields_and_pages() {
    let folder = tempfile::tempdir().unwrap();
    let stream = slim(&plain());
    let tsc = start_of(&stream, "X86_TSC_INFO") + 12;
    let page = start_of(&stream, "PAGE_DATA") + 24;
    let other = patch(&patch(&stream, tsc, &1_000_000_u32.to_le_bytes()), page, &[1]);
    let (left, right) = (file(folder.path(), "a", &stream), file(folder.path(), "b", &other));
    let found = run(&["diff", &left, &right]).expect(1).stdout;
    assert!(found.starts_with("clock.tsc_khz: 0x"), "{found}");
    assert!(found.contains(" -> 0xf4240\n") && found.contains("memory[0x7000]: crc32 0x"), "{found}");
    let json: Value =
        serde_json::from_str(&run(&["diff", &left, &right, "--json"]).expect(1).stdout).unwrap();
    assert_eq!((&json["equal"], json["differences"].as_array().unwrap().len()), (&false.into(), 2));
}

#[test]
fn kvm_state_is_a_document() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    pipe(&["convert", "-", text(&out), "--to", "kvm"], &slim(&plain())).expect(0);
    let state = hyperferry_kvm_state::from_json(&fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(state.vcpus.len(), 1);
}

#[test]
fn the_report_tells_every_field() {
    let folder = tempfile::tempdir().unwrap();
    let (out, report) = (folder.path().join("out"), folder.path().join("report"));
    let arguments = ["convert", "-", text(&out), "--to", "kvm", "--report", text(&report)];
    pipe(&arguments, &slim(&plain())).expect(0).says("dropped ");
    let json: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!((&json["schema"], &json["outcome"]), (&"hyperferry-report".into(), &"translated".into()));
    let fields = json["fields"].as_array().unwrap();
    let fate = |name: &str| fields.iter().filter(|field| field["fate"] == name).count();
    for name in ["carried", "derived", "defaulted", "dropped"] {
        assert_eq!(json["summary"][name], fate(name), "{name}");
    }
    // A refusal is an outcome too.
    let pv = slim(&plain());
    let pv = patch(&pv, start_of(&pv, "libxc domain header"), &[1]);
    pipe(&arguments, &pv).expect(4);
    let json: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!((&json["outcome"], &json["summary"]["refused"]), (&"refused".into(), &1.into()));
}

#[test]
fn output_goes_to_a_pipe_too() {
    let stream = slim(&plain());
    let command = &mut common::command(&["convert", "-", "-", "--to", "model"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &stream).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"hyperferry vm\r\n"));
}

#[test]
fn a_stream_for_qemu_is_one_that_we_can_read() {
    for qemu in qemus() {
        let folder = tempfile::tempdir().unwrap();
        let (save, out) = (file(folder.path(), "save", &plain()), folder.path().join("out"));
        run(&[
            "convert",
            &save,
            text(&out),
            "--to",
            "qemu",
            "--qemu",
            text(&qemu),
            "--accel",
            "tcg",
            "--allow",
            TSC,
        ])
        .expect(0);
        run(&["verify", text(&out)]).expect(0);
        assert_eq!(names(folder.path()), ["out", "save"]);
    }
}

/// A QEMU stream tells its devices last: what a destination needs first, a pipe cannot give.
#[test]
fn a_qemu_stream_is_a_source() {
    let fixture = hyperferry_testkit::Fixture::named("qemu/10.0-tcg-devices").unwrap();
    let path = fixture.path();
    let args =
        run(&["qemu-args", text(&path), "--accel", "tcg"]).expect(0).says("--map-disk hda=PATH").stdout;
    for wanted in ["pc-i440fx-10.0,", "VGA,vgamem_mb=16,addr=02.0", "mac=52:54:00:12:34:56,addr=03.0"] {
        assert!(args.contains(wanted), "{wanted} is not in {args}");
    }
    let stream = fixture.stream().unwrap();
    pipe(&["qemu-args", "-", "--accel", "tcg"], &stream).expect(4).says("as a file instead of a pipe");
    // A checkpoint of the piped stream knows them again, as it is a file.
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    pipe(&["convert", "-", text(&out), "--to", "model"], &stream).expect(0);
    assert_eq!(run(&["qemu-args", text(&out), "--accel", "tcg"]).expect(0).stdout, args);
    assert_eq!(run(&["diff", text(&path), text(&out)]).expect(0).stdout, "");
}

/// It does not tell either what CPU its guest was shown.
#[test]
fn the_cpu_that_a_guest_of_qemu_is_shown_is_said() {
    let path = hyperferry_testkit::Fixture::named("qemu/10.0-tcg-bare").unwrap().path();
    let (folder, save) = (
        tempfile::tempdir().unwrap(),
        hyperferry_testkit::Fixture::named("xen/witness-1vcpu").unwrap().path(),
    );
    let out = folder.path().join("out");
    let to_xen = ["convert", text(&path), text(&out), "--to", "xen", "--allow", "lapic-timer"];
    run(&to_xen).expect(0).says("warning [cpuid]: ").says("it is shown the bundled template's: AuthenticAMD");
    let named = [&to_xen[..], &["--template", text(&save)]].concat();
    run(&named).expect(0).says("note [cpuid]: ").says("the template's: AuthenticAMD, family 23");
    for qemu in qemus() {
        let to_qemu = ["convert", text(&path), text(&out), "--to", "qemu", "--accel", "tcg", "--qemu"];
        let to_qemu = [&to_qemu[..], &[text(&qemu), "--allow", TSC]].concat();
        let machine = ["--machine", "pc-i440fx-7.2"];
        let machine = if text(&qemu).contains("7.2") { &machine[..] } else { &[] };
        run(&[&to_qemu, machine].concat()).expect(0).says("warning [cpuid]: ").says("shown `-cpu max`");
        let asked = [&to_qemu, machine, &["--cpu", "EPYC,-svm"]].concat();
        run(&asked).expect(0).says("note [cpuid]: ").says("shown `-cpu EPYC,-svm`, as asked");
    }
}

#[test]
fn only_machines_with_a_counterpart_are_taken() {
    let stream = hyperferry_testkit::Fixture::named("qemu/10.0-tcg-bare").unwrap().stream().unwrap();
    let at = stream.windows(14).position(|name| name == b"pc-i440fx-10.0").unwrap();
    refused(&patch(&stream, at, b"pc-q35-10.0.0x"), &MODEL, "machine");
}

/// The captures are from another machine.
const TSC: &str = "tsc-frequency";

#[test]
fn clocks_and_features_that_the_destination_lacks_are_refused() {
    for qemu in qemus() {
        let to = ["--to", "qemu", "--qemu", text(&qemu), "--accel", "tcg"];
        let stream = slim(&plain());
        let khz = start_of(&stream, "X86_TSC_INFO") + 12;
        refused(&patch(&stream, khz, &100_000_u32.to_le_bytes()), &to, "tsc-frequency");
        refused(&with_feature(&stream), &to, "cpu-features");
    }
}

/// A guest that was shown AVX-512, which QEMU's emulation does not have.
fn with_feature(stream: &[u8]) -> Vec<u8> {
    let start = start_of(stream, "X86_CPUID_POLICY") + 8;
    let leaves = stream[start..].chunks(24).position(|leaf| leaf[..8] == [7, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    let ebx = start + leaves * 24 + 12;
    patch(stream, ebx + 2, &[stream[ebx + 2] | 1])
}

#[test]
fn qemu_args_are_words_of_a_shell_or_a_json_array() {
    let stream = slim(&plain());
    let spaced = with_config(&stream, |json| json["c_info"]["name"] = "it's a guest".into());
    let words = pipe(&["qemu-args", "-", "--accel", "tcg", "--qemu", "/q"], &spaced).expect(0).stdout;
    let json =
        pipe(&["qemu-args", "-", "--accel", "tcg", "--qemu", "/q", "--json"], &spaced).expect(0).stdout;
    let json: Vec<String> = serde_json::from_str(&json).unwrap();
    assert_eq!(json[..3], ["/q", "-name", "it's a guest"]);
    let shell = Command::new("sh")
        .args(["-c", &format!("for word in {}; do printf '%s\\n' \"$word\"; done", words.trim_end())])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(shell.stdout).unwrap().lines().collect::<Vec<_>>(), json);
}

#[test]
fn what_has_to_be_mapped_is_said() {
    let disk = with_config(&slim(&plain()), |json| {
        json["disks"] =
            json!([{ "pdev_path": "/source/disk.img", "vdev": "hda", "format": "raw", "readwrite": 1 }]);
        json["nics"] = json!([{ "mac": "00:16:3e:01:02:03", "model": "e1000", "bridge": "xenbr0" }]);
    });
    let said = pipe(&["qemu-args", "-", "--accel", "tcg"], &disk).expect(0);
    let said = said.says("--map-disk hda=PATH").says("--map-bridge xenbr0=HERE");
    assert!(said.stdout.contains("file=/source/disk.img"));
    let mapped =
        ["qemu-args", "-", "--accel", "tcg", "--map-disk", "hda=/dev/null", "--map-bridge", "xenbr0=br0"];
    let said = pipe(&mapped, &disk).expect(0);
    assert!(said.stdout.contains("file=/dev/null") && said.stdout.contains("br=br0"), "{}", said.stdout);
    assert_eq!(said.stderr, "");
    // What is not there is no disk to run a guest on.
    let land = ["land", "-", "--accel", "tcg", "--qemu", "/nowhere/qemu"];
    pipe(&land, &disk).expect(4).says("there is no /source/disk.img");
}

#[test]
fn the_libvirt_domain_has_the_guests_name_and_not_what_a_cold_start_lacks() {
    let escaped = with_config(&slim(&plain()), |json| json["c_info"]["name"] = "a<b".into());
    let xml = pipe(&["libvirt-xml", "-", "--accel", "kvm"], &escaped).expect(0).stdout;
    assert!(xml.contains("<name>a&lt;b</name>") && !xml.contains("ivshmem-plain"), "{xml}");
    assert!(xml.contains("<domain type=\"kvm\" xmlns:qemu="));
    let schema = Path::new("/usr/share/libvirt/schemas/domain.rng");
    if !schema.exists() {
        println!("SKIPPED: libvirt's schema is not here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = file(folder.path(), "domain.xml", xml.as_bytes());
    let lint = Command::new("xmllint").args(["--noout", "--relaxng", text(schema), &file]).output();
    let Ok(lint) = lint else { return println!("SKIPPED: no xmllint") };
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stderr));
}
