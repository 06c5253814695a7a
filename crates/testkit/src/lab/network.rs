//! How the hosts of the lab reach each other, and a guest's network card the hosts.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Result, ensure};

use super::Host;

/// Where a host finds this machine, and with it all the others' ports.
pub const MACHINE: &str = "10.0.2.2";
/// The address that a guest has on a host's bridge.
pub const GUEST_ADDRESS: &str = "10.77.0.2";

/// Lets a host reach the others.
pub fn give_key(host: Host) -> Result<()> {
    host.run("mkdir -p /root/.ssh")?;
    host.send(&fs::read(Host::key())?, "/root/.ssh/id_lab")?;
    host.run("chmod 600 /root/.ssh/id_lab").map(drop)
}

/// The command by which one host reaches another, up to the address, which is [`MACHINE`].
pub fn ssh_to(host: Host) -> String {
    format!(
        "ssh -q -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ServerAliveInterval=5 \
         -i /root/.ssh/id_lab -l root -p {}",
        host.port()
    )
}

/// Gives a host a bridge to which guests can be tied; it looks the same on every host, so that what a guest has learnt about its
/// neighbour stays true.
pub fn provide_bridge(host: Host, bridge: &str) -> Result<()> {
    host.run(&format!(
        "modprobe bridge
         ip link show {bridge} >/dev/null 2>&1 || ip link add {bridge} type bridge forward_delay 0
         ip link set {bridge} address 02:00:0a:4d:00:01 up
         ip address replace 10.77.0.1/24 dev {bridge}"
    ))
    .map(drop)
}

/// Lets QEMU's own bridge helper on the KVM host work, which does not know where its libraries were unpacked. QEMU 7.2 looks for
/// it beside itself, Debian's 10.0 (built with `--disable-relocatable`) where the package would have put it.
pub fn provide_bridge_helper() -> Result<()> {
    Host::Kvm
        .run(
            "root=/opt/qemu/7.2/root; mkdir -p /etc/qemu; echo allow all >/etc/qemu/bridge.conf
             printf '%s\\n' $root/usr/lib/x86_64-linux-gnu $root/lib/x86_64-linux-gnu >/etc/ld.so.conf.d/qemu.conf
             ldconfig
             mkdir -p /usr/lib/qemu; ln -sf /opt/qemu/10.0/root/usr/lib/qemu/qemu-bridge-helper /usr/lib/qemu/",
        )
        .map(drop)
}

/// A port of this machine that nobody uses.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Has a host's emulator pass a port of this machine on to `port` of the host, and tells which.
pub fn forward(host: Host, port: u16) -> Result<u16> {
    let here = free_port()?;
    let mut monitor = UnixStream::connect(host.dir().join("monitor"))?;
    monitor.set_read_timeout(Some(Duration::from_secs(5)))?;
    let prompt = |monitor: &mut UnixStream| -> Result<String> {
        let mut said = Vec::new();
        let mut byte = [0];
        while !said.ends_with(b"(qemu) ") {
            monitor.read_exact(&mut byte)?;
            said.extend(byte);
        }
        Ok(String::from_utf8_lossy(&said).into_owned())
    };
    prompt(&mut monitor)?;
    monitor.write_all(format!("hostfwd_add tcp:127.0.0.1:{here}-:{port}\n").as_bytes())?;
    let said = prompt(&mut monitor)?;
    ensure!(!said.contains("could not") && !said.contains("rror"), "the monitor says: {said}");
    Ok(here)
}
