//! `cargo xtask bench`: the same guest under Pollux, directly in the emulator, and under Linux KVM + QEMU nested in the
//! emulator; alternating, in one run, so that all three meet the same machine. Each figure is a median.

mod cipher;
mod idle;
mod kvm_host;
mod migrate;
mod rig;
mod server;

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use clap::Args;
use e2e::{DiskBus, NicModel};

use crate::setup;
use rig::{Rig, System};

/// The fewest runs that a median is taken of.
const RUNS: usize = 5;

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub struct Options {
    /// Which measurement; all of them without it
    name: Option<String>,
    /// Print one JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// How many runs each median is taken of
    #[arg(long, default_value_t = RUNS)]
    runs: usize,
}

/// Figures of one run, by name.
pub type Figures = BTreeMap<String, f64>;

/// A measurement: a guest that prints figures, or the host's own report.
struct Bench {
    name: &'static str,
    run: fn(&Rig, System) -> Result<Figures>,
}

const BENCHES: [Bench; 19] = [
    Bench { name: "boot", run: |rig, system| rig.linux(system, "boot", 1) },
    Bench { name: "exits", run: |rig, system| rig.bare_guest(system, "exits", false, 1) },
    Bench { name: "instructions", run: |rig, system| rig.bare_guest(system, "exits", true, 1) },
    Bench { name: "memory", run: |rig, system| rig.memory(system) },
    Bench { name: "disk", run: |rig, system| rig.linux(system, "exits,disk", 1) },
    Bench { name: "net", run: |rig, system| rig.linux(system, "net", 1) },
    Bench { name: "smp", run: smp },
    Bench { name: "idle", run: idle::run },
    Bench { name: "vmx", run: Rig::vmx },
    Bench { name: "virtio-blk", run: |rig, system| rig.controller(system, DiskBus::Virtio) },
    Bench { name: "nvme", run: |rig, system| rig.controller(system, DiskBus::Nvme) },
    Bench { name: "ahci", run: |rig, system| rig.controller(system, DiskBus::Ahci) },
    Bench { name: "ata", run: |rig, system| rig.controller(system, DiskBus::Ata) },
    Bench { name: "migrate", run: migrate::run },
    Bench { name: "migrate-cost", run: migrate::cost },
    Bench { name: "cipher", run: cipher::run },
    Bench { name: "e1000", run: |rig, system| rig.card(system, NicModel::E1000) },
    Bench { name: "e1000e", run: |rig, system| rig.card(system, NicModel::E1000e) },
    Bench { name: "igb", run: |rig, system| rig.card(system, NicModel::Igb) },
];
/// The name that stands for the host's drivers together.
const DRIVERS: &str = "drivers";
/// Which those are.
const OF_DRIVERS: [&str; 7] = ["virtio-blk", "nvme", "ahci", "ata", "e1000", "e1000e", "igb"];

/// Two processors that interrupt each other, and a mix of programs on both.
fn smp(rig: &Rig, system: System) -> Result<Figures> {
    let mut figures = rig.bare_guest(system, "ipis", false, 2)?;
    figures.extend(rig.linux(system, "mix", 2)?);
    Ok(figures)
}

/// One line of the table: the medians of a figure under each system that has it.
#[derive(serde::Serialize)]
struct Row {
    bench: String,
    unit: &'static str,
    pollux: Option<f64>,
    bare: Option<f64>,
    kvm: Option<f64>,
}

/// Measures and prints.
pub fn command(options: &Options) -> Result<()> {
    setup::setup()?;
    let names = |name: &str, bench: &Bench| match name {
        DRIVERS => OF_DRIVERS.contains(&bench.name),
        name => name == bench.name,
    };
    let is_wanted = |bench: &&Bench| options.name.as_deref().is_none_or(|name| names(name, bench));
    let wanted: Vec<&Bench> = BENCHES.iter().filter(is_wanted).collect();
    let known: Vec<&str> = BENCHES.iter().map(|bench| bench.name).chain([DRIVERS]).collect();
    ensure!(!wanted.is_empty(), "no measurement has that name; there are: {}", known.join(" "));
    ensure!(options.runs >= 1, "a median needs at least one run");
    let rig = Rig::build()?;
    let mut rows = Vec::new();
    for bench in wanted {
        rows.extend(measure(&rig, bench, options.runs)?);
    }
    print(&rows, options.json)
}

/// Runs a measurement under each system in turn, several times over.
fn measure(rig: &Rig, bench: &Bench, runs: usize) -> Result<Vec<Row>> {
    let mut samples: BTreeMap<(String, System), Vec<f64>> = BTreeMap::new();
    // Runs that count instructions are the same to the instruction, or almost.
    let runs = if matches!(bench.name, "vmx" | "idle") { 1 } else { runs };
    for run in 1..=runs {
        for system in System::ALL {
            eprintln!("{}: run {run} of {runs}, {}", bench.name, system.name());
            let mut figures = (bench.run)(rig, system)?;
            // Every Linux guest says how long it took to boot; that is a measurement of its own.
            figures.retain(|figure, _| bench.name == "boot" || figure != "boot_to_user_s");
            for (figure, value) in figures {
                samples.entry((figure, system)).or_default().push(value);
            }
        }
    }
    let mut names: Vec<String> = samples.keys().map(|(figure, _)| figure.clone()).collect();
    names.dedup();
    let median_of = |figure: &str, system| samples.get(&(figure.to_owned(), system)).and_then(|values| median(values));
    let row = |figure: String| Row {
        bench: format!("{}/{figure}", bench.name),
        unit: unit(bench.name, &figure),
        pollux: median_of(&figure, System::Pollux),
        bare: median_of(&figure, System::Bare),
        kvm: median_of(&figure, System::Kvm),
    };
    Ok(names.into_iter().map(row).collect())
}

/// The middle value, or the mean of the two in the middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

/// The unit of a figure: its name ends in it, and the bare guests count cycles of the time stamp counter, which are
/// instructions where virtual time counts them.
fn unit(bench: &str, figure: &str) -> &'static str {
    const UNITS: [(&str, &str); 12] = [
        ("_per_s", "1/s"),
        ("_percent", "%"),
        ("_per_page", "cycles/page"),
        ("_cycles", "cycles"),
        ("_MBps", "MB/s"),
        ("_iops", "IOPS"),
        ("_us", "us"),
        ("_rounds", "rounds"),
        ("_pages_of_a_look", "pages"),
        ("_ms", "ms"),
        ("_MiB", "MiB"),
        ("_s", "s"),
    ];
    let by_name = UNITS.iter().find(|(ending, _)| figure.ends_with(ending)).map(|(_, unit)| *unit);
    by_name.unwrap_or(if matches!(bench, "instructions" | "vmx" | "idle") { "instructions" } else { "cycles" })
}

fn print(rows: &[Row], json: bool) -> Result<()> {
    if json {
        for row in rows {
            println!("{}", serde_json::to_string(row)?);
        }
        return Ok(());
    }
    println!("| measurement | unit | Pollux | bare | KVM + QEMU | Pollux / bare | Pollux / KVM |");
    println!("|---|---|---:|---:|---:|---:|---:|");
    let value = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.1}"));
    for row in rows {
        let ratio = |other: Option<f64>| match (row.pollux, other) {
            (Some(pollux), Some(other)) if other > 0.0 => format!("{:.2}", pollux / other),
            _ => String::new(),
        };
        let [pollux, bare, kvm] = [row.pollux, row.bare, row.kvm].map(value);
        let (of_bare, of_kvm) = (ratio(row.bare), ratio(row.kvm));
        println!("| {} | {} | {pollux} | {bare} | {kvm} | {of_bare} | {of_kvm} |", row.bench, row.unit);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(&[5.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn units_follow_names() {
        assert_eq!(unit("disk", "disk_read_1M_MBps"), "MB/s");
        assert_eq!(unit("boot", "boot_to_user_s"), "s");
        assert_eq!(unit("idle", "guests_wakes_per_s"), "1/s");
        assert_eq!(unit("exits", "cpuid"), "cycles");
        assert_eq!(unit("instructions", "cpuid"), "instructions");
        assert_eq!(unit("vmx", "boot_to_user"), "instructions");
        assert_eq!(unit("net", "net_round_trip_us"), "us");
    }
}
