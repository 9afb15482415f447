//! The host's network cards: a guest's data passes whole, both ways, and again after the cable was pulled; and through
//! another card after the whole card was.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{load_time, pull, tiny};
use crate::crashed::Crashed;
use crate::{Artifacts, GUEST_BOOT_LIMIT, Host, NicModel};

/// For a link to be noticed, and for TCP to send again what was lost meanwhile.
const LIMIT: Duration = Duration::from_secs(120);

/// virtio-net.
pub fn virtio(artifacts: &Artifacts) -> Result<()> {
    card(artifacts, "virtio_net", NicModel::Virtio, 2)
}

/// The 82540EM, which has a line in place of messages, on one CPU that also runs the guest.
pub fn e1000(artifacts: &Artifacts) -> Result<()> {
    card(artifacts, "e1000", NicModel::E1000, 1)
}

/// The 82574L.
pub fn e1000e(artifacts: &Artifacts) -> Result<()> {
    card(artifacts, "e1000e", NicModel::E1000e, 2)
}

/// The 82576.
pub fn igb(artifacts: &Artifacts) -> Result<()> {
    card(artifacts, "igb", NicModel::Igb, 2)
}

/// The 82574L, pulled.
pub fn e1000e_pulled(artifacts: &Artifacts) -> Result<()> {
    pulled(artifacts, "e1000e_pulled", NicModel::E1000e)
}

/// The 82576, pulled. QEMU 10.0 sometimes reads what it has freed of that card, and crashes: that says nothing of Pollux.
pub fn igb_pulled(artifacts: &Artifacts) -> Result<()> {
    let result = pulled(artifacts, "igb_pulled", NicModel::Igb);
    match result.as_ref().err().and_then(|error| error.downcast_ref::<Crashed>()) {
        Some(crashed) => {
            eprintln!("        {crashed}: once more");
            pulled(artifacts, "igb_pulled", NicModel::Igb)
        }
        None => result,
    }
}

/// A card takes over where another has no link, and is pulled while it works: it is told of, and the first serves again.
fn pulled(artifacts: &Artifacts, name: &str, model: NicModel) -> Result<()> {
    let launch = artifacts.bare_with(name, &[])?.nic_model(model).nic("");
    let device = format!("{},id=pulled,bus=port1,netdev=other,mac=52:54:00:50:4c:10,romfile=", model.device());
    let launch = launch
        .argument("-device", "pcie-root-port,id=port1,slot=1")
        .argument("-netdev", "user,id=other")
        .argument("-device", device);
    let mut host = artifacts.boot(&launch)?;
    wait_link(&mut host, "uplink0", "up")?;
    host.emulator().monitor("set_link net0 off")?;
    wait_link(&mut host, "uplink1", "up").context("the other card has a link")?;
    let words = format!("echo=10.0.2.2:{}", echo_server()?);
    tiny::create(&mut host, "t", &words, "--nic")?;
    wait_rounds(&mut host, "t", 0)?;
    host.emulator().monitor("set_link net0 on")?;
    pull(host.emulator())?;
    wait_link(&mut host, "uplink0", "up").context("after the card was pulled")?;
    let log = host.command("log")?;
    for line in ["it vanished; it was given up", "nic1: the card has failed", "nic0 is the uplink now"] {
        ensure!(log.contains(line), "the log does not say \"{line}\": {log}");
    }
    host.ask("vm kill t")?;
    tiny::create(&mut host, "u", &words, "--nic")?;
    wait_rounds(&mut host, "u", 0).context("through the card that is left")?;
    host.ask("vm kill u")?;
    host.power_off()
}

fn card(artifacts: &Artifacts, name: &str, model: NicModel, cpus: u32) -> Result<()> {
    let launch = artifacts.bare_with(name, &[])?.cpus(cpus).nic_model(model).nic("");
    let mut host = artifacts.boot(&launch)?;
    wait_link(&mut host, "uplink0", "up")?;
    ensure!(!host.command("log")?.contains(", polled: ready"), "the card raises no interrupt");
    let server = echo_server()?;
    tiny::create(&mut host, "t", &format!("echo=10.0.2.2:{server}"), "--nic")?;
    let mut rounds = wait_rounds(&mut host, "t", 0)?;
    let until = Instant::now() + load_time();
    while Instant::now() < until {
        rounds = wait_rounds(&mut host, "t", rounds)?;
    }
    host.emulator().monitor("set_link net0 off")?;
    wait_link(&mut host, "uplink0", "down")?;
    host.emulator().monitor("set_link net0 on")?;
    wait_link(&mut host, "uplink0", "up")?;
    wait_rounds(&mut host, "t", rounds).context("after the cable was pulled")?;
    let uplink = port(&mut host, "uplink0")?.context("there is no uplink")?;
    let counters = &uplink["card"]["counters"];
    // virtio-net does not count.
    let counted: &[&str] = if model == NicModel::Virtio { &[] } else { &["received", "transmitted"] };
    for &counter in counted {
        ensure!(counters[counter].as_u64().is_some_and(|frames| frames > 1000), "the card counted {uplink}");
    }
    // It would let the host wait for its power button's time to run out.
    host.ask("vm kill t")?;
    host.power_off()
}

/// Waits until the guest `vm` has seen its data come back twice more than `rounds`; gives the number.
fn wait_rounds(host: &mut Host, vm: &str, rounds: u32) -> Result<u32> {
    let wanted = rounds + 2;
    let mut console = host.attach(vm)?;
    let ends = [&format!("ECHO ok {wanted}\r"), "ECHO FAILED", "Kernel panic"];
    let (which, _) = console.expect_any(&ends, GUEST_BOOT_LIMIT)?;
    ensure!(which == 0, console.emulator().failure("data did not come back whole"));
    console.leave()?;
    Ok(wanted)
}

/// Waits until the switch's port `name` is there, with the link `wanted`.
fn wait_link(host: &mut Host, name: &str, wanted: &str) -> Result<()> {
    let until = host.emulator().elapsed() + LIMIT;
    while port(host, name)?.is_none_or(|port| port["link"] != wanted) {
        let late = host.emulator().elapsed() >= until;
        ensure!(!late, host.emulator().failure(&format!("the link of {name} is not {wanted}")));
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// A port of the switch; the uplink's is called by the card that it is.
fn port(host: &mut Host, name: &str) -> Result<Option<serde_json::Value>> {
    let ports = host.ask("net list")?;
    let ports = ports.as_array().context("`net list` gives no list")?;
    Ok(ports.iter().find(|port| port["name"] == name).cloned())
}

/// Listens on a free port of this machine, where a guest finds it at its gateway; sends back what comes, once all has.
fn echo_server() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening for a guest")?;
    let port = listener.local_addr().context("asking for the port")?.port();
    thread::spawn(move || {
        for line in listener.incoming().flatten() {
            // What goes wrong is seen by the guest, which does not get its bytes.
            thread::spawn(move || drop(echo(line)));
        }
    });
    Ok(port)
}

fn echo(mut line: TcpStream) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    line.read_to_end(&mut bytes)?;
    line.write_all(&bytes)
}
