//! What `cargo xtask demo boot` shows: the image boots from every medium, two guests talk, and killing leaks nothing.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{guests, tiny};
use crate::{Artifacts, GUEST_BOOT_LIMIT, Host, Launch, Medium};

/// How often a guest is killed.
const KILLS: usize = 50;

/// The image boots as a CD under a BIOS.
pub fn bios_cd(artifacts: &Artifacts) -> Result<()> {
    boots(artifacts, &artifacts.imaged("bios_cd", Medium::Cd, false))
}

/// The image boots as a USB stick under a BIOS.
pub fn bios_usb(artifacts: &Artifacts) -> Result<()> {
    boots(artifacts, &artifacts.imaged("bios_usb", Medium::Usb, false))
}

/// The image boots as a USB stick under UEFI.
pub fn uefi_usb(artifacts: &Artifacts) -> Result<()> {
    boots(artifacts, &artifacts.imaged("uefi_usb", Medium::Usb, true))
}

/// The USB stick's own image boots under a BIOS, on either kind of controller.
pub fn bios_stick(artifacts: &Artifacts) -> Result<()> {
    stick_boots(artifacts, "bios_stick", false)
}

/// The same under UEFI.
pub fn uefi_stick(artifacts: &Artifacts) -> Result<()> {
    stick_boots(artifacts, "uefi_stick", true)
}

fn stick_boots(artifacts: &Artifacts, name: &str, uefi: bool) -> Result<()> {
    for (controller, medium) in [("xhci", Medium::Usb), ("ehci", Medium::UsbEhci)] {
        let name = format!("{name}_{controller}");
        boots(artifacts, &artifacts.from_stick(&name, medium, uefi)).context(name)?;
    }
    Ok(())
}

fn boots(artifacts: &Artifacts, launch: &Launch) -> Result<()> {
    let mut host = artifacts.boot(launch)?;
    let modules = host.ask("modules")?;
    ensure!(modules.to_string().contains(crate::LINUX), "the boot modules did not arrive: {modules}");
    host.ask("vm kill debian").context("the configuration on the image was not carried out")?;
    host.power_off()
}

/// Two guests reach each other through the switch.
pub fn pings(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.imaged("pings", Medium::Usb, false))?;
    for (vm, own, other) in [("left", 1, 2), ("right", 2, 1)] {
        let words = format!("address=192.168.9.{own}/24 ping=192.168.9.{other} linger=yes");
        tiny::create(&mut host, vm, &words, "--nic")?;
    }
    for vm in ["left", "right"] {
        let mut console = host.attach(vm)?;
        let (which, _) = console.expect_any(&["PING ok", "PING FAILED"], GUEST_BOOT_LIMIT)?;
        ensure!(which == 0, console.emulator().failure(&format!("{vm} does not reach the other guest")));
        console.leave()?;
    }
    host.power_off()
}

/// A guest is killed over and over beside another that goes on; not a frame is lost.
pub fn kill_loop(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.fast("kill_loop")?)?;
    guests::start_witness(&mut host)?;
    // The first round also fills what is made once and kept.
    kill_once(&mut host)?;
    let before = own_bytes(&mut host)?;
    for round in 1..=KILLS {
        kill_once(&mut host)
            .and_then(|()| expect_own_bytes(&mut host, before))
            .with_context(|| format!("round {round}"))?;
    }
    guests::check_witness(&mut host)?;
    host.power_off()
}

fn kill_once(host: &mut Host) -> Result<()> {
    tiny::create(host, "victim", "linger=yes", "--nic --disk scratch")?;
    host.ask("vm kill victim")?;
    host.ask("vm delete victim").map(|_| ())
}

/// What the host uses itself, and no guest has.
pub fn own_bytes(host: &mut Host) -> Result<u64> {
    memory_bytes(host, "own_bytes")
}

/// Sees that the host uses as much itself as `before`. Guests that go on give memory up and take it again: one look may
/// find a frame on its way.
pub fn expect_own_bytes(host: &mut Host, before: u64) -> Result<()> {
    const LOOKS: u32 = 20;
    let mut now = 0;
    for _ in 0..LOOKS {
        now = own_bytes(host)?;
        if now == before {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("the host used {before} bytes itself, now {now}")
}

/// The host's free memory.
pub fn free_bytes(host: &mut Host) -> Result<u64> {
    memory_bytes(host, "free_bytes")
}

fn memory_bytes(host: &mut Host, which: &str) -> Result<u64> {
    host.ask("host")?["memory"][which].as_u64().with_context(|| format!("`host --json` does not give {which}"))
}
