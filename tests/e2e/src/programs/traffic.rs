//! Two hosts, a guest with a disk that both see, and its client, which never stops asking: whatever goes wrong on the way,
//! the client misses nothing. The main type is [`Stage`]; `debian` has a larger guest move on it.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::demo::free_bytes;
use super::migrate::{Pair, machine};
use super::tiny;
use crate::client::{Client, Tally};
use crate::wire::Wire;
use crate::{Artifacts, COMMAND_LIMIT, GUEST_BOOT_LIMIT, Host, LINUX, Launch, SCRATCH_DISK, TINY_INITRD};

/// Where the guest and its client are.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 9);
const CLIENT: [u8; 4] = [10, 9, 0, 100];
pub(super) const PORT: u16 = 7000;
const GUEST_MIB: u64 = 128;
/// Questions that are answered between two moves, at least.
const ANSWERS: u64 = 30;
/// How far the guest's clock may jump.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(10);
/// How far it drifts besides: an emulated host knows its TSC's rate to one part in so many.
const DRIFT_PART: u32 = 10_000;
/// A segment of the hosts' own with so many bytes is one with memory in it.
const CORRUPTED_BYTES: usize = 1400;
/// The shared disk: its size, and where its one partition begins.
const DISK_MIB: u64 = 16;
const PARTITION_AT: u64 = 1 << 20;
/// The guest's own unit of its disk, and how many it uses in turn.
const SECTOR: usize = 512;
const SECTORS: u64 = 8192;

/// Whatever goes wrong on the way, the guest stays where it is, and another try succeeds.
pub fn faults(artifacts: &Artifacts) -> Result<()> {
    let disk = make_disk(&artifacts.logs, "migrate_faults")?;
    let guest =
        vec![(artifacts.linux.clone(), LINUX.to_owned()), (artifacts.tiny_initrd.clone(), TINY_INITRD.to_owned())];
    let mut stage = Stage::set(artifacts, "migrate_faults", &disk, guest, start)?;
    let most = ((free_bytes(&mut stage.pair.hosts[1])? >> 20) - GUEST_MIB / 2).next_multiple_of(2);
    stage.refused_for_want_of("the memory", &format!("--memory {most}M"), "memory").context("a target without room")?;
    stage.refused_for_want_of("the disk", "--disk scratch", "in use").context("a target whose disk is in use")?;
    stage.stays("the link was cut", "", |stage| {
        stage.wire.cut(1, true);
        Ok(())
    })?;
    stage.wire.cut(1, false);
    stage.pair.hosts[1].wait_gone("t")?;
    stage.stays("bytes were changed on the way", "", |stage| {
        stage.wire.corrupt(0, CORRUPTED_BYTES);
        Ok(())
    })?;
    ensure!(stage.wire.has_corrupted(0), "nothing was changed on the way");
    stage.stays("the source was told to cancel", "cancelled", |stage| {
        stage.pair.hosts[0].ask("migrate cancel t").map(drop)
    })?;
    stage.stays("the target was told to cancel", "cancelled", |stage| {
        stage.pair.hosts[1].ask("migrate cancel t").map(drop)
    })?;
    stage.stays("the target died", "", |stage| {
        stage.pair.hosts.pop();
        Ok(())
    })?;
    let reborn = artifacts.boot(&(stage.machine)(1)?)?;
    stage.pair.hosts.push(reborn);
    stage.pair.hosts[0].ask("peer remove b")?;
    stage.pair.introduce(0)?;
    stage.pair.introduce(1)?;
    stage.move_once(0).context("after all that")?;
    stage.end(1, &disk)
}

fn start(host: &mut Host) -> Result<()> {
    let words = format!("address={ADDRESS}/24 serve={PORT}");
    let options = format!("--memory {GUEST_MIB}M --vcpus 2 --disk {SCRATCH_DISK} --nic");
    tiny::create(host, "t", &words, &options)?;
    let mut console = host.attach("t")?;
    console.expect("SERVE ready", GUEST_BOOT_LIMIT)?;
    console.leave()
}

type MakeMachine<'a> = Box<dyn Fn(usize) -> Result<Launch> + 'a>;

/// Two hosts, a disk that both see, the guest `t` on the first, and its client.
pub(super) struct Stage<'a> {
    pub(super) pair: Pair,
    pub(super) client: Client,
    wire: Wire,
    machine: MakeMachine<'a>,
}

impl<'a> Stage<'a> {
    /// Switches both hosts on, with these boot modules; `start` starts the guest, and waits until it answers.
    pub(super) fn set(
        artifacts: &'a Artifacts,
        name: &'a str,
        disk: &Path,
        modules: Vec<(PathBuf, String)>,
        start: impl FnOnce(&mut Host) -> Result<()>,
    ) -> Result<Self> {
        let wire = Wire::new(name, 2)?;
        let netdevs = [wire.netdev(0), wire.netdev(1)];
        let shared = disk.to_owned();
        let host = move |index: usize| {
            let launch = machine(artifacts, name, index, &modules, &netdevs[index])?;
            Ok(launch.memory_mib(768).shared_disk(&shared))
        };
        let mut pair = Pair::boot_with(&host, artifacts)?;
        start(&mut pair.hosts[0])?;
        let mut client = Client::start(&wire, CLIENT, ADDRESS.octets(), PORT);
        client.wait(ANSWERS)?;
        Ok(Self { pair, client, wire, machine: Box::new(host) })
    }

    /// Moves the guest away from a host, and sees that its client noticed nothing but a pause.
    pub(super) fn move_once(&mut self, from: usize) -> Result<()> {
        self.client.tally()?;
        let before = self.client.wait(ANSWERS)?;
        let measured = Instant::now();
        let announced = self.wire.announcements();
        let moved = self.pair.migrate(from, "t")?;
        let during = self.client.tally()?;
        let after = self.client.wait(ANSWERS)?;
        ensure!(self.wire.announcements() > announced, "the other host did not say where the guest is");
        report(&moved, &before, &during, &after);
        // What the measurement itself cannot tell comes on top.
        let tolerance = CLOCK_TOLERANCE + before.round_trip + after.round_trip + measured.elapsed() / DRIFT_PART;
        let jump = Duration::from_nanos((after.ahead_ns - before.ahead_ns).unsigned_abs());
        ensure!(jump <= tolerance, "the guest's clock jumped by {jump:?}");
        let target = &mut self.pair.hosts[1 - from];
        target.attach("t")?.expect("SERVE ready", COMMAND_LIMIT).context("what the console had printed is gone")?;
        target.emulator().send("\x1d")?;
        target.command("").map(drop)
    }

    /// A VM on the target takes what the guest needs there: the guest stays, and the reason says why.
    fn refused_for_want_of(&mut self, what: &str, options: &str, why: &str) -> Result<()> {
        tiny::create(&mut self.pair.hosts[1], "other", "linger=yes", options)?;
        self.pair.hosts[0].ask("vm migrate t to b")?;
        let stayed = self.pair.wait_end(0)?;
        let reason = stayed["reason"].as_str().unwrap_or_default();
        ensure!(stayed["phase"] == "stayed" && reason.contains(why), "without {what} there: {stayed}");
        self.pair.hosts[1].ask("vm kill other")?;
        self.pair.hosts[1].ask("vm delete other")?;
        self.client.wait(ANSWERS).map(drop)
    }

    /// Begins a slow move, has something happen to it, and sees the guest stay and answer.
    fn stays(&mut self, what: &str, why: &str, happen: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.pair.hosts[0].ask("vm migrate t to b --timeout 100 --bandwidth 2")?;
        self.client.wait(ANSWERS)?;
        happen(self).context(what.to_owned())?;
        let stayed = self.pair.wait_end(0).context(what.to_owned())?;
        let reason = stayed["reason"].as_str().unwrap_or_default();
        ensure!(stayed["phase"] == "stayed" && reason.contains(why), "after {what}: {stayed}");
        eprintln!("        {what}: {reason}");
        self.client.wait(ANSWERS).with_context(|| format!("after {what}"))?;
        if let Some(target) = self.pair.hosts.get_mut(1).filter(|_| !self.wire.is_cut(1)) {
            target.wait_gone("t")?;
        }
        Ok(())
    }

    /// Ends client and guest, which is at this host, and looks whether all is well.
    fn end(mut self, here: usize, disk: &Path) -> Result<()> {
        let answered = self.client.wait(1)?.answered;
        self.client.finish()?;
        self.pair.hosts[here].ask("vm kill t")?;
        check_answers(disk, PARTITION_AT, answered)
    }
}

fn report(moved: &serde_json::Value, before: &Tally, during: &Tally, after: &Tally) {
    let ms = |duration: Duration| duration.as_millis();
    eprintln!(
        "        {} ms in all, {} ms down, {} KiB; the longest pause {} ms; the clock jumped {:.1} ms (round trips {} and {} ms)",
        moved["total_ns"].as_u64().unwrap_or(0) / 1_000_000,
        moved["downtime_ns"].as_u64().unwrap_or(0) / 1_000_000,
        moved["bytes"].as_u64().unwrap_or(0) >> 10,
        ms(during.gap_max.max(after.gap_max)),
        (after.ahead_ns - before.ahead_ns) as f64 / 1e6,
        ms(before.round_trip),
        ms(after.round_trip),
    );
}

fn make_disk(folder: &Path, name: &str) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{name}.img"));
    File::create(&path)?.set_len(DISK_MIB << 20)?;
    let mut command = Command::new("sgdisk");
    command.args(["--clear", "--set-alignment=2048", "--new=1:2048:+8M", &format!("--change-name=1:{SCRATCH_DISK}")]);
    let output = command.arg(&path).output().context("starting sgdisk")?;
    ensure!(output.status.success(), "sgdisk: {}", String::from_utf8_lossy(&output.stderr));
    Ok(path)
}

/// What the guest answered is in a file from `start` on: each sector has the last number that was written there.
pub(super) fn check_answers(file: &Path, start: u64, answered: u64) -> Result<()> {
    let file = File::open(file)?;
    let mut sector = [0; SECTOR];
    for number in answered.saturating_sub(SECTORS - 1).max(1)..=answered {
        file.read_exact_at(&mut sector, start + number % SECTORS * SECTOR as u64)?;
        let is_right = sector.chunks_exact(8).all(|word| word == number.to_le_bytes());
        ensure!(is_right, "what was answered to question {number} is not on the disk");
    }
    Ok(())
}
