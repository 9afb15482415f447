//! Two hosts on one wire, and a guest that moves between them while it runs.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::cdrom;
use super::saved::make_disk;
use crate::{Artifacts, GUEST_BOOT_LIMIT, Host, Launch};

/// For a VM to move, in a nested emulation on a loaded machine.
const MOVE_LIMIT: Duration = Duration::from_secs(120);
/// The guest writes much more than a guest does that works: what it may stand still for suits the emulator.
const OPTIONS: &str = "--downtime 3000 --timeout 100 --strategy stop";
/// The guest that checks all of its memory, again and again.
const GUEST: &str = "memory_hash";
/// It tells of every so many rounds: what a console keeps of its past holds many minutes of them.
pub const EVERY: u64 = 50;
/// What the two hosts are called, and where they are.
pub const SIDES: [&str; 2] = ["a", "b"];
const ADDRESSES: [&str; 2] = ["10.9.0.1", "10.9.0.2"];

/// Two hosts, each called as the other knows it: `a` and `b`.
pub struct Pair {
    /// The hosts.
    pub hosts: Vec<Host>,
}

impl Pair {
    /// Switches two hosts on whose cards are joined, and lets them trust each other.
    pub fn boot(artifacts: &Artifacts, name: &str) -> Result<Self> {
        let (sockets, guest) = (Self::sockets()?, modules(artifacts)?);
        Self::boot_with(
            |index| Ok(machine(artifacts, name, index, &guest, &sockets[index])?.memory_mib(512)),
            artifacts,
        )
    }

    /// Both ends of the wire between their cards, in QEMU's words.
    pub fn sockets() -> Result<[String; 2]> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok([format!("socket,id=net0,listen=127.0.0.1:{port}"), format!("socket,id=net0,connect=127.0.0.1:{port}")])
    }

    /// The same with machines of the caller's.
    pub fn boot_with(machine: impl Fn(usize) -> Result<Launch>, artifacts: &Artifacts) -> Result<Self> {
        Self::of(vec![artifacts.boot(&machine(0)?)?, artifacts.boot(&machine(1)?)?])
    }

    /// The same with hosts that run already.
    pub fn of(hosts: Vec<Host>) -> Result<Self> {
        let mut pair = Self { hosts };
        pair.introduce(0)?;
        pair.introduce(1)?;
        Ok(pair)
    }

    /// Lets a host trust the other as it is now.
    pub fn introduce(&mut self, index: usize) -> Result<()> {
        let report = self.hosts[1 - index].ask("host")?;
        let key = report["key"].as_str().context("`host` shows no key")?.to_owned();
        let (peer, address) = (SIDES[1 - index], ADDRESSES[1 - index]);
        self.hosts[index].ask(&format!("peer add {peer} {address} {key}")).map(drop)
    }

    /// Moves a VM from the host with this number to the other; gives what the source says of it.
    pub fn migrate(&mut self, from: usize, vm: &str) -> Result<Value> {
        self.migrate_with(from, vm, OPTIONS)
    }

    /// The same with these options.
    pub fn migrate_with(&mut self, from: usize, vm: &str, options: &str) -> Result<Value> {
        let to = SIDES[1 - from];
        self.hosts[from].ask(&format!("vm migrate {vm} to {to} {options}"))?;
        let moved = self.wait_end(from)?;
        ensure!(moved["phase"] == "moved", self.hosts[from].emulator().failure(&format!("it did not move: {moved}")));
        self.hosts[from].wait_gone(vm)?;
        let state = self.hosts[1 - from].state(vm)?;
        ensure!(state.as_deref() == Some("running"), "on the target it is {state:?}");
        Ok(moved)
    }

    /// Waits until a move is in this phase at a host, and this is so.
    pub fn wait_move(&mut self, index: usize, phase: &str, is_so: fn(&Value) -> bool) -> Result<()> {
        let host = &mut self.hosts[index];
        let until = host.emulator().elapsed() + MOVE_LIMIT;
        loop {
            let status = host.ask("migrate status")?;
            if status.as_array().into_iter().flatten().any(|one| one["phase"] == phase && is_so(one)) {
                return Ok(());
            }
            ensure!(host.emulator().elapsed() < until, host.emulator().failure(&format!("not {phase:?}: {status}")));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the move that began last has ended.
    pub fn wait_end(&mut self, from: usize) -> Result<Value> {
        let until = self.hosts[from].emulator().elapsed() + MOVE_LIMIT;
        loop {
            let status = self.hosts[from].ask("migrate status")?;
            let last = status[0].clone();
            if matches!(last["phase"].as_str(), Some("moved" | "stayed" | "lost")) {
                return Ok(last);
            }
            let elapsed = self.hosts[from].emulator().elapsed();
            ensure!(elapsed < until, self.hosts[from].emulator().failure(&format!("it is still on its way: {last}")));
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A host's configuration. With a key, it is the same host when it is switched on again.
pub fn configuration(index: usize) -> String {
    let (side, address) = (SIDES[index], ADDRESSES[index]);
    let key = side.repeat(64);
    format!("[host]\nname = \"{side}\"\nmanagement = \"static\"\naddress = \"{address}/24\"\nkey = \"{key}\"\n")
}

/// A host of the pair: its configuration, these boot modules, and a card on that network.
pub fn machine(
    artifacts: &Artifacts,
    name: &str,
    index: usize,
    modules: &[(PathBuf, String)],
    netdev: &str,
) -> Result<Launch> {
    let side = SIDES[index];
    fs::create_dir_all(&artifacts.logs)?;
    let path = artifacts.logs.join(format!("{name}-{side}.toml"));
    fs::write(&path, configuration(index))?;
    let mut modules = modules.to_vec();
    modules.push((path, "pollux.toml".to_owned()));
    let launch = Launch::new(&format!("{name}-{side}")).accel(artifacts.accel);
    Ok(launch
        .multiboot(&artifacts.kernel32, "", &modules)?
        .argument("-netdev", netdev)
        .argument("-device", format!("virtio-net-pci,netdev=net0,mac=52:54:00:50:4d:0{index},romfile=")))
}

/// The guest as a boot module.
pub fn modules(artifacts: &Artifacts) -> Result<[(PathBuf, String); 1]> {
    Ok([(artifacts.guest(GUEST)?.to_path_buf(), GUEST.to_owned())])
}

/// Starts the guest with these options besides its own, and waits until it has checked its memory once.
pub fn start(host: &mut Host, options: &str) -> Result<()> {
    start_with(host, 4, options)
}

/// The same with this much memory to check.
pub fn start_with(host: &mut Host, mib: u64, options: &str) -> Result<()> {
    let words = format!("mib={mib} rounds=0 every={EVERY}");
    host.ask(&format!("vm create g --kernel {GUEST} --cmdline \"{words}\" --memory 64M --nic {options} --start"))?;
    let mut console = host.attach("g")?;
    console.expect(&format!("HASH {EVERY} "), GUEST_BOOT_LIMIT)?;
    console.leave()
}

/// Sees the guest go on where it is now: it tells of its rounds twice more after `last`, and no page of its memory changed on the way. What the
/// console printed elsewhere is shown first. Gives the last round.
pub fn check(host: &mut Host, last: u64) -> Result<u64> {
    check_after(host, last + 2 * EVERY)
}

/// The same up to the round `last`, which it tells of.
pub fn check_after(host: &mut Host, last: u64) -> Result<u64> {
    let mut console = host.attach("g")?;
    let (which, before) = console.expect_any(&[&format!("HASH {last} "), "changed"], GUEST_BOOT_LIMIT)?;
    ensure!(which == 0 && !before.contains("changed"), console.emulator().failure("the guest's memory changed"));
    console.leave()?;
    Ok(last)
}

/// There, back, and there again, with what came while it ran; then the guest is told to go to a host that does not see its
/// CD, and to one that does not know the caller, and stays where it is.
pub fn there_and_back(artifacts: &Artifacts) -> Result<()> {
    let (disk, cd) = (make_disk(&artifacts.logs, "migrate")?, cdrom::make_disk(artifacts, "migrate")?);
    let (sockets, guest) = (Pair::sockets()?, modules(artifacts)?);
    let host = |index: usize| {
        let launch = machine(artifacts, "migrate", index, &guest, &sockets[index])?.memory_mib(512).shared_disk(&disk);
        Ok(if index == 1 { launch.disk(&cd) } else { launch })
    };
    let mut pair = Pair::boot_with(host, artifacts)?;
    start(&mut pair.hosts[0], "--reserved 32M")?;
    pair.hosts[0].ask("vm set g --cpu-limit 50 --net-rate 1G")?;
    pair.hosts[0].ask("vm add g --disk small")?;
    pair.hosts[0].ask("vm add g --nic mac=02:00:00:00:00:77")?;
    let (mut last, mut helped_frames) = (EVERY, 0);
    for from in [0, 1, 0] {
        let moved = pair.migrate(from, "g")?;
        eprintln!("        {moved}");
        helped_frames += moved["helped_frames"].as_u64().context("no helped_frames")?;
        let shown = pair.hosts[1 - from].ask("vm show g")?;
        let limits = &shown["limits"];
        ensure!(shown["reserved_bytes"] == 32 << 20, "what is reserved stayed: {shown}");
        ensure!(limits["cpu_percent"] == 50 && limits["net_bytes_per_s"] == 1 << 30, "its limits stayed: {limits}");
        let has_all = shown["disks"][0] == "small" && shown["nics"][1] == "02:00:00:00:00:77";
        ensure!(has_all, "what came while it ran stayed: {shown}");
        last = check(&mut pair.hosts[1 - from], last)?;
    }
    // Half of the time nobody else wants the guest's CPU.
    ensure!(helped_frames > 0, "the cipher had one CPU alone");
    pair.hosts[1].ask("vm add g --cdrom iso")?;
    stays(&mut pair, "does not see disk iso")?;
    pair.hosts[0].ask("peer remove b")?;
    stays(&mut pair, "does not trust")?;
    check(&mut pair.hosts[1], last)?;
    fs::remove_file(disk)?;
    fs::remove_file(cd)?;
    Ok(())
}

/// The guest is refused at the first host, in these words.
fn stays(pair: &mut Pair, why: &str) -> Result<()> {
    pair.hosts[1].ask(&format!("vm migrate g to a {OPTIONS}"))?;
    let refused = pair.wait_end(1)?;
    let reason = refused["reason"].as_str().unwrap_or_default();
    ensure!(refused["phase"] == "stayed" && reason.contains(why), "it was not refused as it should be: {refused}");
    Ok(())
}

/// The link is cut while memory is sent, and the VM stays; a second try succeeds.
pub fn link_cut(artifacts: &Artifacts) -> Result<()> {
    let mut pair = Pair::boot(artifacts, "migrate_link_cut")?;
    start(&mut pair.hosts[0], "")?;
    let last = cut_off(&mut pair, EVERY, set_link)?;
    pair.migrate(0, "g")?;
    check(&mut pair.hosts[1], last).map(drop)
}

/// Cuts the link while the guest's memory is sent from the first host, and mends it again. Gives the last round.
pub fn cut_off(pair: &mut Pair, last: u64, set_link: impl Fn(&mut Pair, bool) -> Result<()>) -> Result<u64> {
    pair.hosts[0].ask("vm migrate g to b --downtime 1 --timeout 100 --bandwidth 1")?;
    set_link(pair, false)?;
    let stayed = pair.wait_end(0)?;
    ensure!(stayed["phase"] == "stayed", "without a link it did not stay: {stayed}");
    let last = check(&mut pair.hosts[0], last)?;
    set_link(pair, true)?;
    pair.hosts[1].wait_gone("g")?;
    Ok(last)
}

/// Cuts the first host's cable, or mends it.
fn set_link(pair: &mut Pair, is_up: bool) -> Result<()> {
    pair.hosts[0].emulator().monitor(if is_up { "set_link net0 on" } else { "set_link net0 off" }).map(drop)
}

/// The disk cannot make stable what was written: the guest is not saved, and does not move; a second try succeeds.
pub fn disk_error(artifacts: &Artifacts) -> Result<()> {
    let disk = make_disk(&artifacts.logs, "migrate_disk_error")?;
    let (sockets, guest) = (Pair::sockets()?, modules(artifacts)?);
    let host = |index: usize| {
        let launch = machine(artifacts, "migrate_disk_error", index, &guest, &sockets[index])?.memory_mib(512);
        Ok(if index == 0 { launch.disk_failing_to_flush(&disk, &[1, 2]) } else { launch.shared_disk(&disk) })
    };
    let mut pair = Pair::boot_with(host, artifacts)?;
    start(&mut pair.hosts[0], "--disk small")?;
    let refusal = pair.hosts[0].refusal("vm save g --to slot")?;
    ensure!(refusal.contains("disk slot failed"), "{refusal}");
    let last = check(&mut pair.hosts[0], EVERY)?;
    pair.hosts[0].ask(&format!("vm migrate g to b {OPTIONS}"))?;
    let stayed = pair.wait_end(0)?;
    let reason = stayed["reason"].as_str().unwrap_or_default();
    ensure!(stayed["phase"] == "stayed" && reason.contains("cannot make stable"), "with a bad disk: {stayed}");
    let last = check(&mut pair.hosts[0], last)?;
    pair.hosts[1].wait_gone("g")?;
    pair.migrate(0, "g")?;
    check(&mut pair.hosts[1], last).map(drop)
}

/// The guest goes on at the target without most of its memory, which follows; the link is cut meanwhile, and is back.
pub fn postcopy(artifacts: &Artifacts) -> Result<()> {
    let mut pair = Pair::boot(artifacts, "migrate_postcopy")?;
    start_with(&mut pair.hosts[0], 8, "")?;
    let last = goes_ahead(&mut pair, EVERY, set_link)?;
    // Whole again, it moves on as any other.
    pair.migrate(1, "g")?;
    check(&mut pair.hosts[0], last)?;
    given_up(&mut pair)
}

/// Lets the guest go ahead to the second host, without most of its memory, and cuts the link until it waits there. Gives the
/// last round.
pub fn goes_ahead(pair: &mut Pair, last: u64, set_link: impl Fn(&mut Pair, bool) -> Result<()>) -> Result<u64> {
    pair.hosts[0].ask("vm migrate g to b --downtime 1 --timeout 1 --strategy postcopy --bandwidth 1")?;
    pair.wait_move(0, "sending the rest", |_| true)?;
    set_link(pair, false)?;
    pair.hosts[1].wait_state("g", "paused", MOVE_LIMIT)?;
    let serves = pair.hosts[0].state("g")?;
    ensure!(serves.as_deref() == Some("serving"), "the source, which has only its memory, calls it {serves:?}");
    let refusal = pair.hosts[1].refusal("vm resume g")?;
    ensure!(refusal.contains("still on its way"), "a guest without its memory was let go on: {refusal}");
    set_link(pair, true)?;
    let moved = pair.wait_end(0)?;
    ensure!(moved["phase"] == "moved", pair.hosts[0].emulator().failure(&format!("it did not move: {moved}")));
    eprintln!("        {moved}");
    pair.hosts[0].wait_gone("g")?;
    check(&mut pair.hosts[1], last)
}

/// The operator gives up a target that cannot be reached: the guest, which may run there, is not started at the source.
fn given_up(pair: &mut Pair) -> Result<()> {
    pair.hosts[0].ask("vm migrate g to b --downtime 1 --timeout 1 --strategy postcopy --bandwidth 1")?;
    pair.wait_move(0, "sending the rest", |_| true)?;
    pair.hosts[0].emulator().monitor("set_link net0 off")?;
    pair.hosts[1].wait_state("g", "paused", MOVE_LIMIT)?;
    // That host may have noticed first.
    let until = pair.hosts[0].emulator().elapsed() + MOVE_LIMIT;
    while let Err(error) = pair.hosts[0].ask("migrate cancel g") {
        ensure!(pair.hosts[0].emulator().elapsed() < until, error);
        std::thread::sleep(Duration::from_millis(500));
    }
    let lost = pair.wait_end(0)?;
    ensure!(lost["phase"] == "lost", "it ended as {lost}");
    let refusal = pair.hosts[0].refusal("vm start g")?;
    ensure!(refusal.contains("was given to b"), "it was started where it was given away: {refusal}");
    Ok(())
}
