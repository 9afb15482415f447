//! Memory that a Linux guest gives up goes back to the host and comes again: free pages that it reports, its balloon at
//! the operator's word, and what of that a save and the guest's own use see.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::tiny;
use crate::{Artifacts, GUEST_BOOT_LIMIT, Host, TINY_PASSWORD};

/// For a guest to give memory up: it reports free pages bit by bit, some seconds apart.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(180);
/// Bytes of a mebibyte.
pub const MIB: u64 = 1 << 20;
/// Writes so much into a file and says its checksum, which is known.
const FILL: &str = "dd if=/dev/zero of=/fill bs=1M count=150 2>/dev/null; md5sum /fill | cut -c1-32";
const SUM_OF_FILL: &str = "3d3be108b6b902c41404da7adff4a8da";

/// A guest's memory comes and goes.
pub fn balloon(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.fast("balloon")?)?;
    reservations(&mut host)?;
    let free_bytes = free(&mut host)?;
    tiny::create(&mut host, "t", "shell=yes", "--memory 512M --reserved 128M")?;
    let refusal = host.refusal("vm balloon t 1G")?;
    ensure!(refusal.contains("t cannot keep 1024 MiB of its 512 MiB"), "{refusal}");
    let refusal = host.refusal("vm balloon t 126M")?;
    ensure!(refusal.contains("t cannot keep 126 MiB of its 512 MiB"), "{refusal}");
    let mut console = host.attach("t")?;
    console.login("root", TINY_PASSWORD)?;
    console.leave()?;

    wait_held(&mut host, 0, 400 * MIB).context("free pages that the guest reports")?;
    ensure!(run(&mut host, 1, FILL)? == SUM_OF_FILL, "memory that came again is not what the guest wrote there");
    wait_held(&mut host, 150 * MIB, 512 * MIB)?;

    run(&mut host, 2, "rm /fill")?;
    host.ask("vm balloon t 128M")?;
    wait(&mut host, |vm| vm["balloon"]["keeps_bytes"] == 128 * MIB).context("the balloon")?;
    wait_held(&mut host, 0, 140 * MIB).context("memory in the balloon")?;
    let left_bytes = free(&mut host)?;
    ensure!(left_bytes + 160 * MIB > free_bytes, "of {free_bytes} free bytes {left_bytes} are left");
    let unused = run(&mut host, 3, "awk '/MemFree/ { print $2 }' /proc/meminfo")?;
    ensure!(unused.parse::<u64>()? < 128 << 10, "the guest still has {unused} KiB for anything");

    host.ask("vm balloon t 512M")?;
    ensure!(run(&mut host, 4, FILL)? == SUM_OF_FILL, "what the balloon gave back is not what the guest wrote there");
    let mut console = host.attach("t")?;
    console.send("poweroff -f\r")?;
    console.expect("Power down", GUEST_BOOT_LIMIT)?;
    console.leave()?;
    host.wait_state("t", "stopped", GUEST_BOOT_LIMIT)?;
    host.power_off()
}

/// What is reserved is kept for VMs that do not run, and one that finds no room is refused.
fn reservations(host: &mut Host) -> Result<()> {
    let free_bytes = free(host)?;
    let mib = free_bytes / MIB / 2;
    let half = mib - mib % 2;
    let create = |name: &str, options: &str| format!("vm create {name} --kernel linux {options}");
    host.ask(&create("a", &format!("--memory {half}M --reserved {half}M")))?;
    ensure!(host.ask("host")?["memory"]["promised_bytes"] == half * MIB, "nothing is kept");
    for options in
        [format!("--memory {half}M --reserved {half}M"), format!("--memory {}M --reserved 2M --start", half + 2)]
    {
        let refusal = host.refusal(&create("b", &options))?;
        ensure!(refusal.contains("MiB of memory and") && refusal.contains("MiB are free"), "{refusal}");
        ensure!(host.state("b")?.is_none(), "a VM that was refused is listed");
    }
    let refusal = host.refusal(&create("b", "--memory 64M --reserved 66M"))?;
    ensure!(refusal.contains("66M cannot be reserved for a VM of 64M"), "{refusal}");
    ensure!(host.ask("host")?["memory"]["promised_bytes"] == half * MIB, "a mistake changed what is kept");
    host.ask("vm start a")?;
    wait_kept(host, 0)?;
    host.ask("vm kill a")?;
    wait_kept(host, half * MIB)?;
    host.ask("vm delete a")?;
    wait_kept(host, 0)
}

/// Waits until so much of the free memory is kept for VMs.
fn wait_kept(host: &mut Host, bytes: u64) -> Result<()> {
    let until = host.emulator().elapsed() + GIVE_UP_LIMIT;
    while host.ask("host")?["memory"]["promised_bytes"] != bytes {
        ensure!(host.emulator().elapsed() < until, host.emulator().failure("another amount is kept"));
        sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Runs a command in the guest's shell and gives what it printed, a word. The console shows first what it printed before:
/// each `number` is used once.
pub fn run(host: &mut Host, number: u32, command: &str) -> Result<String> {
    let mut console = host.attach("t")?;
    console.send(&format!("printf '<%s:%s>\\n' \"$({command})\" {number}\r"))?;
    let output = console.expect(&format!(":{number}>"), GUEST_BOOT_LIMIT)?;
    console.leave()?;
    Ok(output.rsplit('<').next().unwrap_or_default().to_owned())
}

/// Waits until the guest has more than `above` bytes of the host's memory and at most `most`.
pub fn wait_held(host: &mut Host, above: u64, most: u64) -> Result<()> {
    wait(host, |vm| vm["held_bytes"].as_u64().is_some_and(|held| held > above && held <= most))
}

/// Waits until what `vm show` says is as it should be.
fn wait(host: &mut Host, is_so: impl Fn(&Value) -> bool) -> Result<()> {
    let until = host.emulator().elapsed() + GIVE_UP_LIMIT;
    loop {
        let vm = host.ask("vm show t")?;
        if is_so(&vm) {
            return Ok(());
        }
        ensure!(host.emulator().elapsed() < until, host.emulator().failure(&format!("it stays at {vm}")));
        sleep(Duration::from_millis(500));
    }
}

fn free(host: &mut Host) -> Result<u64> {
    host.ask("host")?["memory"]["free_bytes"].as_u64().context("no free_bytes")
}
