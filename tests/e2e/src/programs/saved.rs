//! `vm save` and `vm restore`: a guest goes on where it was, on the same host and on the next, and every mistake costs
//! nothing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::{guests, tiny};
use crate::{Accel, Artifacts, GUEST_BOOT_LIMIT, Host, Model};

/// For the guest to print a line: it waits for a ping's answer first.
const LINE_LIMIT: Duration = Duration::from_secs(120);
/// How far the guest's clock may be from this machine's: the emulated clock chips count whole seconds, and the machine
/// may be loaded.
const CLOCK_TOLERANCE_S: u64 = 20;
/// The guest that is saved for another vendor's processor.
const GUEST: &str = "spin";
/// What it is made of.
const OPTIONS: &str = "--memory 192M --vcpus 2 --disk scratch --nic";
/// Where the first partition of the disk begins, and a byte of its header.
pub const PARTITION_AT: u64 = 1 << 20;
const HEADER_AT: u64 = PARTITION_AT + 100;

/// Saves a guest and restores it, here and after the host restarted.
pub fn save_restore(artifacts: &Artifacts) -> Result<()> {
    let disk = make_disk(&artifacts.logs, "save_restore")?;
    let mut host = boot(artifacts, &disk)?;
    tiny::create(&mut host, "t", "watch=yes", OPTIONS)?;
    host.attach("t")?.expect(" up\r", GUEST_BOOT_LIMIT)?;
    host.emulator().send("\x1d")?;
    host.command("")?;
    refuse(&mut host)?;
    let before = save(&mut host)?;
    ensure!(host.state("t")?.as_deref() == Some("saved"), "the VM is not saved");
    let refusal = host.refusal("vm start t")?;
    ensure!(refusal.contains("t is saved"), "{refusal}");
    let refusal = host.refusal("vm restore t --from other")?;
    ensure!(refusal.contains("no saved VM is there"), "{refusal}");
    restore(&mut host, before).context("on the same host")?;
    let refusal = host.refusal("vm restore t --from slot")?;
    ensure!(refusal.contains("running already"), "{refusal}");
    host.ask("vm set t --iops 90000")?;
    let before = save(&mut host)?;
    host.power_off()?;
    after_restart(artifacts, &disk, before).context("on the host after it restarted")
}

/// A guest that was saved on AMD-V is refused on VT-x, and the other way round: in words, and what is saved stays.
pub fn other_vendor(artifacts: &Artifacts) -> Result<()> {
    let disk = make_disk(&artifacts.logs, "other_vendor")?;
    let kernel = artifacts.guest(GUEST)?;
    // Whatever this machine's processor is, TCG plays one of AMD's.
    let launch = |name: &str| -> Result<_> {
        Ok(artifacts.bare_with(name, &[(kernel, GUEST)])?.accel(Accel::Tcg).kept_disk(&disk))
    };
    let amd = artifacts.boot(&launch("other_vendor_amd")?)?;
    save_spinning(amd, "amd", "slot").context("on AMD-V")?;
    let mut intel = artifacts.boot_bochs_keeping("other_vendor_intel", Model::Intel, 1, &disk)?;
    refuse_vendor(&mut intel, "amd", "slot", "it was saved on AMD (SVM), and this is Intel (VT-x)")?;
    save_spinning(intel, "intel", "other").context("on VT-x")?;
    let mut amd = artifacts.boot(&launch("other_vendor_back")?)?;
    refuse_vendor(&mut amd, "intel", "other", "it was saved on Intel (VT-x), and this is AMD (SVM)")?;
    amd.power_off()
}

/// Saves a guest that spins, and switches the host off.
fn save_spinning(mut host: Host, vm: &str, slot: &str) -> Result<()> {
    host.ask(&format!("vm create {vm} --kernel {GUEST} --memory 32M --start"))?;
    host.attach(vm)?.expect("spinning", GUEST_BOOT_LIMIT)?;
    host.emulator().send("\x1d")?;
    host.command("")?;
    host.ask(&format!("vm save {vm} --to {slot}"))?;
    host.power_off()
}

fn refuse_vendor(host: &mut Host, vm: &str, slot: &str, why: &str) -> Result<()> {
    host.ask(&format!("vm create {vm} --kernel {GUEST} --memory 32M"))?;
    // The second time shows that the first left it alone.
    for _ in 0..2 {
        let refusal = host.refusal(&format!("vm restore {vm} --from {slot}"))?;
        ensure!(refusal.contains(why), "{refusal}");
    }
    Ok(())
}

/// Mistakes in saving: the guest runs on.
fn refuse(host: &mut Host) -> Result<()> {
    for (command, why) in [
        ("vm save t --to nowhere", "there is no disk nowhere"),
        ("vm save t --to small", "too little"),
        ("vm save nobody --to slot", "nobody"),
    ] {
        let refusal = host.refusal(command)?;
        ensure!(refusal.contains(why), "`{command}`: {refusal}");
    }
    let last = last_line(host)?;
    follow(host, last).context("after a save that failed")
}

fn after_restart(artifacts: &Artifacts, disk: &Path, before: u64) -> Result<()> {
    let mut host = boot(artifacts, disk)?;
    let define = |name: &str, options: &str| {
        let words = "console=ttyS0 quiet watch=yes";
        format!("vm create {name} --kernel linux --initrd tiny-initrd --cmdline \"{words}\" {options}")
    };
    host.ask(&define("u", OPTIONS))?;
    let refusal = host.refusal("vm restore u --from slot")?;
    ensure!(refusal.contains("holds t"), "{refusal}");
    host.ask(&define("t", "--memory 128M --vcpus 2 --disk scratch --nic"))?;
    let refusal = host.refusal("vm restore t --from slot")?;
    ensure!(refusal.contains("192 MiB"), "{refusal}");
    host.ask("vm delete t")?;
    host.ask(&define("t", OPTIONS))?;
    flip(disk, HEADER_AT)?;
    let refusal = host.refusal("vm restore t --from slot")?;
    ensure!(refusal.contains("checksum does not match"), "{refusal}");
    flip(disk, HEADER_AT)?;
    restore(&mut host, before)?;
    let limits = host.ask("vm show t")?["limits"].clone();
    ensure!(limits["iops"] == 90_000, "its limits are not as they were: {limits}");
    // What was saved is used up.
    host.ask("vm kill t")?;
    let refusal = host.refusal("vm restore t --from slot")?;
    ensure!(refusal.contains("no saved VM is there"), "{refusal}");
    host.power_off()
}

/// Pauses the VM, notes what it printed last, and saves it.
fn save(host: &mut Host) -> Result<u64> {
    host.ask("vm pause t")?;
    let last = last_line(host)?;
    host.ask("vm save t --to slot")?;
    Ok(last)
}

/// Restores the VM and sees it go on: the next line, all that was printed before, the time and the network.
fn restore(host: &mut Host, before: u64) -> Result<()> {
    host.ask("vm restore t --from slot")?;
    follow(host, before)?;
    let text = host.emulator().transcript();
    ensure!(!text.contains("WATCH FAILED"), host.emulator().failure("the guest's memory changed"));
    ensure!(text.contains("watch 1 at"), host.emulator().failure("what the console had printed is gone"));
    Ok(())
}

/// Sees the line after `before`, with the right time, and then one with the network up.
fn follow(host: &mut Host, before: u64) -> Result<()> {
    let mut console = host.attach("t")?;
    console.expect(&format!("watch {} at ", before + 1), LINE_LIMIT).context("it does not go on")?;
    let time = console.expect(" ", LINE_LIMIT)?;
    let guest: u64 = time.trim().parse().with_context(|| format!("the guest's time is {time:?}"))?;
    let here = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    ensure!(guest.abs_diff(here) <= CLOCK_TOLERANCE_S, "the guest's date is {guest}, here it is {here}");
    console.expect(" up\r", LINE_LIMIT).context("its network is gone")?;
    console.leave()
}

/// The number of the last line that the guest printed.
fn last_line(host: &mut Host) -> Result<u64> {
    let mut console = host.attach("t")?;
    // What has been kept is printed before anything is typed.
    std::thread::sleep(Duration::from_secs(1));
    let text = console.emulator().transcript();
    console.leave()?;
    let last =
        text.rsplit("watch ").find_map(|line| line.split_once(" at ").and_then(|(number, _)| number.parse().ok()));
    last.ok_or_else(|| host.emulator().failure("the guest printed nothing"))
}

fn boot(artifacts: &Artifacts, disk: &Path) -> Result<Host> {
    // Linux uses five levels of page tables where it has them.
    artifacts.boot(&artifacts.fast("save_restore")?.cpu(guests::WITH_ALL).kept_disk(disk))
}

/// A disk with room for a saved VM, another one, and one that is too small.
pub fn make_disk(folder: &Path, name: &str) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{name}.img"));
    File::create(&path)?.set_len(600 << 20)?;
    let mut command = Command::new("sgdisk");
    command.args(["--clear", "--set-alignment=2048"]);
    for (number, name, size) in [(1, "slot", "400M"), (2, "other", "100M"), (3, "small", "4M")] {
        command.arg(format!("--new={number}:0:+{size}")).arg(format!("--change-name={number}:{name}"));
    }
    let output = command.arg(&path).output().context("starting sgdisk")?;
    ensure!(output.status.success(), "sgdisk: {}", String::from_utf8_lossy(&output.stderr));
    Ok(path)
}

/// Changes a byte of what is saved, or changes it back.
pub fn flip(disk: &Path, at: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(disk)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x10], at)?;
    Ok(())
}
