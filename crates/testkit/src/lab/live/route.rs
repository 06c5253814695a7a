//! The way from `xl migrate` to `hyperferry receive`.
//!
//! ```text
//! direct  xl - ssh --------------------------------------------------> cut - receive
//! ssh     xl - ssh -> cut - relay - ssh -----------------------------> receive
//! tls     xl ------- cut - relay - TLS -> relay on this machine - TLS -> receive --listen
//! ```

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use super::{Hurdle, Plan, guest};
use crate::{
    lab::{
        Host,
        network::{forward, free_port},
    },
    tools,
};

/// Where the KVM host listens, inside.
const PORT: u16 = 7000;
/// How long a listener may take to listen.
const LISTENS: Duration = Duration::from_secs(60);

/// The way from the Xen host to the receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// By ssh.
    #[default]
    Direct,
    /// By ssh to a gateway, and on by ssh.
    Ssh,
    /// By a gateway on the Xen host to one on this machine and on to the KVM host, both times by TLS.
    Tls,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "",
            Self::Ssh => "ssh",
            Self::Tls => "tls",
        })
    }
}

impl FromStr for Route {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = [Self::Ssh, Self::Tls].into_iter().find(|route| route.to_string() == name);
        found.context("the gateways' ways are ssh and tls")
    }
}

/// A way that is open. Closed when it is dropped.
#[derive(Debug)]
pub(super) struct Way {
    /// What `xl migrate` is to start.
    pub(super) command: String,
    _listeners: Vec<Listener>,
}

/// A process here, or the ssh to one on the KVM host.
#[derive(Debug)]
struct Listener(Child);

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Way {
    /// Opens it.
    pub(super) fn open(plan: &Plan, hyperferry: &Path) -> Result<Self> {
        let strike = plan.kill.map_or_else(String::new, |(kill, phase)| format!("{kill} {phase} "));
        let cut = format!("/root/live/cut {strike}--");
        let receive = receive(plan);
        match plan.route {
            Route::Direct => {
                Ok(Self { command: format!("exec ssh kvm {cut} {receive}"), _listeners: Vec::new() })
            }
            Route::Ssh => {
                script(Host::Kvm, "take", &format!("{receive} \"$@\""))?;
                let relay = "/root/live/hyperferry relay --to ssh:kvm --receiver '/root/live/take {options}'";
                script(Host::Xen, "pass", &format!("{cut} {relay}"))?;
                Ok(Self { command: "exec ssh gateway /root/live/pass".to_owned(), _listeners: Vec::new() })
            }
            Route::Tls => {
                let [here, there] = [free_port()?, forward(Host::Kvm, PORT)?];
                let papers = Papers::issue()?;
                let listen = format!("--listen tls:0.0.0.0:{PORT}");
                let mut receiver = Host::Kvm.ssh(&format!("{receive} {listen} {}", Papers::there("kvm")));
                let mut gateway = Command::new(hyperferry);
                gateway.args(["relay", "--listen", &format!("tls:127.0.0.1:{here}")]);
                gateway.args(["--to", &format!("tls:127.0.0.1:{there}")]).args(papers.here("gateway"));
                let relay = format!("/root/live/hyperferry relay --to tls:10.0.2.2:{here} --sender xen");
                script(Host::Xen, "pass", &format!("{cut} {relay} {}", Papers::there("xen")))?;
                let listeners = vec![listen_by(&mut receiver)?, listen_by(&mut gateway)?];
                Ok(Self { command: "exec /root/live/pass".to_owned(), _listeners: listeners })
            }
        }
    }
}

/// `hyperferry receive` as the plan wants it.
fn receive(plan: &Plan) -> String {
    let mut receive = format!(
        "/root/live/hyperferry receive --qemu qemu-{} --journal /root/live/journal --serial /root/live/{{name}}.serial",
        plan.qemu
    );
    if plan.devices || plan.hurdle == Some(Hurdle::Disk) {
        let [here, there] = guest::BRIDGES;
        receive.push_str(&format!(" --map-bridge {here}={there}"));
    }
    if plan.devices && plan.hurdle != Some(Hurdle::Disk) {
        let [_, there] = guest::DISKS;
        receive.push_str(&format!(" --map-disk hda={there}"));
    }
    receive
}

fn script(host: Host, name: &str, line: &str) -> Result<()> {
    host.install(format!("#!/bin/sh\nexec {line}\n").as_bytes(), &format!("/root/live/{name}"))
}

/// Starts a listener and waits until it says so.
fn listen_by(command: &mut Command) -> Result<Listener> {
    let log = tools::lab().join("listener.log");
    let file = fs::File::create(&log)?;
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn()?;
    let listener = Listener(child);
    let began = std::time::Instant::now();
    loop {
        let said = fs::read_to_string(&log)?;
        if said.contains("listening at") {
            return Ok(listener);
        }
        ensure!(began.elapsed() < LISTENS, "no listener: {said}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Certificates of one authority for the three hosts.
struct Papers(PathBuf);

impl Papers {
    fn issue() -> Result<Self> {
        let folder = tools::lab().join("tls");
        fs::create_dir_all(&folder)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(folder.join("ca.pem"), authority.pem())?;
        // By the name under which the one before it reaches each.
        for (name, reached) in [("kvm", "127.0.0.1"), ("gateway", "10.0.2.2"), ("xen", "xen")] {
            let mut params = CertificateParams::new([reached.to_owned()])?;
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &authority)?;
            fs::write(folder.join(format!("{name}.pem")), certificate.pem())?;
            fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
        }
        for (host, name) in Host::PAIR.into_iter().zip(["xen", "kvm"]) {
            for file in ["ca.pem".to_owned(), format!("{name}.pem"), format!("{name}.key")] {
                host.send(&fs::read(folder.join(&file))?, &format!("/root/live/{file}"))?;
            }
        }
        Ok(Self(folder))
    }

    /// The options of a host of the lab.
    fn there(name: &str) -> String {
        options("/root/live", name).join(" ")
    }

    /// The options of a gateway here.
    fn here(&self, name: &str) -> Vec<String> {
        options(&self.0.display().to_string(), name)
    }
}

fn options(folder: &str, name: &str) -> Vec<String> {
    let file = |option: &str, file: &str| [option.to_owned(), format!("{folder}/{file}")];
    let options = [
        file("--tls-cert", &format!("{name}.pem")),
        file("--tls-key", &format!("{name}.key")),
        file("--tls-ca", "ca.pem"),
    ];
    options.concat()
}
