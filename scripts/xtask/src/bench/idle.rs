//! What guests that do nothing cost their host: 32 Linux guests at their login prompts, on one CPU.
//!
//! An emulator's clock says nothing of that: a wake-up costs it a thousand times what silicon takes. So virtual time counts
//! instructions, a nanosecond each, and the time that the CPU did not sleep is the number that host and guests executed,
//! to the instruction. What silicon would make of them is a sum over two stated costs.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::{Accel, GUEST_BOOT_LIMIT, Host, TINY_INITRD};
use serde_json::Value;

use super::Figures;
use super::rig::{Rig, System};

const GUESTS: u32 = 32;
/// Memory of each, and of their host.
const GUEST_MIB: u32 = 96;
const HOST_MIB: u32 = 4096;
/// How long is looked, in virtual time.
const WINDOW_NS: f64 = 20e9;
/// How often it is looked whether that is over: the answer costs instructions.
const LOOK: Duration = Duration::from_secs(2);

/// A server's processor, cautiously: 2 GHz, two cycles an instruction with the caches cold, and 2,000 cycles more for each
/// world switch there and back.
const SILICON_INSTRUCTIONS_PER_S: f64 = 1e9;
const SILICON_EXIT_S: f64 = 1e-6;

/// What the host did up to a moment.
struct Look {
    uptime_ns: f64,
    idle_ns: f64,
    sleeps: f64,
    exits: f64,
    own_bytes: f64,
}

/// Measures the host without guests, and with guests that are idle.
pub fn run(rig: &Rig, system: System) -> Result<Figures> {
    if system != System::Pollux {
        return Ok(Figures::new());
    }
    let launch = rig.pollux("bench-pollux-idle", Accel::Counting, &[])?.memory_mib(HOST_MIB).cpus(1);
    let mut host = rig.artifacts.boot(&launch)?;
    let mut figures = window(&mut host, "host")?;
    let options = format!("--kernel linux --initrd {TINY_INITRD} --memory {GUEST_MIB}M --start");
    for guest in 0..GUESTS {
        host.ask(&format!("vm create idle{guest} {options} --cmdline \"console=ttyS0 quiet shell=yes\""))?;
        let mut console = host.attach(&format!("idle{guest}"))?;
        console.expect("login:", GUEST_BOOT_LIMIT)?;
        console.leave()?;
    }
    figures.extend(window(&mut host, "guests")?);
    Ok(figures)
}

/// What the host does in a while in which nobody asks it anything.
fn window(host: &mut Host, what: &str) -> Result<Figures> {
    let before = look(host)?;
    let mut after = look(host)?;
    while after.uptime_ns - before.uptime_ns < WINDOW_NS {
        thread::sleep(LOOK);
        after = look(host)?;
    }
    let elapsed_ns = after.uptime_ns - before.uptime_ns;
    let per_s = |count: f64| count * 1e9 / elapsed_ns;
    let instructions = per_s(elapsed_ns - (after.idle_ns - before.idle_ns));
    let (wakes, exits) = (per_s(after.sleeps - before.sleeps), per_s(after.exits - before.exits));
    let silicon_s = instructions / SILICON_INSTRUCTIONS_PER_S + exits * SILICON_EXIT_S;
    let figures = [
        ("instructions_per_s", instructions),
        ("wakes_per_s", wakes),
        ("exits_per_s", exits),
        ("instructions_per_wake", instructions / wakes),
        ("on_silicon_percent", silicon_s * 100.0),
        ("own_MiB", after.own_bytes / f64::from(1 << 20)),
    ];
    Ok(figures.into_iter().map(|(name, value)| (format!("{what}_{name}"), value)).collect())
}

fn look(host: &mut Host) -> Result<Look> {
    let vms = host.ask("stat")?;
    let report = host.ask("host")?;
    let number = |value: &Value, name: &str| value.as_f64().with_context(|| format!("`host --json` gives no {name}"));
    let sum = |name: &str| -> Result<f64> {
        let cpus = report["idle"].as_array().context("`host --json` does not say what its CPUs did")?;
        cpus.iter().map(|cpu| number(&cpu[name], name)).sum()
    };
    let exits = |vm: &Value| -> f64 {
        let kinds = vm["exits"].as_array().into_iter().flatten();
        kinds.filter_map(|kind| kind["count"].as_f64()).sum()
    };
    Ok(Look {
        uptime_ns: number(&report["uptime_ns"], "uptime")?,
        idle_ns: sum("idle_ns")?,
        sleeps: sum("sleeps")?,
        exits: vms.as_array().context("`stat --json` lists no VMs")?.iter().map(exits).sum(),
        own_bytes: number(&report["memory"]["own_bytes"], "memory")?,
    })
}
