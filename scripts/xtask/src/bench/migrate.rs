//! Measures live migration: the same guest moves between two hosts over the same wire, under Pollux with and without
//! cipher, and under KVM and QEMU nested in the same emulator, over plain TCP.
//!
//! The guest (`scripts/guest/dirty.c`) ticks on its console every 10 ms. [`Watch`] looks at both hosts' serial lines and
//! so sees, as nobody inside could, for how long there was no tick.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Accel, Host, Launch, TINY_INITRD};
use serde_json::Value;

use super::Figures;
use super::kvm_host::{self, MIGRATE_INIT};
use super::rig::{Rig, System, parse};
use crate::guest::TINY_MODULES;
use crate::kernel;

/// How many MB/s the guest writes.
const LOADS: [u32; 3] = [0, 10, 100];
/// The guest's memory, and its host's.
const GUEST_MIB: u32 = 256;
const HOST_MIB: u32 = 1024;
/// The guest's memory where a move's growth with it is measured.
const SIZES_MIB: [u32; 3] = [256, 1024, 4096];
/// A move whose memory follows, of a guest that writes so much.
const FOLLOWING: &str = "--downtime 1 --timeout 1 --strategy postcopy";
const FOLLOWING_LOAD: &str = "100";
/// For a guest to be moved, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(150);
/// How long the guest works before it moves, and how long its ticks are watched afterwards.
const BEFORE: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_millis(1500);
/// How long a guest is watched that works as fast as it can.
const BUSY: Duration = Duration::from_secs(8);
/// A move of a guest that stands still at last.
const WHOLE: &str = "--timeout 120 --strategy stop";
const ADDRESSES: [&str; 2] = ["10.9.0.1", "10.9.0.2"];

/// Everything under one system.
pub fn run(rig: &Rig, system: System) -> Result<Figures> {
    let mut figures = Figures::new();
    match system {
        System::Pollux => {
            under_pollux(rig, &rig.artifacts.kernel32, "", &mut figures)?;
            under_pollux(rig, &kernel::build_plain()?, "plain_", &mut figures)?;
        }
        System::Kvm => {
            for (name, value) in under_kvm(rig)? {
                figures.insert(format!("plain_{name}"), value);
                figures.insert(name, value);
            }
        }
        System::Bare => {}
    }
    Ok(figures)
}

/// What a move costs under Pollux: how much less its guest gets done, how it grows from 256 MiB to 4 GiB, and one whose
/// memory follows the guest.
pub fn cost(rig: &Rig, system: System) -> Result<Figures> {
    let mut figures = Figures::new();
    if system != System::Pollux {
        return Ok(figures);
    }
    slowdown(rig, &mut figures)?;
    let mut hosts = pair(rig, &rig.artifacts.kernel32, "bench-migrate-size-pollux", SIZES_MIB[2] + HOST_MIB)?;
    for size_mib in SIZES_MIB {
        let vm = format!("size{size_mib}");
        start(&mut hosts[0], &vm, "0", size_mib)?;
        let (moved, _) = move_watched(rig, &mut hosts, &vm, WHOLE, "size-")?;
        note(&moved, &vm, &mut figures)?;
        end(&mut hosts[1], &vm)?;
    }
    start(&mut hosts[0], "following", FOLLOWING_LOAD, GUEST_MIB)?;
    let (moved, gap) = move_watched(rig, &mut hosts, "following", FOLLOWING, "size-")?;
    note(&moved, "following", &mut figures)?;
    figures.insert("following_longest_gap_ms".into(), gap.as_secs_f64() * 1e3);
    end(&mut hosts[1], "following")?;
    Ok(figures)
}

/// How much less a guest gets done while it is looked ten times a second what it writes, and while its memory leaves
/// slowly besides.
fn slowdown(rig: &Rig, figures: &mut Figures) -> Result<()> {
    let [mut source, _target] = pair(rig, &rig.artifacts.kernel32, "bench-migrate-slowdown", HOST_MIB)?;
    start(&mut source, "busy", "busy", GUEST_MIB)?;
    let free_before = busy_ns(&mut source, |_| {
        thread::sleep(BUSY);
        Ok(())
    })?;
    let tracked = busy_ns(&mut source, |source| {
        let until = Instant::now() + BUSY;
        while Instant::now() < until {
            let writes = source.ask("vm measure busy")?;
            let number = |name: &str| writes[name].as_f64().with_context(|| format!("{writes} has no {name}"));
            figures.insert("tracked_look_us".into(), number("look_ns")? / 1e3);
            figures.insert("tracked_pages_of_a_look".into(), number("pages")? / number("looks")?);
        }
        Ok(())
    })?;
    let leaving = busy_ns(&mut source, |source| {
        source.ask("vm migrate busy to b --bandwidth 4 --timeout 600")?;
        thread::sleep(BUSY);
        let status = source.ask("migrate status")?[0].clone();
        ensure!(status["phase"] == "copying", source.emulator().failure(&format!("it moved meanwhile: {status}")));
        ensure!(status["running_percent"] == 100, source.emulator().failure(&format!("it is throttled: {status}")));
        source.ask("migrate cancel busy").map(drop)
    })?;
    let free_after = busy_ns(&mut source, |_| {
        thread::sleep(BUSY);
        Ok(())
    })?;
    let free = (free_before + free_after) / 2.0;
    figures.insert("tracked_slowdown_percent".into(), (1.0 - free / tracked) * 100.0);
    figures.insert("leaving_slowdown_percent".into(), (1.0 - free / leaving) * 100.0);
    figures.insert("free_drift_percent".into(), (free_after / free_before - 1.0) * 100.0);
    Ok(())
}

/// What the guest called `busy` takes for its work while something is done, by what it says itself; the median.
fn busy_ns(host: &mut Host, act: impl FnOnce(&mut Host) -> Result<()>) -> Result<f64> {
    let before = said_by_busy(host)?.len();
    act(host)?;
    let said = said_by_busy(host)?;
    // The first began before, the last ended afterwards.
    let during = said.get(before + 1..said.len() - 1).unwrap_or_default();
    super::median(during).with_context(|| host.emulator().failure("the guest does not say how busy it is"))
}

/// Everything that it has said of that.
fn said_by_busy(host: &mut Host) -> Result<Vec<f64>> {
    let console = host.attach("busy")?;
    // What it has kept comes first.
    thread::sleep(BEFORE / 3);
    console.leave()?;
    let text = host.emulator().transcript();
    let kept = text.rsplit("vm console busy").next().unwrap_or_default();
    let said = kept.lines().filter_map(|line| line.trim().strip_prefix("BUSY ")).filter_map(|ns| ns.parse().ok());
    Ok(said.collect())
}

/// What the guest is called, and its figures.
fn name_of(load: u32) -> String {
    if load == 0 { "idle".to_owned() } else { format!("load{load}") }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("looking for a free port")?.local_addr()?.port())
}

/// The wire between the hosts, at this one's end.
fn wired(launch: Launch, index: usize, port: u16) -> Launch {
    let end = if index == 0 { "listen" } else { "connect" };
    launch
        .argument("-netdev", format!("socket,id=net0,{end}=127.0.0.1:{port}"))
        .argument("-device", format!("virtio-net-pci,netdev=net0,mac=52:54:00:50:4d:0{index},romfile="))
}

fn under_pollux(rig: &Rig, kernel: &Path, prefix: &str, figures: &mut Figures) -> Result<()> {
    let mut hosts = pair(rig, kernel, &format!("bench-migrate-{prefix}pollux"), HOST_MIB)?;
    for load in LOADS {
        let vm = name_of(load);
        start(&mut hosts[0], &vm, &load.to_string(), GUEST_MIB)?;
        let (moved, gap) = move_watched(rig, &mut hosts, &vm, WHOLE, prefix)?;
        let figure = format!("{prefix}{vm}");
        note(&moved, &figure, figures)?;
        figures.insert(format!("{figure}_longest_gap_ms"), gap.as_secs_f64() * 1e3);
        end(&mut hosts[1], &vm)?;
    }
    Ok(())
}

/// Starts a guest that writes so much, and lets it work for a while.
fn start(host: &mut Host, vm: &str, load: &str, memory_mib: u32) -> Result<()> {
    host.ask(&format!(
        "vm create {vm} --kernel linux --initrd {TINY_INITRD} --cmdline \"console=ttyS0 quiet dirty={load}\" --memory {memory_mib}M --start"
    ))?;
    let mut console = host.attach(vm)?;
    console.expect("DIRTY ready", LIMIT)?;
    thread::sleep(BEFORE);
    console.leave()
}

fn end(host: &mut Host, vm: &str) -> Result<()> {
    host.ask(&format!("vm kill {vm}"))?;
    host.ask(&format!("vm delete {vm}")).map(drop)
}

/// Takes the figures out of what the source says of a move.
fn note(moved: &Value, name: &str, figures: &mut Figures) -> Result<()> {
    let value = |field: &str| moved[field].as_f64().with_context(|| format!("{moved} has no {field}"));
    let looks = value("looks")?.max(1.0);
    for (figure, value) in [
        ("total_ms", value("total_ns")? / 1e6),
        ("source_downtime_ms", value("downtime_ns")? / 1e6),
        ("sent_MiB", value("bytes")? / 1_048_576.0),
        ("rounds", value("round")?),
        ("look_us", value("looking_ns")? / looks / 1e3),
        ("pages_of_a_look", value("looked_pages")? / looks),
        ("last_page_us", value("page_ns")? / 1e3),
    ] {
        figures.insert(format!("{name}_{figure}"), value);
    }
    eprintln!("        {moved}");
    Ok(())
}

fn pair(rig: &Rig, kernel: &Path, name: &str, memory_mib: u32) -> Result<[Host; 2]> {
    let port = free_port()?;
    let boot = |index: usize| -> Result<Host> {
        let side = ["a", "b"][index];
        let configuration = rig.folder.join(format!("{name}-{side}.toml"));
        let text =
            format!("[host]\nname = \"{side}\"\nmanagement = \"static\"\naddress = \"{}/24\"\n", ADDRESSES[index]);
        std::fs::write(&configuration, text).with_context(|| format!("writing {}", configuration.display()))?;
        let modules = [
            (rig.artifacts.linux.clone(), e2e::LINUX.to_owned()),
            (rig.artifacts.tiny_initrd.clone(), TINY_INITRD.to_owned()),
            (configuration, "pollux.toml".to_owned()),
        ];
        let launch = Launch::new(&format!("{name}-{side}")).accel(Accel::Tcg).memory_mib(memory_mib);
        rig.artifacts.boot(&wired(launch.multiboot(kernel, "", &modules)?, index, port))
    };
    let mut hosts = [boot(0)?, boot(1)?];
    for index in 0..2 {
        let report = hosts[1 - index].ask("host")?;
        let key = report["key"].as_str().context("`host` shows no key")?.to_owned();
        hosts[index].ask(&format!("peer add {} {} {key}", ["b", "a"][index], ADDRESSES[1 - index]))?;
    }
    Ok(hosts)
}

/// Moves a VM while its console is watched on both hosts; gives what the source says, and the longest gap.
fn move_watched(rig: &Rig, hosts: &mut [Host; 2], vm: &str, options: &str, prefix: &str) -> Result<(Value, Duration)> {
    let logs = ["a", "b"].map(|side| rig.artifacts.logs.join(format!("bench-migrate-{prefix}pollux-{side}.log")));
    let watch = Watch::start(logs);
    let start = Instant::now();
    hosts[0].ask(&format!("vm migrate {vm} to b {options}"))?;
    // Typed without waiting for an answer: the source shows ticks to the last, the target from the first on.
    hosts[0].emulator().send(&format!("vm console {vm}\r"))?;
    let until = start + LIMIT;
    while hosts[1].state(vm)?.is_none() {
        ensure!(Instant::now() < until, hosts[0].emulator().failure("the VM does not get to the target"));
        thread::sleep(Duration::from_millis(20));
    }
    let [source, target] = hosts;
    let mut console = target.attach(vm)?;
    console.expect("~", LIMIT).context("the VM does not tick at the target")?;
    thread::sleep(AFTER);
    let gap = watch.longest_gap(start, Instant::now());
    console.leave()?;
    // With the VM its console is gone; where it is not, this leaves it.
    source.emulator().send("\u{1d}\r")?;
    thread::sleep(BEFORE / 6);
    source.wait_gone(vm)?;
    let moved = source.ask("migrate status")?[0].clone();
    ensure!(moved["phase"] == "moved", source.emulator().failure(&format!("it did not move: {moved}")));
    Ok((moved, gap.context("the guest never ticked")?))
}

fn under_kvm(rig: &Rig) -> Result<Figures> {
    let initrd = rig.folder.join("bench-migrate-kvm.initrd");
    let (modules, guest_initrd) = (&rig.guests.modules, &rig.guests.tiny_initrd);
    let system = kvm_host::System { modules, names: &TINY_MODULES, guest_initrd, init: MIGRATE_INIT };
    rig.kvm_host.initrd(&initrd, &system, "linux", &rig.artifacts.linux, "")?;
    let port = free_port()?;
    let names = ["source", "target"].map(|role| format!("bench-migrate-kvm-{role}"));
    let loads = LOADS.map(|load| load.to_string()).join(",");
    let boot = |index: usize| {
        let role = ["source", "target"][index];
        let words = format!("console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 role={role} loads={loads}");
        let launch = Launch::new(&names[index]).accel(Accel::Tcg).memory_mib(HOST_MIB);
        let launch = launch.linux(&rig.artifacts.linux, &initrd, &words).disk(&rig.kvm_host.disk);
        wired(launch, index, port).spawn(&rig.artifacts.logs)
    };
    let mut source = boot(0)?;
    // Its end of the wire listens long before: the other's QEMU gives up where nobody does.
    source.expect("DIRTY ready", LIMIT)?;
    // It says nothing that matters, and ends with this.
    let _target = boot(1)?;
    let watch = Watch::start(names.each_ref().map(|name| rig.artifacts.logs.join(format!("{name}.log"))));
    let mut figures = Figures::new();
    for load in LOADS {
        let name = name_of(load);
        source.expect(&format!("MIGRATING {load}"), LIMIT)?;
        let start = Instant::now();
        let (which, said) = source.expect_any(&[&format!("MIGRATED {load}"), "BENCH FAILED"], LIMIT)?;
        ensure!(which == 0, source.failure("KVM did not move its guest"));
        let gap = watch.longest_gap(start, Instant::now()).context("KVM's guest never ticked")?;
        figures.insert(format!("{name}_longest_gap_ms"), gap.as_secs_f64() * 1e3);
        for (figure, value) in parse(&said.replace('~', "")) {
            match figure.strip_suffix("_KiB") {
                Some(figure) => figures.insert(format!("{name}_{figure}_MiB"), value / 1024.0),
                None => figures.insert(format!("{name}_{figure}"), value),
            };
        }
    }
    std::fs::remove_file(&initrd).with_context(|| format!("removing {}", initrd.display()))?;
    Ok(figures)
}

/// Notes when ticks arrive on either of two hosts' serial lines, by their logs.
struct Watch {
    ticks: Arc<Mutex<Vec<Instant>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches what is written from now on.
    fn start(logs: [PathBuf; 2]) -> Self {
        let (ticks, is_over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (noted, ends) = (ticks.clone(), is_over.clone());
        let thread = thread::spawn(move || {
            let open = |log: &PathBuf| {
                let mut file = File::open(log).ok()?;
                file.seek(SeekFrom::End(0)).ok().map(|_| file)
            };
            let mut files: Vec<File> = logs.iter().filter_map(open).collect();
            let mut bytes = vec![0; 1 << 16];
            while !ends.load(Ordering::Relaxed) {
                for file in &mut files {
                    let count = file.read(&mut bytes).unwrap_or(0);
                    let (count, now) = (bytes[..count].iter().filter(|&&byte| byte == b'~').count(), Instant::now());
                    noted.lock().expect("nobody panics with it").extend(std::iter::repeat_n(now, count));
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self { ticks, is_over, thread: Some(thread) }
    }

    /// The longest time between two ticks that begins after `start`.
    fn longest_gap(&self, start: Instant, end: Instant) -> Option<Duration> {
        let ticks = self.ticks.lock().expect("nobody panics with it");
        longest_gap(ticks.iter().copied().filter(|tick| (start..end).contains(tick)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only reads.
            let _ = thread.join();
        }
    }
}

fn longest_gap(ticks: impl Iterator<Item = Instant>) -> Option<Duration> {
    let ticks: Vec<Instant> = ticks.collect();
    ticks.windows(2).map(|pair| pair[1] - pair[0]).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_between_two_ticks() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(longest_gap([at(0), at(10), at(95), at(100)].into_iter()), Some(Duration::from_millis(85)));
        assert_eq!(longest_gap([at(0)].into_iter()), None);
    }
}
