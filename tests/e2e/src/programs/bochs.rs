//! The same image on Bochs: VT-x on its Intel model, AMD-V on its AMD model. What is done there is done on QEMU too.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::balloon::{self, MIB};
use super::migrate::{self, Pair};
use super::tiny::{self, Guest};
use super::{guests, host, hotplug, limits, multiboot, saved};
use crate::wire::Wire;
use crate::{
    Artifacts, Bochs, COMMAND_LIMIT, Card, GUEST_BOOT_LIMIT, Host, LINUX, Model, Pc, SCRATCH_DISK, TINY_INITRD,
    TINY_PASSWORD,
};

/// Two machines are as fast as this one lets each be: a guest stands still as long as it takes.
const MOVING: &str = "--downtime 60000";
/// What a guest writes again and again, in a fraction of a second, to have its writes found.
const WRITTEN_MIB: u32 = 2;
/// What a guest keeps.
const SUM: &str = "md5sum /kept | cut -c1-32";
/// Its stack, its page tables and the like.
const OTHER_PAGES_MAX: u64 = 64;

/// VT-x: the prompt, a bare guest that says hello, one that looks at CR8, which each vendor's hardware keeps its own way, and
/// kernels that start by Multiboot and by PVH.
pub fn vmx_hello(artifacts: &Artifacts) -> Result<()> {
    hello(artifacts, "bochs_vmx_hello", Model::Intel)
}

/// AMD-V: the same.
pub fn svm_hello(artifacts: &Artifacts) -> Result<()> {
    hello(artifacts, "bochs_svm_hello", Model::Amd)
}

/// VT-x: the small Linux guest and the shell share the only CPU; a user logs in, and the guest switches itself off.
pub fn vmx_linux(artifacts: &Artifacts) -> Result<()> {
    linux(artifacts, "bochs_vmx_linux", Model::Intel)
}

/// AMD-V: the same.
pub fn svm_linux(artifacts: &Artifacts) -> Result<()> {
    linux(artifacts, "bochs_svm_linux", Model::Amd)
}

/// VT-x: two guests on two CPUs boot side by side, one of them beside the shell. Both are logged in to.
pub fn vmx_two_guests(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot_bochs("bochs_vmx_two_guests", Model::Intel, 2)?;
    for vm in ["left", "right"] {
        tiny::create(&mut host, vm, "shell=yes", "")?;
    }
    for vm in ["left", "right"] {
        tiny::log_in_and_shut_down(&mut host, vm).with_context(|| format!("guest `{vm}`"))?;
    }
    host.power_off()
}

/// VT-x, with a disk on an ATA channel: the small guest is given a virtual disk on it and a card, checks what it wrote, and
/// gives them back; then the disk is limited.
pub fn ata(artifacts: &Artifacts) -> Result<()> {
    let host = artifacts.boot_bochs_with("bochs_ata", Model::Intel, 1, Some(&artifacts.datastore))?;
    let mut guest = Guest::start(host, "")?;
    hotplug::come_and_go(&mut guest)?;
    guest.host.ask(&format!("vm add t --disk {SCRATCH_DISK}"))?;
    guest.expect("test -b /dev/vda")?;
    guest.host.ask("vm set t --disk-rate 2M")?;
    limits::disk(&mut guest)?;
    tiny::power_off(&mut guest.host, "t")?;
    guest.host.power_off()
}

/// VT-x: every bare guest beside a Linux guest that must not notice.
pub fn vmx_guests(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot_bochs("bochs_vmx_guests", Model::Intel, 2)?;
    guests::all_on(&mut host, artifacts, guests::Where::Bochs)?;
    host.power_off()
}

/// AMD-V: the same, without the Linux guest beside them, which QEMU has.
pub fn svm_guests(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot_bochs("bochs_svm_guests", Model::Amd, 2)?;
    guests::each_on(&mut host, artifacts, guests::Where::BochsAmd, |_| Ok(()))?;
    host.power_off()
}

/// VT-x: two vCPUs that interrupt each other, each on a CPU of its own, halted and at work.
pub fn vmx_smp(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot_bochs("bochs_vmx_smp", Model::Intel, 2)?;
    for guest in ["smp", "ipis"] {
        guests::run(&mut host, guest, "", "--vcpus 2").with_context(|| format!("test guest `{guest}`"))?;
    }
    host.power_off()
}

/// VT-x: a Linux guest of two vCPUs gives memory back, and is saved and goes on, here and on the host after it restarted.
pub fn vmx_saved(artifacts: &Artifacts) -> Result<()> {
    const OPTIONS: &str = "--memory 256M --vcpus 2";
    let disk = saved::make_disk(&artifacts.logs, "bochs_vmx_saved")?;
    let boot = || artifacts.boot_bochs_keeping("bochs_vmx_saved", Model::Intel, 2, &disk);
    let mut host = boot()?;
    goes_on_without_its_tables(&mut host)?;
    tiny::create(&mut host, "t", "shell=yes", OPTIONS)?;
    let mut console = host.attach("t")?;
    console.login("root", TINY_PASSWORD)?;
    console.leave()?;
    let sum = balloon::run(&mut host, 1, &format!("head -c 4000000 /dev/urandom > /kept; {SUM}"))?;
    host.ask("vm balloon t 128M")?;
    balloon::wait_held(&mut host, 0, 140 * MIB).context("memory in the balloon")?;

    host.ask("vm save t --to slot")?;
    host.ask("vm restore t --from slot")?;
    ensure!(balloon::run(&mut host, 2, SUM)? == sum, "the guest's memory changed");
    host.ask("vm save t --to slot")?;
    host.power_off()?;
    let mut host = boot()?;
    let words = "--cmdline \"console=ttyS0 quiet shell=yes\"";
    host.ask(&format!("vm create t --kernel {LINUX} --initrd {TINY_INITRD} {words} {OPTIONS}"))?;
    host.ask("vm restore t --from slot")?;
    host.ask("vm balloon t 256M")?;
    let count = "grep -c ^processor /proc/cpuinfo";
    ensure!(balloon::run(&mut host, 3, count)? == "2", "it has not both its processors");
    ensure!(balloon::run(&mut host, 4, SUM)? == sum, "the guest's memory changed when the host restarted");
    tiny::power_off(&mut host, "t")?;
    host.power_off()
}

/// A guest that starts paging again and again is restored and runs before the tables are there, of which the host has to
/// read the beginning.
fn goes_on_without_its_tables(host: &mut Host) -> Result<()> {
    const EVERY: u64 = 20;
    let words = format!("mib=8 rounds=0 every={EVERY}");
    host.ask(&format!("vm create p --kernel pae_pointers --cmdline \"{words}\" --memory 64M --start"))?;
    let goes_on = |host: &mut Host, round: u64| {
        let mut console = host.attach("p")?;
        let before = console.expect(&format!("ROUND {round} "), GUEST_BOOT_LIMIT)?;
        // A triple fault resets it.
        ensure!(before.matches("it begins").count() == 1, console.emulator().failure("paging did not start"));
        console.leave()
    };
    goes_on(host, EVERY)?;
    for time in 1..4 {
        host.ask("vm save p --to slot")?;
        host.ask("vm restore p --from slot")?;
        goes_on(host, (1 + 2 * time) * EVERY)?;
    }
    host.ask("vm kill p")?;
    host.ask("vm delete p")?;
    Ok(())
}

/// VT-x: firmware starts GRUB from a guest's disk, and that its system, up to where a user would log in.
pub fn vmx_uefi(artifacts: &Artifacts) -> Result<()> {
    let disk = Some(artifacts.uefi_datastore.clone());
    let mut host = artifacts.boot_pc(&Pc { disk, ..Pc::new("bochs_vmx_uefi", Model::Intel, 1, &artifacts.image) })?;
    host.ask("vm create d --disk uefi --memory 512M --start")?;
    let mut console = host.attach("d")?;
    console.expect("GNU GRUB", GUEST_BOOT_LIMIT).context("GRUB did not come")?;
    let (which, _) = console.expect_any(&["debian login:", "Kernel panic"], GUEST_BOOT_LIMIT)?;
    ensure!(which == 0, console.emulator().failure("its system did not start"));
    console.leave()?;
    host.ask("vm kill d")?;
    host.power_off()
}

/// VT-x: the small Linux guest with two vCPUs, whose clock is the TSC alone, moves to a host whose TSC has half the rate, and
/// goes back ahead of its memory. It writes all the while.
pub fn vmx_linux_moves(artifacts: &Artifacts) -> Result<()> {
    const NAME: &str = "bochs_vmx_linux_moves";
    const WRITE: &str = "while :; do head -c 100000 /dev/urandom > /other; done > /dev/null 2>&1 & echo begun";
    let rates = [Bochs::INSTRUCTIONS_PER_SECOND, Bochs::INSTRUCTIONS_PER_SECOND / 2];
    let mut pair = pair(artifacts, NAME, &Wire::new(NAME, 0)?, Model::Intel, rates)?;
    let words = "shell=yes no-kvmclock tsc=reliable clocksource=tsc";
    tiny::create(&mut pair.hosts[0], "t", words, "--memory 128M --vcpus 2 --nic")?;
    let mut console = pair.hosts[0].attach("t")?;
    console.login("root", TINY_PASSWORD)?;
    console.leave()?;
    let sum = tiny::run(&mut pair.hosts[0], 1, &format!("head -c 4000000 /dev/urandom > /kept; {SUM}"))?;
    tiny::run(&mut pair.hosts[0], 2, WRITE)?;
    for (from, options) in [(0, MOVING), (1, "--downtime 1 --timeout 1 --strategy postcopy")] {
        let moved = pair.migrate_with(from, "t", options)?;
        eprintln!("        {moved}");
        let host = &mut pair.hosts[1 - from];
        let number = 10 * (from as u32 + 1);
        ensure!(tiny::run(host, number, SUM)? == sum, "the guest's memory changed on the way from {from}");
        keeps_time(host, number + 1)?;
    }
    ensure!(tiny::run(&mut pair.hosts[0], 30, "grep -c ^processor /proc/cpuinfo")? == "2", "a processor is gone");
    tiny::power_off(&mut pair.hosts[0], "t")
}

/// The guest's clock, which is its TSC, goes as fast as its RTC, which is the host's clock.
fn keeps_time(host: &mut Host, number: u32) -> Result<()> {
    const AHEAD: &str = "echo $(($(date +%s) - $(cat /sys/class/rtc/rtc0/since_epoch)))";
    let said = tiny::run(
        host,
        number,
        &format!("{AHEAD}; sleep 10; {AHEAD}; cat /sys/devices/system/clocksource/*/current_clocksource"),
    )?;
    let words: Vec<&str> = said.split_whitespace().collect();
    let [before, after, "tsc" | "tsc-early"] = words[..] else { bail!("the guest's clocks: {said}") };
    let drift_s = after.parse::<i64>()? - before.parse::<i64>()?;
    ensure!(drift_s.abs() <= 1, "in ten seconds its clock went {drift_s} s ahead: {said}");
    Ok(())
}

/// VT-x that notes no writes: the link is cut while the guest's memory is sent, and it stays; then it goes ahead of its
/// memory, and the link is cut again until it waits for that.
pub fn vmx_link_cut(artifacts: &Artifacts) -> Result<()> {
    let wire = Wire::new("bochs_vmx_link_cut", 0)?;
    let rates = [Bochs::INSTRUCTIONS_PER_SECOND; 2];
    let mut pair = pair(artifacts, "bochs_vmx_link_cut", &wire, Model::OldestIntel, rates)?;
    let set_link = |_: &mut Pair, is_up: bool| {
        wire.cut(0, !is_up);
        Ok(())
    };
    migrate::start_with(&mut pair.hosts[0], 1, "")?;
    let last = migrate::cut_off(&mut pair, migrate::EVERY, set_link)?;
    migrate::goes_ahead(&mut pair, last, set_link).map(drop)
}

/// Two hosts on a segment, that trust each other, with TSCs of these rates.
fn pair(artifacts: &Artifacts, name: &str, wire: &Wire, model: Model, rates: [u64; 2]) -> Result<Pair> {
    let boot = |index: usize| -> Result<Host> {
        let name = format!("{name}-{}", migrate::SIDES[index]);
        let image = artifacts.configured(&name, &migrate::configuration(index))?;
        let card = Some(Card { number: index as u8, port: wire.datagrams()? });
        let instructions_per_second = rates[index];
        let host = artifacts.boot_pc(&Pc { card, instructions_per_second, ..Pc::new(&name, model, 1, &image) });
        // It is open where a machine needs it.
        fs::remove_file(image)?;
        host
    };
    Pair::of(vec![boot(0)?, boot(1)?])
}

/// VT-x with a log of the guest's writes, with dirty bits alone, and with neither: tracking finds every page that a guest
/// writes again and again, and hardly another.
pub fn vmx_writes(artifacts: &Artifacts) -> Result<()> {
    for (name, model, noted_by) in [
        ("bochs_vmx_writes_log", Model::Intel, "log"),
        ("bochs_vmx_writes_bits", Model::OldIntel, "dirty-bits"),
        ("bochs_vmx_writes_faults", Model::OldestIntel, "faults"),
    ] {
        let mut host = artifacts.boot_bochs(name, model, 1)?;
        let writes = measure_writes(&mut host, WRITTEN_MIB)?;
        ensure!(writes["noted_by"] == noted_by, "{model:?}: {writes}");
        let distinct = writes["distinct_pages"].as_u64().context("`vm measure` does not count pages")?;
        let written = u64::from(WRITTEN_MIB) << 20 >> 12;
        ensure!((written..written + OTHER_PAGES_MAX).contains(&distinct), "{model:?}: {written} are written: {writes}");
        host.power_off()?;
    }
    Ok(())
}

/// VT-x with the registers that control speculation: guests have them, with all bits or some; the values of two that share a
/// CPU are in force for each alone and never in the host; and Linux finds itself protected, and AMX.
pub fn vmx_speculation(artifacts: &Artifacts) -> Result<()> {
    const HELD: [(u32, &str); 2] = [(1, "kept 0x2"), (2, "kept 0x4")];
    let mut host = artifacts.boot_bochs("bochs_vmx_speculation", Model::NewIntel, 1)?;
    let own = host_control(&mut host)?;
    guests::run(&mut host, "speculation", "", "--vcpus 2").context("test guest `speculation`")?;
    host.ask("cpu profile derive modest --without SSBD,PSFD,L1D_FLUSH,ARCH_CAPABILITIES")?;
    guests::run(&mut host, "speculation", "strict=1", "--cpu-profile modest").context("with some bits withheld")?;

    for (seed, says) in HELD {
        let words = format!("endless=1 seed={seed}");
        host.ask(&format!("vm create s{seed} --kernel speculation --cmdline \"{words}\" --memory 64M --start"))?;
        host.attach(&format!("s{seed}"))?.expect(says, COMMAND_LIMIT)?;
        host.emulator().send("\x1d")?;
        host.command("")?;
    }
    for _ in 0..5 {
        let control = host_control(&mut host)?;
        ensure!(control == own, "the host's IA32_SPEC_CTRL is {control:#x} beside guests, and was {own:#x}");
    }
    for (seed, says) in HELD {
        let mut console = host.attach(&format!("s{seed}"))?;
        console.emulator().skip();
        let (which, _) = console.expect_any(&[says, "not ok "], COMMAND_LIMIT)?;
        ensure!(which == 0, console.emulator().failure("another's value was in force"));
        console.leave()?;
        host.ask(&format!("vm kill s{seed}"))?;
    }
    is_protected(&mut Guest::start(host, "")?)
}

/// IA32_SPEC_CTRL as the host has it between two runs of its guests.
fn host_control(host: &mut Host) -> Result<u64> {
    host.ask("host")?["speculation"]["control"].as_u64().context("`host` shows no IA32_SPEC_CTRL")
}

/// Sees what Linux makes of it.
fn is_protected(guest: &mut Guest) -> Result<()> {
    const PROTECTING: [&str; 8] =
        ["ibrs", "ibpb", "stibp", "ssbd", "md_clear", "flush_l1d", "arch_capabilities", "ibrs_enhanced"];
    let flags = guest.run("grep -m1 ^flags /proc/cpuinfo")?;
    for flag in PROTECTING.into_iter().chain(["amx_tile"]) {
        ensure!(flags.split_whitespace().any(|found| found == flag), "the guest does not have {flag}: {flags}");
    }
    for (name, status) in
        [("meltdown", "Not affected"), ("l1tf", "Not affected"), ("spectre_v2", "Mitigation: Enhanced")]
    {
        let found = guest.run(&format!("cat /sys/devices/system/cpu/vulnerabilities/{name}"))?;
        ensure!(found.starts_with(status), "{name} is in the guest: {found}");
    }
    tiny::power_off(&mut guest.host, "t")
}

/// VT-x with AMX: a guest has it, or finds nothing of it where a profile withholds it; and those that share a CPU each keep
/// their tiles, one of them also when it is saved, and none finds another's.
pub fn vmx_amx(artifacts: &Artifacts) -> Result<()> {
    const SEEDS: [u32; 2] = [1, 2];
    let disk = saved::make_disk(&artifacts.logs, "bochs_vmx_amx")?;
    let mut host = artifacts.boot_bochs_keeping("bochs_vmx_amx", Model::NewIntel, 1, &disk)?;
    host.ask("cpu profile derive modest --without AMX_TILE")?;
    guests::run(&mut host, "amx", "", "--cpu-profile modest").context("with AMX withheld")?;
    for seed in SEEDS {
        let words = format!("endless=1 seed={seed}");
        host.ask(&format!("vm create t{seed} --kernel amx --cmdline \"{words}\" --memory 64M --start"))?;
        keeps_tiles(&mut host, seed)?;
    }
    guests::run(&mut host, "amx", "seed=3", "").context("test guest `amx`")?;
    host.ask("vm save t1 --to slot")?;
    host.ask("vm restore t1 --from slot")?;
    for seed in SEEDS {
        keeps_tiles(&mut host, seed)?;
        host.ask(&format!("vm kill t{seed}"))?;
    }
    host.power_off()
}

/// Sees a guest look at its tiles.
fn keeps_tiles(host: &mut Host, seed: u32) -> Result<()> {
    let mut console = host.attach(&format!("t{seed}"))?;
    console.emulator().skip();
    let (which, _) = console.expect_any(&["kept", "not ok ", "Bail out!"], COMMAND_LIMIT)?;
    ensure!(which == 0, console.emulator().failure("a guest's tiles were changed"));
    console.leave()
}

/// Starts a guest that writes so much memory again and again, and measures what it writes: the reply to `vm measure`.
///
/// # Errors
/// If the guest does not come so far, or the measurement is refused.
pub fn measure_writes(host: &mut Host, mib: u32) -> Result<Value> {
    let words = format!("mib={mib} rounds=0");
    host.ask(&format!("vm create w --kernel memory_hash --cmdline \"{words}\" --memory 128M --start"))?;
    host.attach("w")?.expect("HASH 2 ", COMMAND_LIMIT)?;
    host.emulator().send("\x1d")?;
    host.command("")?;
    let reply = host.ask("vm measure w")?;
    host.ask("vm kill w")?;
    host.ask("vm delete w")?;
    Ok(reply)
}

fn hello(artifacts: &Artifacts, name: &str, model: Model) -> Result<()> {
    let mut host = artifacts.boot_bochs(name, model, 2)?;
    host::answers(&mut host, model.backend(), 2)?;
    for guest in ["hello", "cr8"] {
        guests::run(&mut host, guest, "", "").with_context(|| format!("test guest `{guest}`"))?;
    }
    multiboot::guest_on(&mut host).context("a Multiboot kernel")?;
    multiboot::pvh_on(&mut host).context("a kernel with PVH's note")?;
    host.power_off()
}

fn linux(artifacts: &Artifacts, name: &str, model: Model) -> Result<()> {
    let mut host = artifacts.boot_bochs(name, model, 1)?;
    host::answers(&mut host, model.backend(), 1)?;
    tiny::create(&mut host, "t", "shell=yes", "")?;
    tiny::log_in_and_shut_down(&mut host, "t")?;
    host.power_off()
}
