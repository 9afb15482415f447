//! Guests of several vCPUs: started, interrupting each other, sharing CPUs, and ordered about while all of them work.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::demo::{expect_own_bytes, own_bytes};
use super::{guests, tiny};
use crate::{Artifacts, DEBIAN_DISK, DEBIAN_INITRD, DEBIAN_PASSWORD, GUEST_BOOT_LIMIT, Host, LINUX};

/// For the bare guest to end.
const LIMIT: Duration = Duration::from_secs(240);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(180);
/// How often a guest is told what.
const KILLS: usize = 5;
const PAUSES: usize = 5;
const RESETS: usize = 2;
/// How long guests share a CPU.
const SHARED_NS: u64 = 200_000_000;

/// The bare guest's checks, with a CPU for each vCPU and with two vCPUs on each CPU.
pub fn bare(artifacts: &Artifacts) -> Result<()> {
    let guest = artifacts.guest("smp")?;
    let mut host = artifacts.boot(&artifacts.fast_with("smp_bare", &[(guest, "smp")])?)?;
    for vcpus in [2, 4] {
        host.ask(&format!("vm create smp --kernel smp --memory 128M --vcpus {vcpus} --start"))?;
        let mut console = host.attach("smp")?;
        let (which, _) = console.expect_any(&["\ndone", "not ok ", "Bail out!"], LIMIT)?;
        ensure!(which == 0, console.emulator().failure(&format!("{vcpus} vCPUs do not get what hardware gives")));
        console.leave()?;
        host.wait_state("smp", "stopped", LIMIT)?;
        host.ask("vm delete smp")?;
    }
    host.power_off()
}

/// Debian on two vCPUs: both work, and each reaches the other.
pub fn guest(artifacts: &Artifacts) -> Result<()> {
    let launch = artifacts.fast_with("smp_guest", &[(artifacts.debian_initrd.as_path(), DEBIAN_INITRD)])?;
    let mut host = artifacts.boot(&launch.memory_mib(2048))?;
    let words = "root=LABEL=debian rw console=ttyS0 net.ifnames=0 quiet";
    host.ask(&format!(
        "vm create debian --kernel {LINUX} --initrd {DEBIAN_INITRD} --cmdline \"{words}\" --memory 512M --vcpus 2 \
         --disk {DEBIAN_DISK} --start"
    ))?;
    let mut console = host.attach("debian")?;
    console.login("root", DEBIAN_PASSWORD)?;
    let count = console.run("nproc")?;
    ensure!(count == "2", "nproc says {count}");
    let work = "sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo $i'";
    let done = console.run(&format!("(taskset -c 0 {work} & taskset -c 1 {work}; wait) | sort -u"))?;
    ensure!(done == "100000", "the two loops gave {done}");
    // Both were there all the time: more than one and a half times as much work as time, were nothing else running here.
    let both = console.run("awk '/^cpu[01]/ {if ($2 > 0) n++} END {print n}' /proc/stat")?;
    ensure!(both == "2", "only {both} processor did work");
    let ipis = console.run("awk '/^ *(RES|CAL|TLB):/ {n += $2 + $3} END {print (n > 10)}' /proc/interrupts")?;
    ensure!(ipis == "1", "the processors do not interrupt each other");
    let complaints =
        console.run("dmesg | grep -iE 'soft lockup|rcu.*stall|clocksource.*unstable|not responding' || true")?;
    ensure!(complaints.is_empty(), "the kernel complains: {complaints}");
    console.leave()?;
    host.ask("vm stop debian")?;
    host.wait_state("debian", "stopped", SHUTDOWN_LIMIT)?;
    host.power_off()
}

/// Four busy vCPUs on two CPUs are paused, reset and killed over and over, beside a guest that must not notice.
pub fn orders(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.fast("smp_orders")?)?;
    guests::start_witness(&mut host)?;
    // The first round also fills what is made once and kept.
    create_busy(&mut host)?;
    pauses(&mut host)?;
    for _ in 0..RESETS {
        host.ask("vm reset busy")?;
        wait_for_tick(&mut host)?;
    }
    end_busy(&mut host)?;
    let before = own_bytes(&mut host)?;
    for round in 1..=KILLS {
        create_busy(&mut host)?;
        if round == 1 {
            wait_for_tick(&mut host)?;
        }
        end_busy(&mut host)?;
        expect_own_bytes(&mut host, before).with_context(|| format!("round {round}"))?;
    }
    guests::check_witness(&mut host)?;
    host.power_off()
}

/// Three busy vCPUs have the same of two CPUs, and one of thrice the weight has thrice as much. Two that share a CPU part when the other CPU has nothing more to do, unless
/// they are pinned.
pub fn crowded(artifacts: &Artifacts) -> Result<()> {
    let spin = artifacts.guest("spin")?;
    let mut host = artifacts.boot(&artifacts.fast_with("smp_crowded", &[(spin, "spin")])?)?;
    // Each goes where the fewest are: `a` and `c` meet.
    for name in ["a", "b", "c"] {
        start_spinning(&mut host, name, "")?;
    }
    share(&mut host, &[("a", 1), ("b", 1), ("c", 1)])?;
    start_spinning(&mut host, "heavy", "--weight 300")?;
    share(&mut host, &[("a", 1), ("b", 1), ("c", 1), ("heavy", 3)])?;
    host.ask("vm kill heavy")?;
    for name in ["pinned", "too"] {
        start_spinning(&mut host, name, "--pin 0")?;
    }
    // They are at home on one CPU now, or went apart while a CPU was idle.
    for name in ["b", "pinned", "too"] {
        host.ask(&format!("vm pause {name}"))?;
    }
    let start = Instant::now();
    while cpus_of(&mut host, "a")? == cpus_of(&mut host, "c")? {
        ensure!(start.elapsed() < LIMIT, "two busy guests share a CPU while the other is idle");
    }
    for name in ["a", "b", "c"] {
        host.ask(&format!("vm kill {name}"))?;
    }
    for name in ["pinned", "too"] {
        host.ask(&format!("vm resume {name}"))?;
    }
    for name in ["pinned", "too"] {
        let before = cpu_time(&mut host, name)?;
        while cpu_time(&mut host, name)? < before + SHARED_NS {
            ensure!(start.elapsed() < LIMIT, "{name} gets no time");
        }
        ensure!(cpus_of(&mut host, name)? == [0], "{name} left the CPU that it is pinned to");
    }
    host.power_off()
}

fn start_spinning(host: &mut Host, name: &str, option: &str) -> Result<()> {
    host.ask(&format!("vm create {name} --kernel spin --memory 64M {option} --start"))?;
    let mut console = host.attach(name)?;
    console.expect("spinning", LIMIT)?;
    console.leave()
}

/// What each has had of the CPUs, by its weight, comes to differ by less than the half that it would where nobody parts.
fn share(host: &mut Host, vms: &[(&str, u64)]) -> Result<()> {
    let mut times = || -> Result<Vec<u64>> { vms.iter().map(|(name, _)| cpu_time(host, name)).collect() };
    let (start, before) = (Instant::now(), times()?);
    loop {
        let times = times()?.into_iter().zip(&before).zip(vms);
        let had: Vec<u64> = times.map(|((now, before), (_, weight))| (now - before) / weight).collect();
        let (least, most) = (had.iter().min().copied().unwrap_or(0), had.iter().max().copied().unwrap_or(0));
        if least > SHARED_NS && least * 4 > most * 3 {
            return Ok(());
        }
        // What is had counts when it ends.
        std::thread::sleep(Duration::from_millis(500));
        ensure!(start.elapsed() < LIMIT, "busy guests ({vms:?}) had, by their weights, {had:?} ns of two CPUs");
    }
}

/// A paused guest takes no more CPU time, and goes on.
fn pauses(host: &mut Host) -> Result<()> {
    wait_for_tick(host)?;
    for round in 1..=PAUSES {
        host.ask("vm pause busy")?;
        let before = cpu_time(host, "busy")?;
        std::thread::sleep(Duration::from_millis(500));
        let after = cpu_time(host, "busy")?;
        ensure!(before == after, "round {round}: a paused guest ran from {before} ns to {after} ns");
        host.ask("vm resume busy")?;
    }
    wait_for_tick(host)
}

fn create_busy(host: &mut Host) -> Result<()> {
    tiny::create(host, "busy", "busy=yes linger=yes", "--vcpus 4 --nic")
}

fn end_busy(host: &mut Host) -> Result<()> {
    host.ask("vm kill busy")?;
    host.ask("vm delete busy").map(|_| ())
}

fn wait_for_tick(host: &mut Host) -> Result<()> {
    let mut console = host.attach("busy")?;
    console.emulator().skip();
    console.expect("tick", GUEST_BOOT_LIMIT)?;
    console.leave()
}

fn cpu_time(host: &mut Host, vm: &str) -> Result<u64> {
    host.ask(&format!("vm show {vm}"))?["cpu_time_ns"].as_u64().context("`vm show --json` does not give the CPU time")
}

fn cpus_of(host: &mut Host, vm: &str) -> Result<Vec<u64>> {
    let shown = host.ask(&format!("vm show {vm}"))?;
    let cpus = shown["cpus"].as_array().context("`vm show --json` does not give the CPUs")?;
    Ok(cpus.iter().filter_map(serde_json::Value::as_u64).collect())
}
