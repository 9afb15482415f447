//! What a VM may use at most. The guest's clock says how long a transfer took, and a limited one takes what its limit
//! says at least; nothing is said about how fast anything is.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::tiny::Guest;
use crate::{Artifacts, Host, SCRATCH_DISK};

/// For the share of a CPU that a guest gets to be as it should.
const SHARE_LIMIT: Duration = Duration::from_secs(60);
/// The same for a guest that was called: less than its CPU's loop needs to look by itself, and less than the guest would
/// stand still if what it had before its limit counted.
const CALLED_LIMIT: Duration = Duration::from_secs(10);
/// How long a guest spins before it is limited.
const SPIN: Duration = Duration::from_secs(6);
/// How long it is looked at.
const WINDOW: Duration = Duration::from_secs(2);
/// Hundredths of a second since the guest started.
const NOW: &str = "$(cut -d' ' -f1 /proc/uptime | tr -d .)";
/// A card's address, and bytes that it sends at once: a ping, in pieces.
const MAC: &str = "02:00:00:00:00:78";
const PING_BYTES: u64 = 50_000;

/// A guest's disks, its card and its CPU are limited while it runs, and are no more.
pub fn limits(artifacts: &Artifacts) -> Result<()> {
    let spin = artifacts.guest("spin")?;
    let mut host = artifacts.boot(&artifacts.fast_with("limits", &[(spin, "spin")])?)?;
    mistakes(&mut host)?;
    let options = format!("--disk {SCRATCH_DISK} --nic mac={MAC} --disk-rate 2M");
    let mut guest = Guest::start(host, &options)?;
    disk(&mut guest)?;
    card(&mut guest)?;
    cpu(&mut guest)?;
    guest.host.ask("vm kill t")?;
    spinner(&mut guest.host)?;
    guest.host.power_off()
}

/// Each mistake gets one line, and changes nothing.
fn mistakes(host: &mut Host) -> Result<()> {
    host.ask("vm create m --kernel linux --iops 7")?;
    for (words, why) in [
        ("", "no limit is named"),
        ("--iops 0", "`0` is not a number of requests"),
        ("--cpu-limit 6401", "`6401` is not a percentage"),
        ("--disk-rate 1K", "a VM cannot be limited to 1K a second"),
        ("--net-rate 99999999999G", "is not a size"),
        ("--receive-rate 1K", "a VM cannot be limited to 1K a second"),
    ] {
        let refusal = host.refusal(&format!("vm set m {words}"))?;
        ensure!(refusal.contains(why), "`vm set m {words}`: {refusal}");
    }
    let refusal = host.refusal("vm set nobody --iops 5")?;
    ensure!(refusal.contains("nobody"), "{refusal}");
    let shown = host.ask("vm show m")?;
    ensure!(shown["limits"]["iops"] == 7 && shown["limits"]["cpu_percent"].is_null(), "the limits are {shown}");
    host.ask("vm set m --iops none --cpu-limit 30")?;
    let shown = host.ask("vm show m")?;
    ensure!(shown["limits"]["iops"].is_null() && shown["limits"]["cpu_percent"] == 30, "the limits are {shown}");
    host.ask("vm delete m").map(drop)
}

/// The guest's first disk, limited to 2 MiB/s, and then otherwise. Of a transfer the last request is not waited for, and a
/// tenth of a second's worth comes at once.
pub fn disk(guest: &mut Guest) -> Result<()> {
    guest.run("echo 0 > /sys/block/vda/queue/read_ahead_kb")?;
    let bytes = timed(guest, "dd if=/dev/vda of=/dev/null bs=64k count=96 2>/dev/null")?;
    ensure!(bytes >= 250, "6 MiB at 2 MiB/s took {bytes} hundredths of a second");
    guest.host.ask("vm set t --disk-rate none --iops 10")?;
    let requests = timed(guest, "dd if=/dev/vda of=/dev/null bs=4k skip=2000 count=30 2>/dev/null")?;
    ensure!(requests >= 250, "30 requests at 10 a second took {requests} hundredths of a second");
    guest.host.ask("vm set t --iops 1")?;
    guest.run("{ dd if=/dev/vda of=/dev/null bs=4k skip=4000 count=2000 && touch /read; } >/dev/null 2>&1 &")?;
    guest.host.ask("vm set t --iops none")?;
    guest.expect("test -e /read").context("a limit that is no more")
}

fn card(guest: &mut Guest) -> Result<()> {
    guest.run("ip link set eth0 up; ip addr add 10.0.2.77/24 dev eth0")?;
    guest.expect("ping -q -c 1 -W 1 10.0.2.2 >/dev/null 2>&1").context("QEMU's gateway")?;
    guest.host.ask("vm set t --net-rate 64K")?;
    let sent = "$(cat /sys/class/net/eth0/statistics/tx_bytes)";
    let all = 6 * PING_BYTES;
    let pings = format!("for i in 1 2 3 4 5 6; do ping -q -c 1 -W 1 -s {PING_BYTES} 10.0.2.2 & done >/dev/null 2>&1");
    let took = timed(guest, &format!("n={sent}; {pings}; until test $(({sent} - n)) -ge {all}; do sleep 0.1; done"))?;
    // The card says that a frame is sent before the next is taken.
    ensure!(took >= 400, "{all} bytes at 64 KiB/s took {took} hundredths of a second");
    guest.host.ask("vm set t --net-rate none --receive-rate 64K")?;
    received(guest)
}

/// Of what answers its pings a guest gets what its limit says, by its own clock, and the rest is counted as lost.
fn received(guest: &mut Guest) -> Result<()> {
    let got = "$(cat /sys/class/net/eth0/statistics/rx_bytes)";
    let pings = format!("for i in 1 2 3 4 5 6; do ping -q -c 1 -W 1 -s {PING_BYTES} 10.0.2.2 & done >/dev/null 2>&1");
    let answer =
        guest.run(&format!("n={got}; begin={NOW}; {pings}; sleep 2; echo $(({got} - n)) $(({NOW} - begin))"))?;
    let numbers: Vec<u64> = answer.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [bytes, hundredths] = numbers[..] else { anyhow::bail!("no numbers: {answer}") };
    let most = (64 << 10) * (hundredths + 20) / 100 + 4096;
    ensure!(bytes > 0 && bytes <= most, "{bytes} bytes in {hundredths} hundredths of a second at 64 KiB/s");
    let ports = guest.host.ask("net")?;
    let port = ports.as_array().and_then(|ports| ports.iter().find(|port| port["mac"] == MAC)).context("no port")?;
    ensure!(port["drops"].as_u64() > Some(0), "nothing was lost: {port}");
    guest.host.ask("vm set t --receive-rate none")?;
    guest.expect("ping -q -c 1 -W 1 10.0.2.2 >/dev/null 2>&1").context("without a limit")
}

/// A guest that wants all of a CPU has it, then a quarter, then all again.
fn cpu(guest: &mut Guest) -> Result<()> {
    guest.run("{ while :; do :; done; } >/dev/null 2>&1 &")?;
    share(&mut guest.host, "t", SHARE_LIMIT, |percent| percent > 60).context("without a limit")?;
    guest.host.ask("vm set t --cpu-limit 25")?;
    share(&mut guest.host, "t", SHARE_LIMIT, |percent| percent < 40).context("limited to a quarter")?;
    guest.host.ask("vm set t --cpu-limit none")?;
    share(&mut guest.host, "t", SHARE_LIMIT, |percent| percent > 60).context("without a limit again")
}

/// A guest that never exits by itself is limited at once, and does not stand still for what it had before.
fn spinner(host: &mut Host) -> Result<()> {
    host.ask("vm create s --kernel spin --memory 64M --pin 1 --start")?;
    share(host, "s", SHARE_LIMIT, |percent| percent > 60).context("a guest that spins")?;
    sleep(SPIN);
    host.ask("vm set s --cpu-limit 25")?;
    share(host, "s", CALLED_LIMIT, |percent| (5..40).contains(&percent)).context("limited to a quarter at once")?;
    host.ask("vm kill s").map(drop)
}

/// Runs a command in the guest; gives how long it took, in hundredths of a second of the guest's.
fn timed(guest: &mut Guest, command: &str) -> Result<u64> {
    let took = guest.run(&format!("begin={NOW}; {command}; echo $(({NOW} - begin))"))?;
    took.trim().parse().with_context(|| format!("not a time: {took}"))
}

/// Waits until the guest has such a share of a CPU, in percent.
fn share(host: &mut Host, vm: &str, limit: Duration, is_so: impl Fn(u64) -> bool) -> Result<()> {
    let until = host.emulator().elapsed() + limit;
    loop {
        let percent = percent(host, vm)?;
        if is_so(percent) {
            return Ok(());
        }
        ensure!(host.emulator().elapsed() < until, host.emulator().failure(&format!("it has {percent} % of a CPU")));
    }
}

/// The share that it has for a while.
fn percent(host: &mut Host, vm: &str) -> Result<u64> {
    let (began_ns, before_ns) = (uptime_ns(host)?, cpu_ns(host, vm)?);
    sleep(WINDOW);
    let (after_ns, ended_ns) = (cpu_ns(host, vm)?, uptime_ns(host)?);
    Ok(100 * (after_ns - before_ns) / (ended_ns - began_ns).max(1))
}

fn uptime_ns(host: &mut Host) -> Result<u64> {
    host.ask("host")?["uptime_ns"].as_u64().context("no uptime_ns")
}

fn cpu_ns(host: &mut Host, vm: &str) -> Result<u64> {
    host.ask(&format!("vm show {vm}"))?["cpu_time_ns"].as_u64().context("no cpu_time_ns")
}
