//! The host's drivers that no other program uses: a Debian guest with its root on a disk of each kind, checksums under
//! load, and a disk that is pulled meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{load_time, pull, tiny};
use crate::{
    Artifacts, Console, DEBIAN_DISK, DEBIAN_INITRD, DEBIAN_PASSWORD, DiskBus, Host, LINUX, Launch, Machine,
    SCRATCH_DISK,
};

/// Four writers at once, each of its own place past the cache, then all of it read again: prints the checksum of what was
/// written and of what each place holds.
const LOAD: &str = "dd if=/dev/urandom of=/root/pattern bs=1M count=12 status=none; md5sum < /root/pattern; \
    for i in 1 2 3 4; do dd if=/root/pattern of=/dev/vdb bs=32k seek=$((i*384)) oflag=direct status=none & done; wait; \
    sync; for i in 1 2 3 4; do dd if=/dev/vdb bs=256k skip=$((i*48)) count=48 iflag=direct status=none | md5sum; done";
/// For the host to give a pulled disk up.
const PULL_LIMIT: Duration = Duration::from_secs(120);

/// virtio disks: the guest's root on one, the load on another.
pub fn virtio(artifacts: &Artifacts) -> Result<()> {
    let launch = debian_launch(artifacts, "virtio_blk")?.disk(&artifacts.datastore).disk(&artifacts.datastore);
    let mut host = artifacts.boot(&launch)?;
    let mut console = start_debian(&mut host, "disk0", "disk1")?;
    check_load(&mut console)?;
    console.leave()?;
    host.power_off()
}

/// SATA disks behind AHCI controllers: the guest's root on one, the load on another, whose controller is then pulled.
pub fn ahci(artifacts: &Artifacts) -> Result<()> {
    let launch = debian_launch(artifacts, "ahci")?.disk_bus(DiskBus::Ahci).disk(&artifacts.datastore);
    let launch = launch
        .argument("-device", "pcie-root-port,id=port1,slot=1")
        .argument("-device", "ich9-ahci,id=pulled,bus=port1")
        .argument("-drive", format!("if=none,id=other,format=raw,snapshot=on,file={}", artifacts.datastore.display()))
        .argument("-device", "ide-hd,bus=pulled.0,drive=other,serial=PULLED");
    survives_a_pull(artifacts, &launch)
}

/// ATA disks on a PIIX3: one guest's root and its load share a channel, another guest has a disk on the other, beside an
/// optical drive, which is told of.
pub fn ata(artifacts: &Artifacts) -> Result<()> {
    let launch = debian_launch(artifacts, "ata")?.machine(Machine::Pc).disk_bus(DiskBus::Ata);
    let launch = (0..3).fold(launch, |launch, _| launch.disk(&artifacts.datastore));
    let mut host = artifacts.boot(&launch.argument("-device", "ide-cd,bus=ide.1,unit=1"))?;
    let log = host.command("log")?;
    ensure!(log.contains("an optical drive (ATAPI), which is not driven"), "the log tells of no optical drive: {log}");
    let mut console = start_debian(&mut host, "disk0", "disk1")?;
    check_load(&mut console)?;
    console.leave()?;
    tiny::run_selftest(&mut host, "t", "disk", &format!("--disk {SCRATCH_DISK}@disk2"))?;
    host.power_off()
}

/// NVMe disks: the guest's root on one, the load on another, which is then pulled.
pub fn nvme(artifacts: &Artifacts) -> Result<()> {
    let launch = debian_launch(artifacts, "nvme")?.disk_bus(DiskBus::Nvme).disk(&artifacts.datastore);
    let launch = launch
        .argument("-device", "pcie-root-port,id=port1,slot=1")
        .argument("-drive", format!("if=none,id=other,format=raw,snapshot=on,file={}", artifacts.datastore.display()))
        .argument("-device", "nvme,id=pulled,bus=port1,drive=other,serial=PULLED");
    survives_a_pull(artifacts, &launch)
}

/// Debian on two disks under load, of which the second is pulled: its transfers fail, and nothing else does.
fn survives_a_pull(artifacts: &Artifacts, launch: &Launch) -> Result<()> {
    let mut host = artifacts.boot(launch)?;
    check_measured(&mut host, "disk0")?;
    let mut console = start_debian(&mut host, "disk0", "disk1")?;
    check_load(&mut console)?;
    console.run("{ while dd if=/dev/vdb of=/dev/null bs=64k iflag=direct; do :; done > /dev/null 2>&1 & }")?;
    pull(console.emulator())?;
    console.run("wait; ! dd if=/dev/vdb of=/dev/null bs=4k count=1 iflag=direct 2> /dev/null")?;
    console.run("dd if=/dev/vda of=/dev/null bs=1M count=8 iflag=direct status=none").context("the other disk")?;
    console.leave()?;
    check_failed(&mut host, "disk1")?;
    host.refusal("disk measure disk1")?;
    host.refusal("disk measure nothing")?;
    host.power_off()
}

/// The host measures a disk under every load.
fn check_measured(host: &mut Host, disk: &str) -> Result<()> {
    let measured = host.ask(&format!("disk measure {disk}"))?;
    let loads = measured["loads"].as_array().map_or(&[][..], Vec::as_slice);
    let depths: Vec<_> = loads.iter().filter_map(|load| load["depth"].as_u64()).collect();
    ensure!(depths == [8, 1, 32], "not all was measured: {measured}");
    for load in loads {
        ensure!(load["reads"].as_u64() >= load["depth"].as_u64(), "a load read too little: {measured}");
    }
    Ok(())
}

/// A machine with the Debian guest's files and no disk.
fn debian_launch(artifacts: &Artifacts, name: &str) -> Result<Launch> {
    artifacts.bare_with(name, &[(&artifacts.debian_initrd, DEBIAN_INITRD)])
}

/// Starts the Debian guest with its root on one host disk and the scratch disk on another, and logs in.
fn start_debian<'host>(host: &'host mut Host, root: &str, scratch: &str) -> Result<Console<'host>> {
    host.ask(&format!(
        "vm create d --kernel {LINUX} --initrd {DEBIAN_INITRD} --cmdline \"root=/dev/vda rw console=ttyS0 quiet\" \
         --memory 512M --disk {DEBIAN_DISK}@{root} --disk {SCRATCH_DISK}@{scratch} --start"
    ))?;
    let mut console = host.attach("d")?;
    console.login("root", DEBIAN_PASSWORD)?;
    Ok(console)
}

/// Loads the scratch disk, for as long as [`load_time`] says and once at least.
fn check_load(console: &mut Console<'_>) -> Result<()> {
    let until = Instant::now() + load_time();
    for round in 1.. {
        let sums = console.run(LOAD)?;
        let sums: Vec<&str> = sums.lines().filter(|line| line.ends_with('-')).collect();
        ensure!(
            sums.len() == 5 && sums.iter().all(|sum| *sum == sums[0]),
            "round {round}: what was read is not what was written: {sums:?}"
        );
        if Instant::now() >= until {
            break;
        }
    }
    Ok(())
}

/// The host says of the disk that it has failed.
fn check_failed(host: &mut Host, disk: &str) -> Result<()> {
    let until = Instant::now() + PULL_LIMIT;
    loop {
        let list = host.ask("disk list")?;
        let of_disk = list.as_array().into_iter().flatten().filter(|entry| entry["disk"] == disk);
        let states: Vec<_> = of_disk.map(|entry| &entry["state"]).collect();
        if !states.is_empty() && states.iter().all(|state| **state == "failed") {
            break;
        }
        ensure!(Instant::now() < until, "{disk} is not said to have failed: {list}");
        std::thread::sleep(Duration::from_millis(500));
    }
    let log = host.command("log")?;
    ensure!(log.contains("the disk has failed"), "the log does not say so: {log}");
    Ok(())
}
