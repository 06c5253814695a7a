//! `hyperferry relay`: a scripted sender, a gateway, a receiver behind ssh, a UNIX socket or TLS, and QEMU's emulation.
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
    fs,
    io::Write,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use common::{command, fixture, names, plain, qemus, run, slim, start_of, text};
use hyperferry_testkit::witness;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose as Usage, IsCa, KeyPair,
};
use sender::{BANNER, Cleanup, GO, Sender, kill, qemus_of, wait_for};

/// The KVM host: a folder of its own.
struct Host {
    folder: tempfile::TempDir,
    qemu: PathBuf,
    listener: Option<Listener>,
    _cleanup: Cleanup,
}

impl Host {
    fn new(qemu: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cleanup = Cleanup(folder.path().join("journal"));
        Self { folder, qemu: qemu.to_owned(), listener: None, _cleanup: cleanup }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn receive(&self) -> Vec<String> {
        let (journal, serial) = (self.path("journal"), self.path("serial"));
        let arguments = [
            "receive",
            "--qemu",
            text(&self.qemu),
            "--accel",
            "tcg",
            "--journal",
            text(&journal),
            "--serial",
        ];
        let arguments = [&arguments[..], &[text(&serial), "--allow", "tsc-frequency,lapic-timer"]].concat();
        arguments.into_iter().map(str::to_owned).collect()
    }

    /// `hyperferry receive --listen`, once it listens.
    fn listen(&mut self, address: &str, more: &[&str]) {
        let arguments = self.receive();
        let mut arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        arguments.extend(["--listen", address, "-v"]);
        arguments.extend(more);
        self.listener = Some(Listener::start(&arguments, &self.path("log")));
        wait_for("listener", || self.log().contains("listening at"));
        if let Some(path) = address.strip_prefix("unix:") {
            wait_for("socket", || Path::new(path).exists());
        } else {
            let address = address.strip_prefix("tls:").unwrap();
            wait_for("port", || std::net::TcpStream::connect(address).is_ok());
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    fn qemus(&self) -> Vec<u32> {
        qemus_of(&self.path("journal"))
    }

    /// The steps of its only move.
    fn steps(&self) -> String {
        let names = names(&self.path("journal"));
        let name = names.iter().find(|name| name.ends_with(".journal")).unwrap();
        fs::read_to_string(self.path("journal").join(name)).unwrap()
    }

    /// The witness goes on where it was, unharmed.
    #[track_caller]
    fn has_the_witness(&self) {
        let serial = self.path("serial");
        let beats = || witness::beats(&fs::read_to_string(&serial).unwrap_or_default());
        wait_for("beats", || beats().len() >= 4);
        assert!(beats().iter().all(|beat| beat.bad == 0), "{:?}", beats());
        assert!(beats()[0].beat > 1, "it began anew");
    }

    #[track_caller]
    fn left_nothing(&self) {
        wait_for("the end of QEMU", || self.qemus().is_empty());
        // A receiver behind a link may have its last line still to write.
        wait_for("the end of its socket", || {
            names(&self.path("journal")).iter().all(|name| name.ends_with(".journal"))
        });
        assert_eq!(fs::read_to_string(self.path("serial")).unwrap_or_default(), "", "the guest has not run");
    }
}

/// A command that listens, killed when it is dropped.
struct Listener(Child);

impl Listener {
    fn start(arguments: &[&str], log: &Path) -> Self {
        let log = fs::File::create(log).unwrap();
        let mut command = command(arguments);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The gateway, with the sender at its standard input and output.
fn relay(folder: &Path, to: &str, more: &[&str]) -> Sender {
    let mut command = command(&[&["relay", "--to", to], more].concat());
    command.env("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22");
    Sender::of(&mut command, folder)
}

/// A gateway whose ssh is a script: it starts the command here.
fn relay_by_ssh(gateway: &Path, host: &Host, more: &[&str]) -> Sender {
    let ssh = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/common/ssh");
    symlink(ssh, gateway.join("ssh")).unwrap();
    let receiver =
        [&[env!("CARGO_BIN_EXE_hyperferry").to_owned()], &host.receive()[..], &["{options}".to_owned()]]
            .concat();
    let mut command =
        command(&[&["relay", "--to", "ssh:root@kvm", "--receiver", &receiver.join(" ")], more].concat());
    let path = format!("{}:{}", text(gateway), std::env::var("PATH").unwrap());
    command.env("PATH", path).env("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22");
    Sender::of(&mut command, gateway)
}

#[test]
fn a_running_guest_passes_through_ssh() {
    for qemu in qemus() {
        let (gateway, host) = (tempfile::tempdir().unwrap(), Host::new(&qemu));
        let lines = gateway.path().join("lines");
        let mut sender = relay_by_ssh(gateway.path(), &host, &["--progress-file", text(&lines)]);
        let stream = fixture("xen/witness-live-2vcpu");
        sender.sends(&stream);
        assert_eq!(fs::read_to_string(host.path("serial")).unwrap(), "", "the sender has not given it away");
        sender.gives_away();
        let said = sender.ends(0);
        assert!(said.contains("guest fixture passes through to ssh:root@kvm"), "{said}");
        assert!(said.contains("the guest runs here: QEMU process"), "the receiver's words: {said}");
        assert!(
            host.steps().contains(r#""from":"192.0.2.1""#),
            "the Xen host, not the gateway: {}",
            host.steps()
        );
        let called = fs::read_to_string(gateway.path().join("ssh.called")).unwrap();
        assert!(called.starts_with("-o BatchMode=yes") && called.contains("ServerAliveInterval"), "{called}");
        host.has_the_witness();

        let lines: Vec<serde_json::Value> = fs::read_to_string(&lines)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let mut phases: Vec<_> = lines.iter().filter_map(|line| line["phase"].as_str()).collect();
        phases.dedup();
        assert_eq!(phases, ["stream", "load", "hand-over", "resume", "running", "done"]);
        let last = lines.last().unwrap();
        assert!(last["memory"]["round"].as_u64().unwrap() >= 2, "{last}");
        assert_eq!(last["phases"][0]["bytes"], stream.len(), "every byte once");
    }
}

/// An authority and what it issues, as files.
struct Authority {
    folder: PathBuf,
    name: &'static str,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(folder: &Path, name: &'static str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { folder: folder.to_owned(), name, issuer };
        fs::write(authority.file("ca.pem"), authority.issuer.pem()).unwrap();
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}-{name}", self.name))
    }

    /// A certificate for both sides of a link, and its key.
    fn issues(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![Usage::ServerAuth, Usage::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.file(&format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// The options for the certificate of that name, and an authority to trust.
    fn options(&self, name: &str, trusted: &Self) -> Vec<String> {
        let (certificate, key) = (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        let options = ["--tls-cert", text(&certificate), "--tls-key", text(&key), "--tls-ca"];
        [&options[..], &[text(&trusted.file("ca.pem"))]].concat().into_iter().map(str::to_owned).collect()
    }
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn free_address() -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("tls:127.0.0.1:{port}")
}

/// A KVM host that listens for TLS, and what a gateway needs to be let in.
fn tls_host(qemu: &Path) -> (Host, String, Vec<String>, Authority) {
    let mut host = Host::new(qemu);
    let authority = Authority::new(host.folder.path(), "ours");
    for name in ["kvm", "gateway"] {
        authority.issues(name, |_| {});
    }
    let address = free_address();
    host.listen(&address, &strs(&authority.options("kvm", &authority)));
    let options = authority.options("gateway", &authority);
    (host, address, options, authority)
}

#[test]
fn a_running_guest_passes_over_tls_and_over_a_unix_socket() {
    for qemu in qemus() {
        let (host, address, options, _) = tls_host(&qemu);
        let gateway = tempfile::tempdir().unwrap();
        let mut sender = relay(gateway.path(), &address, &strs(&options));
        sender.sends(&fixture("xen/witness-live"));
        sender.gives_away();
        let said = sender.ends(0);
        assert!(said.contains("the guest runs here: QEMU process"), "the receiver's words: {said}");
        assert!(host.steps().contains(r#""from":"192.0.2.1""#), "{}", host.steps());
        host.has_the_witness();

        let mut host = Host::new(&qemu);
        let address = format!("unix:{}", host.path("socket").display());
        host.listen(&address, &[]);
        let mode = fs::metadata(host.path("socket")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let gateway = tempfile::tempdir().unwrap();
        let mut sender = relay(gateway.path(), &address, &[]);
        sender.sends(&fixture("xen/witness-live-2vcpu"));
        sender.gives_away();
        sender.ends(0);
        host.has_the_witness();
    }
}

/// `xl migrate -p` asks for a guest that does not run on by itself; a gateway passes that on whatever the way is.
#[test]
fn a_guest_that_is_to_stay_paused_is_left_paused() {
    for qemu in qemus().iter().take(1) {
        let gateway = tempfile::tempdir().unwrap();
        let run = |host: &Host, mut sender: Sender| {
            sender.sends(&fixture("xen/witness-live"));
            sender.gives_away();
            let said = sender.ends(0);
            assert!(said.contains("the guest is here, paused: QEMU process"), "{said}");
            assert!(host.steps().contains(r#""from":"192.0.2.1""#), "{}", host.steps());
            assert_eq!(fs::read_to_string(host.path("serial")).unwrap(), "", "it has not run");
        };
        let (host, address, options, _) = tls_host(qemu);
        run(
            &host,
            relay(gateway.path(), &address, &strs(&[&options[..], &["--paused".to_owned()]].concat())),
        );
        let host = Host::new(qemu);
        run(&host, relay_by_ssh(gateway.path(), &host, &["--paused"]));
    }
    let words = ["relay", "--to", "ssh:kvm", "--paused", "--receiver", "hyperferry receive"];
    run(&words).expect(2).says("{options}");
}

#[test]
fn a_file_goes_the_same_way() {
    for qemu in qemus().iter().take(1) {
        let (host, address, options, _) = tls_host(qemu);
        let fixture = hyperferry_testkit::Fixture::named("xen/witness-live").unwrap();
        let file = fixture.path();
        let words = [&["relay", "--from", text(&file), "--to", &address][..], &strs(&options)].concat();
        run(&words).expect(0).says("guest fixture has passed");
        host.has_the_witness();

        let (host, address, options, _) = tls_host(qemu);
        let mut broken = fixture.stream().unwrap();
        broken.truncate(1 << 20);
        let file = common::file(host.folder.path(), "broken", &broken);
        let words = [&["relay", "--from", &file, "--to", &address][..], &strs(&options)].concat();
        run(&words).expect(3).says("@0x");
        host.left_nothing();
    }
}

#[test]
fn a_stranger_is_refused_before_a_byte() {
    let Some(qemu) = qemus().into_iter().next() else { return };
    let (host, address, _, authority) = tls_host(&qemu);
    let folder = host.folder.path();
    let stranger = Authority::new(folder, "strange");
    stranger.issues("gateway", |_| {});
    authority.issues("old", |params| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    authority.issues("server", |params| params.extended_key_usages = vec![Usage::ServerAuth]);
    for (options, why) in [
        (stranger.options("gateway", &authority), "ours is of another authority than theirs"),
        (authority.options("old", &authority), "ours has run out"),
        (authority.options("server", &authority), "they say no"),
        (authority.options("gateway", &stranger), "theirs is of another authority than the one in --tls-ca"),
    ] {
        let gateway = tempfile::tempdir().unwrap();
        let mut sender = relay(gateway.path(), &address, &strs(&options));
        sender.goes_away();
        let said = sender.ends(5);
        assert!(said.contains(&address) && said.contains(why), "{why:?} is not in {said}");
    }
    assert!(host.log().contains("refused"), "{}", host.log());
    assert_eq!(names(&host.path("journal")), [""; 0], "no receiver was started");

    // Neither is one that speaks something else, or nothing at all.
    let mut stream = std::net::TcpStream::connect(address.strip_prefix("tls:").unwrap()).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    wait_for("refusal", || host.log().contains("they do not speak TLS"));
    // A name that the certificate does not have, and no options at all.
    let port = address.rsplit(':').next().unwrap();
    let options = authority.options("gateway", &authority);
    let elsewhere = format!("tls:localhost:{port}");
    let words = [&["relay", "--to", &elsewhere][..], &strs(&options)].concat();
    run(&words).expect(5).says("theirs lacks the name that we connected to");
    run(&["relay", "--to", &address]).expect(2).says("--tls-cert");
    assert_eq!(names(&host.path("journal")), [""; 0], "no receiver was started");
}

#[test]
fn what_the_receiver_refuses_ends_the_gateway_with_its_words_and_code() {
    let stream = slim(&plain());
    let khz = start_of(&stream, "X86_TSC_INFO") + 12;
    let slow = common::patch(&stream, khz, &100_000_u32.to_le_bytes());
    for qemu in qemus().iter().take(1) {
        let (mut host, gateway) = (Host::new(qemu), tempfile::tempdir().unwrap());
        let address = format!("unix:{}", host.path("socket").display());
        // Without the --allow of the others.
        let strict = host.receive();
        let (listen, journal) = (["--listen", &address], host.path("journal"));
        let mut words = strs(&strict);
        words.truncate(words.len() - 2);
        words.extend(listen);
        host.listener = Some(Listener::start(&words, &host.path("log")));
        wait_for("socket", || host.path("socket").exists());
        let mut sender = relay(gateway.path(), &address, &[]);
        sender.hears(BANNER);
        sender.says(&slow);
        let said = sender.ends(4);
        assert!(
            said.contains("refused [tsc-frequency]") && said.contains("ended with exit code 4"),
            "{said}"
        );
        assert!(journal.exists());
        host.left_nothing();
    }
}

#[test]
fn last_words_outlive_a_sender_that_goes_on_talking() {
    let disks = serde_json::json!([{"pdev_path": "/nowhere/disk", "vdev": "hda", "format": "raw"}]);
    let stream = common::with_config(&fixture("xen/witness-live"), |config| config["disks"] = disks);
    for qemu in qemus().iter().take(1) {
        let (host, address, options, _) = tls_host(qemu);
        for _ in 0..5 {
            let gateway = tempfile::tempdir().unwrap();
            let mut sender = relay(gateway.path(), &address, &strs(&options));
            sender.hears(BANNER);
            sender.says(&stream);
            let said = sender.ends(4);
            assert!(said.contains("disk hda: there is no /nowhere/disk"), "{said}");
        }
        host.left_nothing();
    }
}

#[test]
fn a_guest_that_nobody_can_take_and_damage_end_at_the_gateway() {
    let pci = serde_json::json!([{"bus": 3, "dev": 0, "func": 0}]);
    let passthrough = common::with_config(&plain(), |config| config["pcidevs"] = pci);
    let passthrough = passthrough[..start_of(&passthrough, "PAGE_DATA")].to_vec();
    let whole = plain();
    // A record of a type that nobody knows and that may not be skipped.
    let damaged = common::patch(&whole, start_of(&whole, "X86_TSC_INFO"), &0x7777_u32.to_le_bytes());
    for qemu in qemus().iter().take(1) {
        for (stream, code, why) in
            [(&passthrough, 4, "refused [passthrough]"), (&damaged, 4, "refused [record]")]
        {
            let (gateway, host) = (tempfile::tempdir().unwrap(), Host::new(qemu));
            let mut sender = relay_by_ssh(gateway.path(), &host, &[]);
            sender.hears(BANNER);
            sender.says(stream);
            let said = sender.ends(code);
            assert!(said.contains(why), "{said}");
            host.left_nothing();
        }
        let (gateway, host) = (tempfile::tempdir().unwrap(), Host::new(qemu));
        let mut sender = relay_by_ssh(gateway.path(), &host, &[]);
        sender.hears(BANNER);
        sender.says(&whole[..whole.len() / 2]);
        sender.goes_away();
        let said = sender.ends(3);
        assert!(said.contains("the sender's side: ") && said.contains("@0x"), "{said}");
        host.left_nothing();
    }
}

/// Up to the middle of memory, with a QEMU that reads it.
fn among_the_pages(sender: &mut Sender, host: &Host) {
    let stream = plain();
    sender.hears(BANNER);
    sender.says(&stream[..stream.len() / 2]);
    wait_for("the stream", || host.steps().contains("loading"));
    wait_for("QEMU", || !host.qemus().is_empty());
}

#[test]
fn a_gateway_that_dies_among_the_pages_is_a_transport_that_died() {
    for qemu in qemus() {
        let (host, address, options, _) = tls_host(&qemu);
        for signal in ["-KILL", "-TERM"] {
            let gateway = tempfile::tempdir().unwrap();
            let mut sender = relay(gateway.path(), &address, &strs(&options));
            among_the_pages(&mut sender, &host);
            kill(signal, sender.child.id());
            let status = sender.child.wait().unwrap();
            assert_eq!(status.code(), (signal == "-TERM").then_some(5), "{}", sender.stderr());
            // The sender hears the end, and nothing else.
            sender.hears(b"");
            host.left_nothing();
            for name in names(&host.path("journal")) {
                wait_for("account", || {
                    fs::read_to_string(host.path("journal").join(&name)).unwrap().contains("failed")
                });
                fs::remove_file(host.path("journal").join(name)).unwrap();
            }
        }
    }
}

#[test]
fn a_far_end_that_dies_among_the_pages_is_told_by_its_name() {
    for qemu in qemus().iter().take(1) {
        let (mut host, address, options, _) = tls_host(qemu);
        let gateway = tempfile::tempdir().unwrap();
        let mut sender = relay(gateway.path(), &address, &strs(&options));
        among_the_pages(&mut sender, &host);
        host.listener = None;
        let said = sender.ends(5);
        assert!(said.contains(&address) && said.contains("they closed the connection"), "{said}");
        host.left_nothing();

        let (gateway, host) = (tempfile::tempdir().unwrap(), Host::new(qemu));
        let mut sender = relay_by_ssh(gateway.path(), &host, &[]);
        among_the_pages(&mut sender, &host);
        kill("-KILL", host.qemus().pop().unwrap());
        let said = sender.ends(5);
        assert!(said.contains("QEMU ended (signal: 9") && said.contains("ssh:root@kvm"), "{said}");
        host.left_nothing();
    }
}

#[test]
fn behind_ready_a_signal_comes_too_late_and_a_lost_answer_is_unknown() {
    // A guest that really runs.
    let stream = plain();
    for qemu in qemus().iter().take(1) {
        let (gateway, host) = (tempfile::tempdir().unwrap(), Host::new(qemu));
        let mut sender = relay_by_ssh(gateway.path(), &host, &[]);
        sender.sends(&stream);
        kill("-INT", sender.child.id());
        wait_for("the answer", || sender.stderr().contains("SIGINT comes too late"));
        sender.gives_away();
        sender.ends(0);

        let (mut host, address, options, _) = tls_host(qemu);
        let gateway = tempfile::tempdir().unwrap();
        let mut sender = relay(gateway.path(), &address, &strs(&options));
        sender.sends(&stream);
        // The link is cut as the permission is on its way.
        host.listener = None;
        sender.says(GO);
        let code = sender.child.wait().unwrap().code();
        assert!(matches!(code, Some(5 | 6)), "{}", sender.stderr());
        wait_for("the end of QEMU", || host.qemus().is_empty());
        assert!(!host.steps().contains(r#""step":"go""#), "it has never run");
    }
}

#[test]
fn a_gateway_listens_too() {
    for qemu in qemus().iter().take(1) {
        let (host, address, options, authority) = tls_host(qemu);
        let gateway = tempfile::tempdir().unwrap();
        let here = format!("unix:{}", gateway.path().join("socket").display());
        let words = [&["relay", "--listen", &here, "--to", &address][..], &strs(&options)].concat();
        let mut listener = Listener::start(&words, &gateway.path().join("log"));
        wait_for("socket", || gateway.path().join("socket").exists());
        let mut sender = relay(gateway.path(), &here, &[]);
        sender.sends(&plain());
        sender.gives_away();
        let said = sender.ends(0);
        assert!(said.contains("the guest runs here"), "through both of them: {said}");
        assert!(host.steps().contains(r#""from":"192.0.2.1""#), "{}", host.steps());
        kill("-TERM", listener.0.id());
        assert!(listener.0.wait().unwrap().success());
        assert!(!gateway.path().join("socket").exists());
        drop(authority);
    }
}
