//! `cargo xtask demo`: shows without a person that the image does what the README says.

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use e2e::Accel;

use crate::report::Report;
use crate::{artifacts, setup};

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub struct Options {
    /// Which demonstration
    demonstration: Demonstration,
}

#[derive(Clone, Copy, ValueEnum)]
enum Demonstration {
    /// BIOS and UEFI, CD and USB stick; two guests that ping each other; one killed fifty times
    Boot,
    /// Two hosts: a VM moves there and back, and stays where the link is cut
    Migrate,
}

/// Runs the demonstration.
pub fn command(options: &Options) -> Result<()> {
    let programs: &[&str] = match options.demonstration {
        Demonstration::Boot => &["bios_cd", "bios_usb", "uefi_usb", "bios_stick", "uefi_stick", "pings", "kill_loop"],
        Demonstration::Migrate => &["migrate", "migrate_link_cut"],
    };
    setup::setup()?;
    let artifacts = artifacts::build(Accel::detect())?;
    let mut report = Report::default();
    for program in e2e::PROGRAMS.iter().filter(|program| programs.contains(&program.name)) {
        report.program(program, &artifacts);
    }
    ensure!(report.passed == programs.len(), "the demonstration failed: {}", report.summary());
    println!("{}", report.summary());
    Ok(())
}
