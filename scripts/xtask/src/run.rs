//! `cargo xtask run`: boots the image as a USB stick in an emulator. A person gets the prompt; `--smoke` tries everything
//! without one.

use anyhow::Result;
use clap::Args;
use e2e::{Accel, Artifacts, Launch, Medium};

use crate::{artifacts, setup};

/// Options of `cargo xtask run`.
#[derive(Args)]
pub struct Options {
    /// Check the guest without a person, and exit with 0 or 1; the last line is the verdict
    #[arg(long)]
    smoke: bool,
    /// Boot by UEFI instead of a BIOS
    #[arg(long)]
    uefi: bool,
    /// Use the machine's own AMD-V, nested
    #[arg(long, conflicts_with = "tcg")]
    kvm: bool,
    /// Use the emulator's AMD-V even where the machine has its own
    #[arg(long)]
    tcg: bool,
}

impl Options {
    fn accel(&self) -> Accel {
        match (self.kvm, self.tcg) {
            (true, _) => Accel::Kvm,
            (_, true) => Accel::Tcg,
            _ => Accel::detect(),
        }
    }
}

/// Builds what is missing, then boots it.
pub fn command(options: &Options) -> Result<()> {
    if options.smoke {
        return smoke(options);
    }
    let artifacts = prepare(options)?;
    println!("{}", introduction(options.accel()));
    let status = launch(&artifacts, options).run_at_terminal()?;
    std::process::exit(status.code().unwrap_or(1))
}

fn smoke(options: &Options) -> Result<()> {
    let result = prepare(options).and_then(|artifacts| {
        eprintln!("booting; the serial line's log is {}", artifacts.logs.join("smoke.log").display());
        e2e::smoke_on(&artifacts, &launch(&artifacts, options))
    });
    match result {
        Ok(()) => println!("smoke: ok"),
        Err(error) => {
            eprintln!("{error:#}");
            println!("smoke: FAILED: {}", reason(&error));
            std::process::exit(1);
        }
    }
    Ok(())
}

/// The causes of an error on one line, without transcripts.
pub fn reason(error: &anyhow::Error) -> String {
    let first_lines: Vec<String> =
        error.chain().map(|cause| cause.to_string().lines().next().unwrap_or_default().to_owned()).collect();
    first_lines.join(": ")
}

fn prepare(options: &Options) -> Result<Artifacts> {
    setup::setup()?;
    artifacts::build(options.accel())
}

fn launch(artifacts: &Artifacts, options: &Options) -> Launch {
    artifacts.imaged(if options.smoke { "smoke" } else { "run" }, Medium::Usb, options.uefi)
}

fn introduction(accel: Accel) -> String {
    let with = match accel {
        Accel::Tcg | Accel::Counting => "emulated AMD-V: everything takes several times as long as on a real machine",
        Accel::Kvm => "this machine's AMD-V",
    };
    format!(
        "\nBooting the USB image in QEMU ({with}).\n\
         At the prompt `pollux>`, the Debian guest is already starting:\n\
         \x20 vm console debian   attach to its console (log in as root, password {}); Ctrl-] leaves it\n\
         \x20 vm list             what runs;  help  the rest\n\
         \x20 poweroff            shut the guest down and end the emulator; Ctrl-^ then x ends it at once\n\
         Nothing is kept: the disks' changes are forgotten.\n",
        e2e::DEBIAN_PASSWORD
    )
}
