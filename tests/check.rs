//! `hyperferry check` as a user meets it, and the pages that speak of it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may, their helpers too")]

mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{Run, command, finish, fixture, pipe, plain, qemus, run, script, slim, text, with_config};
use hyperferry_preflight::{Check, Severity, destination, guest, source};
use hyperferry_testkit::checkout;
use hyperferry_translate::refusal;
use serde_json::Value;

const QEMU: &str = "/nowhere/qemu";

fn document(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap()
}

/// The severities of a document's findings, by name; the worst counts.
fn severities(document: &Value) -> BTreeMap<String, String> {
    let rank =
        |word: &str| ["ok", "note", "warning", "refusal"].iter().position(|known| *known == word).unwrap();
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for finding in document["findings"].as_array().unwrap() {
        let severity = finding["severity"].as_str().unwrap();
        let worst =
            found.entry(finding["name"].as_str().unwrap().to_owned()).or_insert_with(|| "ok".to_owned());
        if rank(severity) > rank(worst) {
            severity.clone_into(worst);
        }
    }
    found
}

#[test]
fn a_host_without_qemu_is_not_fit_and_says_why() {
    let told = run(&["check", "--qemu", QEMU, "--accel", "tcg"]).expect(4);
    assert!(told.stdout.contains("QEMU cannot be used: cannot start /nowhere/qemu"), "{}", told.stdout);
    assert!(told.stdout.ends_with("not like this: refused by 1\n"), "{}", told.stdout);
}

#[test]
fn a_host_is_judged_for_the_guest_that_is_to_come() {
    let journal = tempfile::tempdir().unwrap();
    for qemu in qemus() {
        let check = |more: &[&str], input: &[u8]| {
            let arguments = ["check", "--qemu", text(&qemu), "--accel", "tcg", "--json"];
            let arguments = [&arguments[..], &["--journal", text(journal.path())], more].concat();
            pipe(&arguments, input)
        };
        let alone = document(&check(&[], b"").expect(0));
        assert_eq!((&alone["schema"], &alone["version"]), (&"hyperferry-check".into(), &1.into()));
        assert_eq!((&alone["guest"], &alone["movable"]), (&Value::Null, &true.into()));
        assert_eq!(severities(&alone)["qemu-devices"], "ok");

        let diskless = with_config(&slim(&plain()), |xl| xl["disks"] = Value::Null);
        let fits = document(&check(&["--from", "-"], &diskless).expect(0));
        assert_eq!(fits["guest"], "fixture");
        let found = severities(&fits);
        assert_eq!((found["template"].as_str(), found["cpu-features"].as_str()), ("ok", "ok"), "{fits}");

        let changed = with_config(&slim(&plain()), |xl| {
            xl["disks"] = serde_json::json!([{ "pdev_path": "/nowhere/d", "vdev": "hda", "format": "raw", "readwrite": 1 }]);
            xl["b_info"]["nested_hvm"] = "True".into();
        });
        let refused = document(&check(&["--from", "-"], &changed).expect(4));
        let found = severities(&refused);
        assert_eq!((found["disk"].as_str(), found["nested"].as_str()), ("refusal", "refusal"));
        let disk = journal.path().join("disk");
        fs::write(&disk, [0; 512]).unwrap();
        let map = format!("hda={}", text(&disk));
        let allowed = check(&["--from", "-", "--map-disk", &map, "--allow", "nested"], &changed).expect(0);
        assert!(
            document(&allowed)["findings"]
                .as_array()
                .unwrap()
                .iter()
                .any(|finding| finding["allowed"] == true)
        );
    }
}

#[test]
fn what_is_no_guest_is_an_invalid_input() {
    pipe(&["check", "--qemu", QEMU, "--from", "-"], b"neither a stream nor JSON").expect(3);
    pipe(&["check", "--qemu", QEMU, "--from", "-"], b"{\"schema\": 5}").expect(3);
    run(&["check", "--to", "kvm"]).expect(2).says("--domain");
}

/// A directory with the Xen host's tools, which answer as the lab's did, and an ssh that stays here.
fn xen_host(answer: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tool = |name: &str, lines: &str| drop(script(folder.path(), name, lines));
    let part = |name: &str| {
        let start = answer.find(&format!("=== hyperferry {name}\n")).unwrap();
        let body = answer[start..].split_once('\n').unwrap().1;
        let path = folder.path().join(format!("{name}.txt"));
        fs::write(&path, body.split("=== hyperferry ").next().unwrap()).unwrap();
        format!("cat {}", path.display())
    };
    tool(
        "xl",
        &format!(
            "case $1 in\ndomid) [ \"$2\" = web ] && echo 7 ;;\nlist) {} ;;\ninfo) {} ;;\nesac",
            part("list"),
            part("info")
        ),
    );
    tool("xenstore-ls", &part("xenstore"));
    tool("xen-hvmctx", &part("hvmctx"));
    tool("xen-cpuid", &part("cpuid"));
    // ssh -o BatchMode=yes -- HOST LINE
    tool("ssh", "[ \"$3\" = -- ] && exec sh -c \"$5\"");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_hyperferry"), folder.path().join("hyperferry")).unwrap();
    folder
}

fn on(host: &Path, arguments: &[&str]) -> Run {
    let path = format!("{}:{}", host.display(), std::env::var("PATH").unwrap());
    finish(command(arguments).env("PATH", path), None)
}

#[test]
fn a_domain_is_judged_on_its_host_and_for_the_other() {
    let answers = checkout().join("crates/preflight/src/source/testdata");
    let answer = |name: &str| fs::read_to_string(answers.join(name).join("answer.txt")).unwrap();
    let (pv, plain) = (xen_host(&answer("pv")), xen_host(&answer("plain")));

    let told = on(pv.path(), &["check", "--domain", "web"]).expect(4);
    assert!(told.stdout.contains("refused  pv-drivers"), "{}", told.stdout);
    assert!(told.stdout.contains("current_clocksource"), "{}", told.stdout);
    let told = on(
        pv.path(),
        &["check", "--domain", "web", "--xen-host", "root@xen", "--json", "--allow", "pv-drivers"],
    );
    assert_eq!(document(&told.expect(0))["movable"], true);
    on(pv.path(), &["check", "--domain", "another"]).expect(5);

    let journal = tempfile::tempdir().unwrap();
    for qemu in qemus() {
        let destination =
            ["--qemu", text(&qemu), "--accel", "tcg", "--journal", text(journal.path()), "--json"];
        for to in ["kvm", "here"] {
            let arguments = [&["check", "--domain", "web", "--to", to][..], &destination].concat();
            let run = on(plain.path(), &arguments);
            let found = severities(&document(&run));
            // The lab's processor has what every QEMU emulates; its clock is another machine's.
            assert_eq!(found["cpu-features"], "ok", "{}", run.stdout);
            assert!(found.contains_key("tsc-frequency") && found["template"] == "ok", "{}", run.stdout);
            assert_eq!((found["pv-drivers"].as_str(), found["hpet"].as_str()), ("ok", "ok"));
        }
    }
}

#[test]
fn a_receiver_refuses_before_the_first_page() {
    let journal = tempfile::tempdir().unwrap();
    for qemu in qemus() {
        let stream = fixture("xen/witness-stdvga-e1000");
        let stream = with_config(&slim(&stream), |xl| {
            xl["disks"] = Value::Null;
            xl["nics"][0]["bridge"] = "xenbr0".into();
        });
        // Cut off before its pages.
        let pages = common::start_of(&stream, "PAGE_DATA");
        let arguments =
            ["receive", "--qemu", text(&qemu), "--accel", "tcg", "--journal", text(journal.path())];
        let arguments = [&arguments[..], &["--map-bridge", "xenbr0=nowhere0"]].concat();
        let run = pipe(&arguments, &stream[..pages]).expect(4);
        assert!(run.stderr.contains("refused [bridge]: there is no bridge nowhere0"), "{}", run.stderr);
        assert!(!run.stderr.contains("paused"), "{}", run.stderr);
    }
}

/// Rows of a page's tables: name, and the second column.
fn rows<'a>(page: &'a str, heading: &str) -> Vec<(&'a str, &'a str)> {
    let section = page.split(&format!("\n## {heading}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
    let row = |line: &'a str| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        Some((cells.next()?.trim_end_matches('`'), cells.next()?))
    };
    section.lines().filter_map(row).collect()
}

fn table<F>(checks: &[Check<F>]) -> Vec<(&'static str, &'static str)> {
    let word = |severity| match severity {
        Severity::Ok => "ok",
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Refusal => "refusal",
    };
    checks.iter().map(|check| (check.name, word(check.worst))).collect()
}

#[test]
fn the_pages_and_the_code_name_the_same_checks() {
    let page = fs::read_to_string(checkout().join("docs/preflight.md")).unwrap();
    assert_eq!(rows(&page, "Guest"), table(guest::CHECKS));
    assert_eq!(rows(&page, "Source"), table(source::CHECKS));
    assert_eq!(rows(&page, "Destination"), table(destination::CHECKS));
}

#[test]
fn the_pages_and_the_code_name_the_same_refusals() {
    let mut names: Vec<_> = refusal::ALL.iter().map(|refusal| refusal.name).collect();
    names.sort_unstable();
    for (page, heading) in
        [("docs/preflight.md", "When a refusal comes"), ("docs/loss-policy.md", "Refusals")]
    {
        let text = fs::read_to_string(checkout().join(page)).unwrap();
        let mut found: Vec<_> = rows(&text, heading).into_iter().map(|(name, _)| name).collect();
        found.sort_unstable();
        assert_eq!(found, names, "{page}");
    }
}
