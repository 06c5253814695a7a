//! `hyperferry resolve` with journals that are written by hand, and other ends that are scripts. With QEMUs: `receive/killed.rs`
//! and `send.rs`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may, their helpers too")]

mod common;
#[path = "common/xl.rs"]
mod xl;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use common::{Run, file, run, text};
use serde_json::{Value, json};

const UUID: &str = "404ed65b-3579-49d9-afd7-4b03c526326d";

/// A journal, and scripts beside it.
struct Moves {
    folder: tempfile::TempDir,
    count: u32,
}

impl Moves {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("journal")).unwrap();
        Self { folder, count: 0 }
    }

    fn journal(&self) -> String {
        text(&self.folder.path().join("journal")).to_owned()
    }

    /// Writes one down: its first step, and the names of others.
    fn add(&mut self, mut first: Value, steps: &[&str]) {
        self.count += 1;
        first["unix_ms"] = 1.into();
        let more = json!({"why": "x", "pid": 7, "still": false, "paused": false});
        let steps = steps.iter().map(|step| {
            let mut line = more.clone();
            (line["unix_ms"], line["step"]) = (1.into(), (*step).into());
            line
        });
        let lines: Vec<_> = std::iter::once(first).chain(steps).map(|step| step.to_string() + "\n").collect();
        let path = format!("{}/{}-1.journal", self.journal(), self.count);
        fs::write(path, lines.concat()).unwrap();
    }

    /// A guest that came, and may have run.
    fn came(&mut self, guest: &str, uuid: &str, from: &str) {
        self.add(json!({"step": "begin", "guest": guest, "uuid": uuid, "from": from}), &["go"]);
    }

    /// A script, as the command that reaches a host.
    fn host(&self, name: &str, script: &str) -> String {
        format!("sh {}", file(self.folder.path(), name, script.as_bytes()))
    }

    fn resolve(&self, more: &[&str]) -> Run {
        run(&[&["resolve", &self.journal()], more].concat())
    }
}

#[test]
fn each_host_is_asked_once_and_all_at_the_same_time() {
    const OTHER: &str = "11111111-2222-3333-4444-555555555555";
    let mut moves = Moves::new();
    moves.came("web", UUID, "xen1");
    moves.came("db", OTHER, "xen2");
    moves.came("mail", "22222222-2222-3333-4444-555555555555", "xen1");
    let log = text(&moves.folder.path().join("asked")).to_owned();
    let script = |uuid: &str, name: &str| {
        format!("echo $0 $* >>{log}\nsleep 2\n{}", xl::list(uuid, &[(name, "-b----")]))
    };
    let (one, two) = (moves.host("one", &script(UUID, "web")), moves.host("two", &script(OTHER, "db")));
    moves.resolve(&["--peer", &one]).expect(2).says("the journal has guests of several: xen1, xen2;");
    moves.resolve(&["--peer", &one, "--offline"]).expect(2);
    let told = moves.resolve(&["--offline"]).expect(0).stdout;
    assert_eq!(told.matches("  unknown: it was told to run here, and may have run").count(), 3, "{told}");
    assert!(!told.contains("asked") && fs::metadata(&log).is_err(), "{told}");

    let began = Instant::now();
    let peers = ["--peer", &format!("xen1={one}"), "--peer", &format!("xen2={two} -p 7")];
    let told = moves.resolve(&peers).expect(0).stdout;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(told.matches("  at the source: it runs there; its QEMU here is gone").count(), 2, "{told}");
    assert!(told.contains("  nowhere: it was told to run here, and no copy is left"), "{told}");
    let mut asked: Vec<_> = fs::read_to_string(&log).unwrap().lines().map(str::to_owned).collect();
    asked.sort();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[0].ends_with("one xl list -v") && asked[1].ends_with("two -p 7 xl list -v"), "{asked:?}");
}

#[test]
fn a_host_that_does_not_answer_is_named_and_decides_nothing() {
    let mut moves = Moves::new();
    moves.came("web", UUID, "xen1");
    let silent = moves.host("silent", "sleep 60");
    let told = moves.resolve(&["--json", "--peer", &silent]).expect(0).stdout;
    let told: Value = serde_json::from_str(&told).unwrap();
    let guest = &told["guests"][0];
    assert_eq!((&guest["where"], &guest["commands"]), (&"unknown".into(), &json!([])));
    assert_eq!(guest["there"]["error"], format!("no answer in 10 s ({silent})"));
    for (script, why) in [
        ("echo nonsense", "found \"nonsense\" where `xl list -v` prints its heading"),
        ("echo 'Permission denied (publickey).' >&2; exit 255", "it cannot be reached: Permission denied"),
        ("exit 1", "`xl list -v` ended with 1: without a word"),
        ("head -c 3000000 /dev/zero", "wanted a domain"),
    ] {
        let host = moves.host("host", script);
        let told = moves.resolve(&["--peer", &host]).expect(0).stdout;
        let by = format!("({host})\n");
        let found = told.contains("the source could not be asked: ") && told.ends_with(&by);
        assert!(found && (told.contains(why) || script.starts_with("head")), "{told:.1000}");
    }
}

#[test]
fn a_host_without_xl_is_asked_what_its_hyperferry_knows() {
    let mut moves = Moves::new();
    moves.came("web", UUID, "kvm1");
    let own = env!("CARGO_BIN_EXE_hyperferry");
    let there = Moves::new();
    // What ssh would start there; its journal is another directory than the usual one.
    let script = format!(
        "case $1 in xl) echo 'sh: xl: not found' >&2; exit 127 ;; esac\nshift; exec {own} \"$@\" {}",
        there.journal()
    );
    let host = moves.host("kvm1", &script);
    let told = moves.resolve(&["--peer", &host]).expect(0).stdout;
    assert!(told.contains(&format!("  seen at the source ({host}): no QEMU with web")), "{told}");
    assert!(told.contains("  nowhere: it was told to run here, and no copy is left"), "{told}");
}

#[test]
fn an_answer_of_our_own_is_none() {
    let mut moves = Moves::new();
    let own = env!("CARGO_BIN_EXE_hyperferry");
    let to = [own, "receive", "--journal", &moves.journal()];
    let leave =
        json!({"step": "leave", "guest": "web", "uuid": UUID, "to": to, "monitor": "/nowhere", "pid": 7});
    moves.add(leave, &["ready", "go"]);
    let told = moves.resolve(&[]).expect(0).stdout;
    assert!(told.contains("the destination could not be asked: that leads back to this host"), "{told}");
}

/// The other end runs it, and nothing is here.
#[test]
fn a_move_that_is_over_is_asked_about_once_and_can_be_forgotten() {
    let mut moves = Moves::new();
    moves.add(json!({"step": "begin", "guest": "web", "uuid": UUID, "from": "xen1"}), &["ready", "failed"]);
    let log = moves.folder.path().join("asked");
    let script = format!("echo $* >>{}\n{}", text(&log), xl::list(UUID, &[("web", "-b----")]));
    let host = moves.host("xen", &script);
    let told = |more: &[&str]| moves.resolve(&[&["--peer", &host], more].concat()).expect(0).stdout;
    let asked = || fs::read_to_string(&log).unwrap().lines().count();
    told(&["--dry-run"]);
    let first = told(&[]);
    assert!(first.contains("  at the source: it runs there; ours is gone and never ran"), "{first}");
    assert_eq!(asked(), 2, "what is only looked at is not noted");
    let second = told(&[]);
    assert!(second.contains(&format!("  seen at the source ({host}), 0 s ago: it ran\n")), "{second}");
    let json: Value = serde_json::from_str(&told(&["--json"])).unwrap();
    let guest = &json["guests"][0];
    assert_eq!((&guest["where"], &guest["there"]["copy"]), (&"source".into(), &"runs".into()));
    assert!(guest["there"]["seconds_ago"].is_u64() && guest["step"] == "failed", "{guest}");
    assert_eq!(asked(), 2);
    told(&["--again"]);
    assert_eq!(asked(), 3);

    // What an earlier move of the guest says would count again.
    let forget = |told: &str| {
        told.split_once("  nothing to do; the journal forgets it by: ").map(|it| it.1.to_owned())
    };
    let earlier = format!("{}/0-1.journal", moves.journal());
    fs::copy(format!("{}/1-1.journal", moves.journal()), &earlier).unwrap();
    assert!(told(&[]).ends_with("  nothing to do\n"));
    fs::remove_file(earlier).unwrap();
    let forget = forget(&told(&[])).unwrap();
    assert!(Command::new("sh").args(["-c", &forget]).status().unwrap().success(), "{forget}");
    assert_eq!(told(&[]), "");
}

/// A QEMU's monitor, as long as it is not dropped.
struct Monitor(PathBuf);

impl Monitor {
    fn in_state(state: &'static str, path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                let version = json!({"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": ""});
                writeln!(client, "{}", json!({"QMP": {"version": version, "capabilities": []}})).unwrap();
                for line in BufReader::new(client.try_clone().unwrap()).lines() {
                    let asked: Value = serde_json::from_str(&line.unwrap()).unwrap();
                    let answer = json!({"return": {"status": state}, "id": asked["id"]});
                    if writeln!(client, "{answer}").is_err() {
                        break;
                    }
                }
            }
        });
        Self(path)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// It runs here, and the other end has nothing of it; no longer once something has changed here.
#[test]
fn a_guest_that_is_here_is_not_asked_about_until_its_qemu_is_gone() {
    let mut moves = Moves::new();
    let steps = ["loading", "ready", "go", "running"];
    moves.add(json!({"step": "begin", "guest": "web", "uuid": UUID, "from": "xen1"}), &steps);
    let monitor = Monitor::in_state("running", format!("{}/1-1.qmp", moves.journal()).into());
    let there = moves.folder.path().join("there");
    let host = moves.host("xen", &format!(". {}", text(&there)));
    let told = || moves.resolve(&["--peer", &host]).expect(0).stdout;
    fs::write(&there, xl::list(UUID, &[("web--migratedaway", "---ss-")])).unwrap();
    assert!(told().contains("  here: it runs; the copy there must not"));
    fs::write(&there, xl::list(UUID, &[])).unwrap();
    for _ in 0..2 {
        let told = told();
        assert!(told.contains("  here: it runs\n") && told.ends_with("  nothing to do\n"), "{told}");
        // Whoever is asked again says no more.
        fs::write(&there, "exit 1").unwrap();
    }
    fs::write(&there, xl::list(UUID, &[("web", "-b----")])).unwrap();
    drop(monitor);
    let told = told();
    assert!(told.contains("  at the source: it runs there") && !told.contains(" ago: "), "{told}");
}

/// What it leaves there may still be on its way.
#[test]
fn a_move_that_has_just_ended_is_asked_about_again() {
    let mut moves = Moves::new();
    moves.add(json!({"step": "begin", "guest": "web", "uuid": UUID, "from": "xen1"}), &["ready", "failed"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let path = format!("{}/1-1.journal", moves.journal());
    let steps = fs::read_to_string(&path).unwrap();
    let steps = steps.replace("\"unix_ms\":1,", &format!("\"unix_ms\":{now},"));
    fs::write(&path, steps.replace("\"unix_ms\":1}", &format!("\"unix_ms\":{now}}}"))).unwrap();
    let before = fs::read_to_string(&path).unwrap();
    assert!(before.contains(&now.to_string()));
    let host = moves.host("xen", &xl::list(UUID, &[("web", "-b----")]));
    let told = moves.resolve(&["--peer", &host]).expect(0).stdout;
    assert!(told.contains("  nothing to do"), "{told}");
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
}

#[test]
fn names_from_elsewhere_reach_no_terminal_and_no_shell_as_they_are() {
    let mut moves = Moves::new();
    let guest = "a;touch $HOME\u{1b}[2J";
    moves.came(guest, UUID, "xen1");
    let aside = format!("{guest}--migratedaway");
    let host = moves.host("host", &xl::list(UUID, &[(&aside, "---ss-")]));
    let told = moves.resolve(&["--peer", &host]).expect(0).stdout;
    assert!(told.contains("  at the source: its copy there is the only one left"), "{told}");
    assert!(!told.contains('\u{1b}'), "{told}");
    assert!(told.contains(r"'xl rename '\''a;touch $HOME?[2J--migratedaway'\'' '\''a;touch"), "{told}");
}

/// A Xen host of 4.17 with a file of domains, each a name and its state; `xl resume` is not among its commands.
const XEN: &str = r#"
domains=${0%/*}/domains
state() { grep -q "^$1 " $domains && sed -i "s/^$1 .*/$1 $2/" $domains; }
case $2 in
list)
    echo 'Name ID Mem VCPUs State Time(s) UUID Reason-Code'
    echo 'Domain-0 0 1536 2 r----- 95.1 00000000-0000-0000-0000-000000000000 - -'
    while read name state; do echo "$name 5 160 2 $state 15.4 UUID - -"; done <$domains ;;
rename) grep -q "^$3 " $domains && ! grep -q "^$4 " $domains && sed -i "s/^$3 /$4 /" $domains ;;
destroy) grep -q "^$3 " $domains && sed -i "/^$3 /d" $domains ;;
save) state $4 -b---- ;;
pause) state $3 --p--- ;;
unpause) state $3 -b---- ;;
*) exit 2 ;;
esac
"#;

#[test]
fn what_is_advised_makes_it_so() {
    let came = || json!({"step": "begin", "guest": "web", "uuid": UUID, "from": "xen1"});
    let left = || {
        let to = ["ssh", "xen1", "xl", "migrate-receive"];
        json!({"step": "leave", "guest": "web", "uuid": UUID, "to": to, "monitor": "/nowhere", "pid": 7})
    };
    for (first, steps, domains, place, then) in [
        (came(), &["ready", "failed"][..], "web--migratedaway ---ss-", "source", "web -b----"),
        (came(), &["ready", "failed"], "web ---ss-", "source", "web -b----"),
        (came(), &["ready", "go"], "web--migratedaway ---ss-", "source", "web -b----"),
        (came(), &["ready", "go", "running"], "web--migratedaway ---ss-", "nowhere", ""),
        (came(), &["ready", "failed"], "web -b----", "source", "web -b----"),
        (came(), &["loading", "failed"], "web--migratedaway ---ss-", "elsewhere", "web--migratedaway ---ss-"),
        (left(), &["sending", "failed"], "web--incoming --p---", "nowhere", ""),
        (left(), &["sending", "ready"], "web--incoming --p---", "destination", "web -b----"),
        (left(), &["sending", "ready", "go"], "web--incoming --p---", "destination", "web -b----"),
        (left(), &["sending", "ready", "go"], "web --p---", "destination", "web -b----"),
    ] {
        let mut moves = Moves::new();
        moves.add(first, steps);
        let path = moves.folder.path().join("domains");
        fs::write(&path, format!("{domains}\n")).unwrap();
        // A shell at the other end takes the words apart again.
        moves.host("xen", &XEN.replace("UUID -", &format!("{UUID} -")));
        let xl = format!("xl() {{ sh {}/xen xl \"$@\"; }}\n", moves.folder.path().display());
        let host = moves.host("reach", &format!("{xl}eval \"$*\""));
        let told = || -> Value {
            let told = moves.resolve(&["--json", "--peer", &host]).expect(0).stdout;
            serde_json::from_str::<Value>(&told).unwrap()["guests"][0].clone()
        };
        let before = told();
        assert_eq!(before["where"], place, "{domains}: {before}");
        for command in before["commands"].as_array().unwrap() {
            let done = Command::new("sh").arg("-c").arg(command["shell"].as_str().unwrap()).status().unwrap();
            assert!(done.success(), "{before}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap().trim_end(), then, "{before}");
        let after = told();
        assert_eq!((&after["where"], &after["commands"]), (&before["where"], &json!([])), "{after}");
    }
}

#[test]
fn to_look_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("none");
    let told = run(&["resolve", "--dry-run", "--json", text(&journal)]).expect(0).stdout;
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["guests"], json!([]));
    assert!(!journal.exists());
    let mut moves = Moves::new();
    moves.add(json!({"step": "begin", "guest": "web", "uuid": UUID, "from": null}), &["loading"]);
    let path = format!("{}/1-1.journal", moves.journal());
    let before = fs::read_to_string(&path).unwrap();
    moves.resolve(&["--dry-run"]).expect(0);
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    moves.resolve(&["--offline"]).expect(0).says("its half-made copy is ended");
    assert!(fs::read_to_string(&path).unwrap().contains("failed"));
}
