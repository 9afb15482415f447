//! The host's network cards: a guest's data passes whole, both ways, and again after the cable was pulled.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::tiny;
use crate::{Artifacts, GUEST_BOOT_LIMIT, Host, NicModel};

/// For a link to be noticed, and for TCP to send again what was lost meanwhile.
const LIMIT: Duration = Duration::from_secs(120);

/// The 82540EM, which is polled, on one CPU that also runs the guest.
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

fn card(artifacts: &Artifacts, name: &str, model: NicModel, cpus: u32) -> Result<()> {
    let launch = artifacts.bare_with(name, &[])?.cpus(cpus).nic_model(model).nic("");
    let mut host = artifacts.boot(&launch)?;
    wait_link(&mut host, "up")?;
    let server = echo_server()?;
    tiny::create(&mut host, "t", &format!("echo=10.0.2.2:{server}"), "--nic")?;
    let rounds = wait_rounds(&mut host, 0)?;
    host.emulator().monitor("set_link net0 off")?;
    wait_link(&mut host, "down")?;
    host.emulator().monitor("set_link net0 on")?;
    wait_link(&mut host, "up")?;
    wait_rounds(&mut host, rounds).context("after the cable was pulled")?;
    let uplink = uplink(&mut host)?;
    let counters = &uplink["card"]["counters"];
    for counter in ["received", "transmitted"] {
        ensure!(counters[counter].as_u64().is_some_and(|frames| frames > 1000), "the card counted {uplink}");
    }
    // It would let the host wait for its power button's time to run out.
    host.ask("vm kill t")?;
    host.power_off()
}

/// Waits until the guest has seen its data come back twice more than `rounds`; gives the number.
fn wait_rounds(host: &mut Host, rounds: u32) -> Result<u32> {
    let wanted = rounds + 2;
    let mut console = host.attach("t")?;
    let ends = [&format!("ECHO ok {wanted}\r"), "ECHO FAILED", "Kernel panic"];
    let (which, _) = console.expect_any(&ends, GUEST_BOOT_LIMIT)?;
    ensure!(which == 0, console.emulator().failure("data did not come back whole"));
    console.leave()?;
    Ok(wanted)
}

fn wait_link(host: &mut Host, wanted: &str) -> Result<()> {
    let until = host.emulator().elapsed() + LIMIT;
    while uplink(host)?["link"] != wanted {
        ensure!(host.emulator().elapsed() < until, host.emulator().failure(&format!("the link is not {wanted}")));
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

fn uplink(host: &mut Host) -> Result<serde_json::Value> {
    let ports = host.ask("net list")?;
    let found = ports.as_array().and_then(|ports| ports.iter().find(|port| port["name"] == "uplink0"));
    found.cloned().with_context(|| format!("there is no uplink among {ports}"))
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
