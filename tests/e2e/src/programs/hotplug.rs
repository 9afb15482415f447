//! Disks and network cards come and go while a Linux guest runs, and what it wrote to them stays, also past a save.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::tiny::{self, Guest};
use super::{cdrom, saved};
use crate::{Artifacts, Host, SCRATCH_DISK};

const MAC: &str = "02:00:00:00:00:77";
/// Writes what nobody can guess to the disk and says its checksum.
const WRITE: &str = "dd if=/dev/urandom of=/fill bs=1M count=4 2>/dev/null; dd if=/fill of=/dev/vda bs=1M conv=fsync 2>/dev/null; md5sum /fill | cut -c1-32";
const SUM: &str = "dd if=/dev/vda bs=1M count=4 2>/dev/null | md5sum | cut -c1-32";

/// A disk and a card are added to a guest, used, removed and pulled; with a CD, they are saved and restored.
pub fn hotplug(artifacts: &Artifacts) -> Result<()> {
    let (disk, cd) = (saved::make_disk(&artifacts.logs, "hotplug")?, cdrom::make_disk(artifacts, "hotplug")?);
    let boot = || artifacts.boot(&artifacts.fast("hotplug")?.kept_disk(&disk).disk(&cd));
    let mut guest = Guest::start(boot()?, "")?;
    come_and_go(&mut guest)?;
    disk_is_pulled(&mut guest)?;
    guest.host.ask(&format!("vm remove t --disk {SCRATCH_DISK}"))?;
    guest.expect("test ! -b /dev/vda")?;
    let sums = all_come(&mut guest)?;
    guest.host.ask("vm save t --to slot")?;
    guest.host.ask("vm restore t --from slot")?;
    are_whole(&mut guest, &sums).context("restored on the same host")?;
    guest.host.ask("vm save t --to slot")?;
    let mut guest = guest.restart_host(boot)?;
    restore(&mut guest.host)?;
    are_whole(&mut guest, &sums).context("restored on the host after it restarted")?;
    all_go(&mut guest).context("restored on the host after it restarted")?;
    guest.host.ask("vm kill t")?;
    guest.host.power_off()?;
    fs::remove_file(disk)?;
    fs::remove_file(cd)?;
    Ok(())
}

/// A CD, a disk and a card come, in this order, and the guest uses them; gives the checksums of what it reads.
fn all_come(guest: &mut Guest) -> Result<[String; 2]> {
    guest.host.ask("vm add t --cdrom iso")?;
    guest.expect("test -b /dev/vda")?;
    guest.host.ask("vm add t --disk other")?;
    guest.expect("test -b /dev/vdb")?;
    guest.host.ask(&format!("vm add t --nic mac={MAC}"))?;
    guest.expect(&format!("grep -q {MAC} /sys/class/net/eth0/address"))?;
    guest.run("ip link set eth0 up; udhcpc -q -n -t 20 -i eth0 -s /bin/dhcp")?;
    let written = guest.run(&WRITE.replace("vda", "vdb"))?;
    let sums = [guest.run(SUM)?, written];
    are_whole(guest, &sums)?;
    Ok(sums)
}

/// The guest reads the same from CD and disk, past its cache, writes to the disk alone, and its card is on the network.
fn are_whole(guest: &mut Guest, sums: &[String; 2]) -> Result<()> {
    guest.run("echo 3 > /proc/sys/vm/drop_caches")?;
    let now = [guest.run(SUM)?, guest.run(&SUM.replace("vda", "vdb"))?];
    ensure!(now == *sums && now[0] != now[1], "the CD and the disk were {sums:?} and are {now:?}");
    guest.expect("dd if=/fill of=/dev/vdb bs=1M conv=fsync")?;
    guest.expect("test $(cat /sys/block/vda/ro) = 1")?;
    guest.expect("ping -c 1 -W 1 10.0.2.2 >/dev/null")
}

/// A definition that lacks the CD, or has another disk, is refused and stays as it was; one that names all in another order
/// than that in which they came is not.
fn restore(host: &mut Host) -> Result<()> {
    let define = |options: &str| {
        let what = "--kernel linux --initrd tiny-initrd --cmdline \"console=ttyS0 quiet shell=yes\"";
        format!("vm create t {what} {options} --nic mac={MAC}")
    };
    for options in ["--disk other", "--disk other --cdrom small", "--disk scratch --disk other"] {
        host.ask(&define(options))?;
        let refusal = host.refusal("vm restore t --from slot")?;
        ensure!(refusal.contains("this VM lacks its disk with the serial number"), "{options}: {refusal}");
        let disks = host.ask("vm show t")?["disks"].clone();
        let named = options.split(" --cdrom ").next().map(|disks| disks.replace("--disk ", ""));
        let listed = disks.as_array().map(|disks| disks.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "));
        ensure!(listed == named, "{options}: its disks are {disks} now");
        host.ask("vm delete t")?;
    }
    host.ask(&define("--disk other --cdrom iso"))?;
    host.ask("vm restore t --from slot").map(drop)
}

/// The guest lets go of what came before it was saved, and one that comes now comes.
fn all_go(guest: &mut Guest) -> Result<()> {
    guest.host.ask("vm remove t --disk other")?;
    guest.expect("test ! -b /dev/vdb")?;
    guest.host.ask("vm remove t --cdrom iso")?;
    guest.expect("test ! -b /dev/vda")?;
    guest.host.ask("vm remove t --nic")?;
    guest.expect("test ! -e /sys/class/net/eth0")?;
    guest.host.ask("vm add t --disk other")?;
    guest.expect("test -b /dev/vda")
}

/// A disk and a card come and go as their guest lets them.
pub fn come_and_go(guest: &mut Guest) -> Result<()> {
    let sum = disk_comes(guest)?;
    disk_goes(guest, &sum)?;
    card_comes_and_goes(guest)
}

fn disk_comes(guest: &mut Guest) -> Result<String> {
    let host = &mut guest.host;
    let refusal = host.refusal("vm add t --disk nobody")?;
    ensure!(refusal.contains("there is no disk nobody"), "{refusal}");
    host.ask(&format!("vm add t --disk {SCRATCH_DISK}"))?;
    let refusal = host.refusal(&format!("vm add t --disk {SCRATCH_DISK}"))?;
    ensure!(refusal.contains("t has disk scratch already"), "{refusal}");
    tiny::create(host, "u", "", &format!("--disk {SCRATCH_DISK}")).err().map_or_else(
        || Err(anyhow::anyhow!("another VM got the disk")),
        |error| {
            ensure!(format!("{error:#}").contains("in use by t"), "{error:#}");
            Ok(())
        },
    )?;
    guest.expect("test -b /dev/vda")?;
    let sum = guest.run(WRITE)?;
    ensure!(sum.len() == 32, "no checksum: {sum}");
    Ok(sum)
}

fn disk_goes(guest: &mut Guest, sum: &str) -> Result<()> {
    guest.host.ask(&format!("vm remove t --disk {SCRATCH_DISK}"))?;
    guest.expect("test ! -b /dev/vda")?;
    let disk = guest.host.ask(&format!("disk show {SCRATCH_DISK}"))?;
    ensure!(disk[0]["used_by"].as_array().is_some_and(Vec::is_empty), "a removed disk is still in use: {disk}");
    let refusal = guest.host.refusal(&format!("vm remove t --disk {SCRATCH_DISK}"))?;
    ensure!(refusal.contains("t has no disk scratch"), "{refusal}");
    guest.host.ask(&format!("vm add t --disk {SCRATCH_DISK}"))?;
    guest.expect("test -b /dev/vda")?;
    let again = guest.run(SUM)?;
    ensure!(again == sum, "what was written is not there: {again} and not {sum}");
    guest.host.ask(&format!("vm remove t --disk {SCRATCH_DISK}"))?;
    guest.expect("test ! -b /dev/vda")
}

fn card_comes_and_goes(guest: &mut Guest) -> Result<()> {
    guest.host.ask(&format!("vm add t --nic mac={MAC}"))?;
    guest.expect(&format!("grep -q {MAC} /sys/class/net/*/address"))?;
    let card = format!("$(dirname $(grep -l {MAC} /sys/class/net/*/address))");
    guest.run(&format!("ip link set $(basename {card}) up"))?;
    guest.expect(&format!("test $(cat {card}/carrier) = 1"))?;
    guest.host.ask("vm remove t --nic")?;
    guest.expect(&format!("! grep -q {MAC} /sys/class/net/*/address"))?;
    let ports = guest.host.ask("net")?;
    ensure!(!ports.to_string().contains(MAC), "the switch still has the card: {ports}");
    Ok(())
}

/// Whatever the guest does with it: another VM has the disk at once, and the guest goes on, whose drivers wait for nothing:
/// else what is plugged in afterwards would not come.
fn disk_is_pulled(guest: &mut Guest) -> Result<()> {
    guest.host.ask(&format!("vm add t --disk {SCRATCH_DISK}"))?;
    guest.expect("test -b /dev/vda")?;
    guest
        .run("for n in 1 2 3 4; do { while dd if=/dev/vda of=/dev/null bs=64k; do :; done; } >/dev/null 2>&1 & done")?;
    guest.run("{ while dd if=/dev/zero of=/dev/vda bs=64k count=64 conv=fsync; do :; done; } >/dev/null 2>&1 &")?;
    guest.host.ask(&format!("vm remove t --disk {SCRATCH_DISK} --force"))?;
    tiny::run_selftest(&mut guest.host, "u", "disk", &format!("--disk {SCRATCH_DISK}"))?;
    guest.expect("test ! -b /dev/vda")?;
    guest.host.ask(&format!("vm add t --disk {SCRATCH_DISK}"))?;
    guest.expect("test -b /dev/vda")?;
    guest.expect("dd if=/dev/vda of=/dev/null bs=64k count=1")
}
