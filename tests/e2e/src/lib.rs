//! Boots machines in an emulator and talks to them over their serial line. The main types are [`Launch`] (a machine to
//! be; [`Pc`] in Bochs), [`Emulator`] (a machine that runs), [`Host`] (Pollux at its prompt) and [`Console`] (a guest); [`PROGRAMS`] lists
//! the test programs that `cargo xtask test` runs with the [`Artifacts`] it has built.

mod artifacts;
mod bochs;
mod bus;
mod client;
mod console;
mod crashed;
mod emulator;
mod erratum;
mod host;
mod launch;
mod monitor;
mod permit;
mod programs;
mod skipped;
mod transcript;
mod wire;

pub use artifacts::{
    Artifacts, DEBIAN_DISK, DEBIAN_INITRD, DEBIAN_PASSWORD, LINUX, OVMF_CODE, OVMF_VARIABLES, SCRATCH_DISK,
    TINY_INITRD, TINY_PASSWORD, blank_configuration,
};
pub use bochs::{Bochs, Card, Model, Pc, Release};
pub use console::{Console, GUEST_BOOT_LIMIT, GUEST_COMMAND_LIMIT};
pub use emulator::Emulator;
pub use host::{BOOT_LIMIT, COMMAND_LIMIT, Host, PROMPT, strip_escapes};
pub use launch::{Accel, DiskBus, Launch, Machine, Medium, NicModel, Serial};
pub use permit::{EMULATORS_MAX, Permit};
pub use programs::bochs::measure_writes;
pub use programs::multiboot::{MODULES as MULTIBOOT_KERNELS, make as make_multiboot_kernels};
pub use programs::smoke::smoke_on;
pub use programs::{PROGRAMS, Program};
pub use skipped::Skipped;
pub use transcript::{Found, Missing, Transcript};
