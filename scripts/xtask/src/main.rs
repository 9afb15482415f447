//! `cargo xtask`: prepares the machine, builds images and guests, runs, tests, demonstrates and measures Pollux. Each
//! subcommand has a module of its name; `steps` and `paths` serve them all, and the `e2e` crate drives the emulators.

mod artifacts;
mod bench;
mod bochs;
mod cpio;
mod demo;
mod fuzz;
mod guest;
mod image;
mod kernel;
mod paths;
mod programs;
mod report;
mod reproducible;
mod run;
mod setup;
mod steps;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs, tests and measures Pollux")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing: Debian packages and the Rust target
    Setup,
    /// Build the hybrid boot image, to be written to a USB stick or a CD
    Image(image::Options),
    /// Boot the image in an emulator, with the demonstration guest
    Run(run::Options),
    /// Run every test; `--quick` takes under five minutes
    Test(test::Options),
    /// Show without a person what the image does
    Demo(demo::Options),
    /// Measure Pollux against the bare emulator and against nested KVM + QEMU
    Bench(bench::Options),
    /// Run the fuzz targets
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Setup => setup::setup(),
        Command::Image(options) => image::command(&options),
        Command::Run(options) => run::command(&options),
        Command::Test(options) => test::command(&options),
        Command::Demo(options) => demo::command(&options),
        Command::Bench(options) => bench::command(&options),
        Command::Fuzz(options) => fuzz::command(&options),
    }
}
