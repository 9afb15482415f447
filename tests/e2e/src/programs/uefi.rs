//! Guests that boot an installed disk by UEFI: firmware, GRUB, kernel, and what the firmware keeps.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::migrate::{self, Pair};
use super::{cdrom, saved, tiny};
use crate::wire::Wire;
use crate::{
    Artifacts, COMMAND_LIMIT, Console, DEBIAN_PASSWORD, GUEST_BOOT_LIMIT, Host, Launch, OVMF_CODE, OVMF_VARIABLES,
};

/// For a Debian guest to shut down.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(180);
/// A variable that no firmware has: attributes (non-volatile, for boot services and the running system), then a value.
const VARIABLE: &str = "/sys/firmware/efi/efivars/Pollux-706f6c6c-7578-4000-8000-0000000000aa";
const VALUE: &str = r"\007\000\000\000kept";
/// Of the card that comes while it runs.
const MAC: &str = "02:00:00:00:00:77";
/// The last of the datastore: the partition for variables, and the table's copy.
const VARIABLES_AND_TABLE_BYTES: usize = 3 << 20;

/// A disk with GPT, system partition, GRUB and a kernel on ext4, booted without a kernel of the host's on two vCPUs; its
/// firmware's variables outlive a reset. It has a CD too, which leaves and comes while it runs, as does a network card.
pub fn guest(artifacts: &Artifacts) -> Result<()> {
    let cd = cdrom::make_disk(artifacts, "uefi_guest")?;
    let mut host = artifacts.boot(&launch(artifacts, "uefi_guest", &[])?.disk(&cd).nic(""))?;
    refuse(&mut host)?;
    host.ask("vm create d --disk uefi --cdrom iso --memory 512M --vcpus 2 --start")?;
    let mut console = host.attach("d")?;
    console.expect("GNU GRUB", GUEST_BOOT_LIMIT).context("GRUB did not come")?;
    console.login("root", DEBIAN_PASSWORD)?;
    let cpus = console.run("nproc")?;
    ensure!(cpus == "2", "the guest sees {cpus} CPUs");
    cdrom::is_read(&mut console)?;
    console.leave()?;
    cdrom::is_shared(&mut host)?;
    host.ask("vm remove d --cdrom iso")?;
    let mut console = return_to(&mut host, "removed")?;
    console.run("test ! -b /dev/vdb")?;
    console.leave()?;
    host.ask("vm add d --cdrom iso")?;
    let mut console = return_to(&mut host, "added")?;
    console.run("until test -b /dev/vdb; do sleep 1; done; udevadm settle")?;
    cdrom::is_read(&mut console)?;
    console.leave()?;
    card_comes_and_goes(&mut host)?;
    let mut console = return_to(&mut host, "left")?;
    console.run(&format!("printf '{VALUE}' > {VARIABLE} && sync"))?;
    console.send("systemctl reboot\r")?;
    console.expect("GNU GRUB", GUEST_BOOT_LIMIT).context("GRUB did not come after the reset")?;
    console.login("root", DEBIAN_PASSWORD)?;
    let kept = console.run(&format!("cat {VARIABLE} | tail -c 4"))?;
    ensure!(kept == "kept", "after a reset the variable is {kept:?}");
    console.send("systemctl poweroff\r")?;
    console.leave()?;
    host.wait_state("d", "stopped", SHUTDOWN_LIMIT)?;
    host.power_off()?;
    fs::remove_file(cd)?;
    Ok(())
}

/// A network card comes to the guest, which reaches the gateway by it, and goes.
fn card_comes_and_goes(host: &mut Host) -> Result<()> {
    host.ask(&format!("vm add d --nic mac={MAC}"))?;
    let mut console = return_to(host, "plugged")?;
    console.run(&format!("until grep -q {MAC} /sys/class/net/*/address; do sleep 1; done; udevadm settle"))?;
    let card = console.run(&format!("basename $(dirname $(grep -l {MAC} /sys/class/net/*/address))"))?;
    console.run(&format!("ip link set {card} up && ip addr add 10.0.2.77/24 dev {card}"))?;
    console.run(&format!("ping -I {card} -c 3 -W 5 10.0.2.2"))?;
    console.leave()?;
    host.ask("vm remove d --nic")?;
    let mut console = return_to(host, "unplugged")?;
    console.run(&format!("! grep -q {MAC} /sys/class/net/*/address"))?;
    console.leave()
}

/// What a firmware keeps outlives the host's restart, whatever was being written when that came, and only the operator
/// erases it.
pub fn variables(artifacts: &Artifacts) -> Result<()> {
    let launch = launch(artifacts, "uefi_variables", &[])?.argument("-action", "reboot=reset");
    let mut host = artifacts.boot(&launch)?;
    let mut console = start_and_log_in(&mut host)?;
    // The kernel protects variables that it does not know, once they are there.
    console.run(&format!("printf '{VALUE}' > {VARIABLE} && chattr -i {VARIABLE}"))?;
    let value = VALUE.replace("kept", "$n");
    console.run(&format!("(n=1000; while printf \"{value}\" > {VARIABLE}; do n=$((n + 1)); done) & sleep 5"))?;
    console.leave()?;
    let refusal = host.refusal("vm erase-variables d")?;
    ensure!(refusal.contains("is running"), "{refusal}");
    host.reset()?;
    let mut console =
        start_and_log_in(&mut host).context("after the host's power was cut while variables were written")?;
    let kept = console.run(&format!("cat {VARIABLE} | tail -c 4"))?;
    ensure!(kept.parse::<u16>().is_ok_and(|number| number > 1000), "after the host restarted it is {kept:?}");
    console.leave()?;
    let show = host.ask("vm show d")?;
    ensure!(show["variables"] == "kept on uefi-vars", "{show}");
    host.ask("vm kill d")?;
    host.ask("vm erase-variables d")?;
    // Made anew, its console has nothing of the earlier boot.
    host.ask("vm delete d")?;
    let mut console = start_and_log_in(&mut host)?;
    let left = console.run(&format!("ls {VARIABLE} 2>&1 | tail -n 1"))?;
    ensure!(left.contains("No such file"), "an erased variable is there: {left:?}");
    console.leave()?;
    host.power_off()
}

/// A guest is saved and restored while its firmware serves GRUB, and moves to another host with its system running and a
/// CD, a disk and a card that it got meanwhile, and lets go of there. What it tells its firmware to keep is on the disk that both hosts see, by whoever runs it.
///
/// GRUB does not move: it counts the processor's ticks, whose rate two emulators measure differently.
pub fn moves(artifacts: &Artifacts) -> Result<()> {
    let (disk, slot) = (copy_datastore(artifacts)?, saved::make_disk(&artifacts.logs, "uefi_moves_slot")?);
    let cd = cdrom::make_disk(artifacts, "uefi_moves")?;
    let (wire, ovmf) =
        (Wire::new("uefi_moves", 2)?, ovmf(artifacts).map(|(path, name)| (path.to_path_buf(), name.to_owned())));
    let machine = |index: usize| {
        Ok(migrate::machine(artifacts, "uefi_moves", index, &ovmf, &wire.netdev(index))?
            .memory_mib(1536)
            .shared_disk(&disk)
            .shared_disk(&slot)
            .shared_disk(&cd))
    };
    let mut pair = Pair::boot_with(machine, artifacts)?;
    stop_at_grub(&mut pair.hosts[0])?;
    save_restore(&mut pair.hosts[0])?;
    let mut console = boot_from_grub(&mut pair.hosts[0])?;
    write_variable(&mut console, "Corinth")?;
    console.leave()?;
    for part in ["--cdrom iso", "--disk small", &format!("--nic mac={MAC}")] {
        pair.hosts[0].ask(&format!("vm add d {part}"))?;
    }
    let mut console = return_to(&mut pair.hosts[0], "added")?;
    cdrom::mount(&mut console)?;
    let sum = cdrom::sum(&mut console)?;
    console.run("until test -b /dev/vdc; do sleep 1; done; echo Corinth | dd of=/dev/vdc conv=fsync 2>&1")?;
    console.run(&format!("until grep -q {MAC} /sys/class/net/*/address; do sleep 1; done"))?;
    console.leave()?;
    give_up_ready(&mut pair, &wire)?;
    let console = return_to(&mut pair.hosts[0], "stayed").context("it does not go on where it stays")?;
    console.leave()?;
    die_committed(&mut pair, &wire, || artifacts.boot(&machine(1)?))?;
    let mut console = return_to(&mut pair.hosts[0], "resumed").context("it does not go on where it was taken back")?;
    write_variable(&mut console, "Bathens")?;
    console.leave()?;
    // At once: what was written last is on the disk before the other host may write there.
    let moved = pair.migrate(0, "d")?;
    eprintln!("        {moved}");
    ensure!(is_kept(&disk, "Bathens")?, "what the guest wrote before it moved is not on the disk");
    let mut console = return_to(&mut pair.hosts[1], "arrived").context("it does not go on after the move")?;
    let kept = console.run(&format!("cat {VARIABLE} | tail -c 7"))?;
    ensure!(kept == "Bathens", "after the move the variable is {kept:?}");
    let there = cdrom::sum(&mut console).context("the CD after the move")?;
    ensure!(there == sum, "after the move another CD is there: {there} and not {sum}");
    let there = console.run("dd if=/dev/vdc count=1 iflag=direct 2>/dev/null | head -n 1")?;
    ensure!(there == "Corinth", "after the move the disk that came has {there:?}");
    console.run("ip link set $(ls /sys/class/net | grep -v lo) up; test $(cat /sys/class/net/[!l]*/carrier) = 1")?;
    console.leave()?;
    pair.hosts[1].ask("vm remove d --disk small")?;
    pair.hosts[1].ask("vm remove d --nic")?;
    let mut console = return_to(&mut pair.hosts[1], "removed")?;
    console.run(&format!("test ! -b /dev/vdc && ! grep -q {MAC} /sys/class/net/*/address"))?;
    write_variable(&mut console, "Avignon")?;
    console.leave()?;
    let show = pair.hosts[1].ask("vm show d")?;
    ensure!(show["variables"] == "kept on uefi-vars", "{show}");
    pair.hosts[1].ask("vm kill d")?;
    pair.hosts[1].wait_state("d", "stopped", COMMAND_LIMIT)?;
    ensure!(is_kept(&disk, "Avignon")?, "what the guest wrote after it moved is not on the disk");
    fs::remove_file(disk)?;
    fs::remove_file(slot)?;
    fs::remove_file(cd)?;
    Ok(())
}

/// Its shell again, behind what it printed before; a new `word` each time.
fn return_to<'a>(host: &'a mut Host, word: &str) -> Result<Console<'a>> {
    let mut console = host.attach("d")?;
    console.send(&format!("echo {word}-$((6 * 7))\r"))?;
    console.expect(&format!("{word}-42"), GUEST_BOOT_LIMIT)?;
    Ok(console)
}

/// The target is ready, and the source does not hear that.
fn come_to_ready(pair: &mut Pair, wire: &Wire) -> Result<()> {
    pair.hosts[0].ask("vm migrate d to b --downtime 60000 --bandwidth 20")?;
    pair.wait_move(0, "copying", |status| status["bytes"].as_u64() > Some(0))?;
    wire.mute(1, true);
    pair.wait_move(1, "waiting for the word", |_| true)
}

/// A target that is ready gives the guest up: it never ran there, and what its firmware keeps is the source's.
fn give_up_ready(pair: &mut Pair, wire: &Wire) -> Result<()> {
    come_to_ready(pair, wire)?;
    pair.hosts[1].ask("migrate cancel d")?;
    pair.hosts[1].wait_gone("d")?;
    wire.mute(1, false);
    let stayed = pair.wait_end(0)?;
    ensure!(stayed["phase"] == "stayed", "its target gave it up: {stayed}");
    Ok(())
}

/// The source gave the guest away when the target dies, and nobody knows whether it ran there. A person takes it back: the
/// source is the one that keeps its variables.
fn die_committed(pair: &mut Pair, wire: &Wire, boot_again: impl FnOnce() -> Result<Host>) -> Result<()> {
    come_to_ready(pair, wire)?;
    wire.mute(0, true);
    wire.mute(1, false);
    pair.wait_move(0, "given away", |_| true)?;
    drop(pair.hosts.remove(1));
    wire.mute(0, false);
    pair.hosts.push(boot_again()?);
    pair.introduce(1)?;
    let lost = pair.wait_end(0)?;
    ensure!(lost["phase"] == "lost", "its target forgot it: {lost}");
    ensure!(pair.hosts[1].state("d")?.is_none(), "it is on a host that was switched off");
    pair.hosts[0].ask("vm resume d").map(drop)
}

/// Starts the VM, and keeps GRUB from booting by itself.
fn stop_at_grub(host: &mut Host) -> Result<()> {
    host.ask("vm create d --disk uefi --memory 512M --start")?;
    let mut console = host.attach("d")?;
    console.expect("GNU GRUB", GUEST_BOOT_LIMIT).context("GRUB did not come")?;
    console.send("c")?;
    console.expect("grub> ", GUEST_BOOT_LIMIT).context("GRUB does not take a key")?;
    console.leave()
}

/// Saves the VM, restores it, and sees GRUB load the kernel through its firmware.
fn save_restore(host: &mut Host) -> Result<()> {
    host.ask("vm save d --to slot")?;
    ensure!(host.state("d")?.as_deref() == Some("saved"), "the VM is not saved");
    let refusal = host.refusal("vm erase-variables d")?;
    ensure!(refusal.contains("is saved"), "{refusal}");
    host.ask("vm restore d --from slot")?;
    let mut console = host.attach("d")?;
    console.send("linux /vmlinuz root=LABEL=debian ro console=ttyS0 net.ifnames=0 quiet\recho loaded-$?\r")?;
    console.expect("loaded-0", GUEST_BOOT_LIMIT).context("restored, GRUB does not read its disk")?;
    console.leave()
}

/// Has GRUB load the rest, and start the system.
fn boot_from_grub(host: &mut Host) -> Result<Console<'_>> {
    let mut console = host.attach("d")?;
    console.send("initrd /initrd.img\rboot\r")?;
    console.login("root", DEBIAN_PASSWORD)?;
    Ok(console)
}

/// Has the system tell the firmware to keep seven letters.
fn write_variable(console: &mut Console<'_>, letters: &str) -> Result<()> {
    let value = VALUE.replace("kept", letters);
    console.run(&format!("if [ -e {VARIABLE} ]; then chattr -i {VARIABLE}; fi; printf '{value}' > {VARIABLE}"))?;
    Ok(())
}

/// Whether these letters are on the disk, behind the guest's own: where its variables are.
fn is_kept(disk: &Path, letters: &str) -> Result<bool> {
    let bytes = fs::read(disk)?;
    let variables = &bytes[bytes.len() - VARIABLES_AND_TABLE_BYTES..];
    Ok(variables.windows(letters.len()).any(|part| part == letters.as_bytes()))
}

/// A datastore that two hosts may write to.
fn copy_datastore(artifacts: &Artifacts) -> Result<std::path::PathBuf> {
    fs::create_dir_all(&artifacts.logs)?;
    let path = artifacts.logs.join("uefi_moves.img");
    fs::copy(&artifacts.uefi_datastore, &path).context("copying the datastore")?;
    Ok(path)
}

/// Creates the VM, as an operator does after each start of the host.
fn start_and_log_in(host: &mut Host) -> Result<Console<'_>> {
    host.ask("vm create d --disk uefi --memory 512M --start")?;
    let mut console = host.attach("d")?;
    console.expect("GNU GRUB", GUEST_BOOT_LIMIT).context("GRUB did not come")?;
    console.login("root", DEBIAN_PASSWORD)?;
    Ok(console)
}

/// Such a guest, two vCPUs by direct boot and a Multiboot kernel, all running at once.
pub fn side_by_side(artifacts: &Artifacts) -> Result<()> {
    let bare = artifacts.guest("multiboot")?.with_extension("");
    let mut host = boot(artifacts, "guests_side_by_side", &[(bare.as_path(), "multiboot")])?;
    host.ask("vm create disk --disk uefi --memory 512M --start")?;
    tiny::create(&mut host, "direct", "linger=yes", "--memory 192M --vcpus 2")?;
    let image = "--kernel multiboot --initrd multiboot --memory 64M";
    host.ask(&format!("vm create kernel {image} --cmdline \"debug=42\" --debug-exit --debug-console --start"))?;
    host.wait_state("kernel", "exited", GUEST_BOOT_LIMIT)?;
    let mut console = host.attach("direct")?;
    console.expect("tick ", GUEST_BOOT_LIMIT).context("the guest of two vCPUs")?;
    console.leave()?;
    let mut console = host.attach("disk")?;
    console.expect("login: ", GUEST_BOOT_LIMIT).context("the guest that boots by UEFI")?;
    console.leave()?;
    for vm in ["disk", "direct"] {
        let state = host.state(vm)?;
        ensure!(state.as_deref() == Some("running"), "{vm} is {state:?}");
    }
    let list = host.command("vm list")?;
    println!("{list}");
    host.power_off()
}

/// What cannot boot is refused, and nothing is kept of it.
fn refuse(host: &mut Host) -> Result<()> {
    for (command, why) in [
        ("vm create x", "nothing to boot"),
        ("vm create x --disk uefi --cmdline quiet", "go with a kernel"),
        ("vm create x --disk nowhere --start", "there is no disk nowhere"),
        ("vm create x --disk iso --cdrom iso --start", "disk `iso` is given twice"),
    ] {
        let refusal = host.refusal(command)?;
        ensure!(refusal.contains(why), "`{command}`: {refusal}");
    }
    ensure!(host.state("x")?.is_none(), "a VM that was refused is there");
    Ok(())
}

fn boot(artifacts: &Artifacts, name: &str, modules: &[(&std::path::Path, &str)]) -> Result<Host> {
    artifacts.boot(&launch(artifacts, name, modules)?)
}

fn launch(artifacts: &Artifacts, name: &str, modules: &[(&std::path::Path, &str)]) -> Result<Launch> {
    Ok(artifacts.bare_with(name, &[modules, &ovmf(artifacts)].concat())?.disk(&artifacts.uefi_datastore))
}

/// The firmware's files as boot modules.
fn ovmf(artifacts: &Artifacts) -> [(&Path, &'static str); 2] {
    [(artifacts.ovmf.0.as_path(), OVMF_CODE), (artifacts.ovmf.1.as_path(), OVMF_VARIABLES)]
}
