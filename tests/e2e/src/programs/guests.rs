//! The bare test guests: each does something that a host must withstand, beside a Linux guest that must not notice.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::tiny;
use crate::{Artifacts, COMMAND_LIMIT, GUEST_BOOT_LIMIT, Host, PROMPT};

/// For a test guest to end, or to say what is waited for.
const LIMIT: Duration = Duration::from_secs(180);

/// How a bare guest ends.
enum Ending {
    /// It reports its checks and powers off.
    Off,
    /// It says this and then spins: only its host can end it.
    Spins(&'static str),
    /// It says this each time it boots, and resets.
    Resets(&'static str),
}

impl Ending {
    fn of(guest: &str) -> Self {
        match guest {
            "spin" => Self::Spins("spinning"),
            "reset_loop" => Self::Resets("resetting"),
            // A processor that shuts down makes the board reset.
            "triple_fault" => Self::Resets("faulting"),
            _ => Self::Off,
        }
    }
}

/// QEMU 10 aborts (`tcg_handle_interrupt: assertion failed`) when a MOV to CR8 lets a virtual interrupt through. Bochs
/// runs this guest on both vendors' models.
const ABORTS_QEMU: &str = "cr8";

/// A processor with protection keys and five levels of page tables, too.
pub const WITH_ALL: &str = "EPYC,+svm,+npt,+x2apic,+pku,+la57";

/// Where bare guests run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// On QEMU, with a disk.
    Qemu,
    /// On Bochs, without one.
    Bochs,
    /// The same with AMD's processor.
    BochsAmd,
}

impl Where {
    /// What goes on `vm create`.
    fn options(self) -> &'static str {
        match self {
            Self::Qemu => DISK,
            Self::Bochs | Self::BochsAmd => "",
        }
    }

    fn runs(self, guest: &str) -> bool {
        self != Self::Qemu || guest != ABORTS_QEMU
    }

    /// What goes on a guest's command line. In Bochs `memory_hash` would take 40 s, as long as all others together. QEMU's task
    /// switches are not in all as the manual has them, and Bochs' SVM takes an INT for the last event, also where its task gate
    /// exits.
    fn words(self, guest: &str) -> &'static str {
        match (self, guest) {
            (Self::Bochs | Self::BochsAmd, "memory_hash") => "mib=16 rounds=3",
            (Self::Qemu, "task_switch") => "tcg=1",
            (Self::BochsAmd, "task_switch") => "int=0",
            _ => "",
        }
    }
}

/// The disk that a bare guest may overwrite, where the host has disks.
pub const DISK: &str = "--disk scratch";

/// Boots one bare guest, which says hello.
pub fn hello(artifacts: &Artifacts) -> Result<()> {
    let guest = artifacts.guest("hello")?;
    let mut host = artifacts.boot(&artifacts.fast_with("hello", &[(guest, "hello")])?)?;
    run(&mut host, "hello", "", DISK)?;
    host.power_off()
}

/// Memory that one guest wrote is zeroed before another gets it.
pub fn remains(artifacts: &Artifacts) -> Result<()> {
    let guest = artifacts.guest("remains")?;
    let mut host = artifacts.boot(&artifacts.fast_with("remains", &[(guest, "remains")])?)?;
    for round in 0..3 {
        run(&mut host, "remains", "", "").with_context(|| format!("round {round}"))?;
    }
    host.power_off()
}

/// Two guests on one CPU have every vector register full, and neither sees the other's.
pub fn vectors(artifacts: &Artifacts) -> Result<()> {
    let guest = artifacts.guest("vectors")?;
    let mut host = artifacts.boot(&artifacts.fast_with("vectors", &[(guest, "vectors")])?.cpus(1))?;
    host.ask("vm create other --kernel vectors --cmdline \"seed=2 endless=1\" --memory 64M --start")?;
    let mut console = host.attach("other")?;
    console.expect("kept", LIMIT)?;
    console.leave()?;
    run(&mut host, "vectors", "seed=1", "")?;
    let mut console = host.attach("other")?;
    // What it said so far is shown at once, and ends with what went wrong.
    console.expect("kept", LIMIT)?;
    console.emulator().skip();
    let (which, _) = console.expect_any(&["kept", "not ok "], LIMIT)?;
    ensure!(which == 0, console.emulator().failure("a guest's registers were changed"));
    console.leave()?;
    host.ask("vm kill other")?;
    host.wait_state("other", "stopped", LIMIT)?;
    host.power_off()
}

/// Runs every bare guest beside a Linux guest.
pub fn all(artifacts: &Artifacts) -> Result<()> {
    let modules: Vec<(&Path, &str)> =
        artifacts.guests.iter().map(|(name, path)| (path.as_path(), name.as_str())).collect();
    let mut host = artifacts.boot(&artifacts.fast_with("bare_guests", &modules)?.cpu(WITH_ALL))?;
    all_on(&mut host, artifacts, Where::Qemu)?;
    host.power_off()
}

/// The same on a host that has them as boot modules.
pub fn all_on(host: &mut Host, artifacts: &Artifacts, place: Where) -> Result<()> {
    start_witness(host)?;
    each_on(host, artifacts, place, check_witness)
}

/// Runs every bare guest on a host that has them as boot modules, and after each looks at the host by `check`.
pub fn each_on(
    host: &mut Host,
    artifacts: &Artifacts,
    place: Where,
    mut check: impl FnMut(&mut Host) -> Result<()>,
) -> Result<()> {
    ensure!(!artifacts.guests.is_empty(), "there are no bare test guests");
    let options = place.options();
    for (name, _) in artifacts.guests.iter().filter(|(name, _)| place.runs(name)) {
        run(host, name, place.words(name), options).with_context(|| format!("test guest `{name}`"))?;
        check(host).with_context(|| format!("after test guest `{name}`"))?;
    }
    withheld(host).context("test guest `features` with a profile that withholds features")?;
    // Its other way to reset.
    run(host, "reset_loop", "8042", options).context("test guest `reset_loop` with the keyboard controller")?;
    check(host)
}

/// What a CPU profile withholds is refused, also where the processor has it.
fn withheld(host: &mut Host) -> Result<()> {
    const WITHHELD: &str = "SMEP,SMAP,UMIP,FSGSBASE,PCID,XSAVE,FFXSR,SYSCALL,LA57";
    host.ask(&format!("cpu profile derive modest --without {WITHHELD}"))?;
    run(host, "features", "strict=1", "--cpu-profile modest")?;
    run(host, "la57", "strict=1", "--cpu-profile modest")
}

/// Starts a guest beside which others misbehave.
pub fn start_witness(host: &mut Host) -> Result<()> {
    tiny::create(host, "witness", "linger=yes", "")?;
    let mut console = host.attach("witness")?;
    console.expect("tick 1", GUEST_BOOT_LIMIT)?;
    console.leave()
}

/// Sees that guest still run: two more ticks.
pub fn check_witness(host: &mut Host) -> Result<()> {
    ensure!(host.state("witness")?.as_deref() == Some("running"), "the other guest has stopped");
    host.emulator().send("vm console witness\r")?;
    // What has been kept is shown at once; a new tick follows within seconds.
    host.emulator().expect("tick", COMMAND_LIMIT)?;
    std::thread::sleep(Duration::from_secs(1));
    host.emulator().skip();
    host.emulator().expect("tick", COMMAND_LIMIT).context("the other guest stands still")?;
    host.emulator().send("\x1d")?;
    host.emulator().expect(PROMPT, COMMAND_LIMIT).map(|_| ())
}

/// Runs one bare guest with these words on its command line and sees it end as it should.
pub fn run(host: &mut Host, guest: &str, words: &str, options: &str) -> Result<()> {
    // An underscore is no part of a VM's name.
    let name = &guest.replace('_', "-");
    host.ask(&format!("vm create {name} --kernel {guest} --cmdline \"{words}\" --memory 128M {options} --start"))?;
    let mut console = host.attach(name)?;
    match Ending::of(guest) {
        Ending::Off => {
            let (which, _) = console.expect_any(&["\ndone", "not ok ", "Bail out!"], LIMIT)?;
            ensure!(which == 0, console.emulator().failure("it did not get what hardware gives"));
            console.leave()?;
            host.wait_state(name, "stopped", LIMIT)?;
        }
        Ending::Spins(says) => {
            console.expect(says, LIMIT)?;
            console.leave()?;
        }
        Ending::Resets(says) => {
            for _ in 0..3 {
                console.expect(says, LIMIT)?;
            }
            console.leave()?;
        }
    }
    if host.state(name)?.as_deref() == Some("running") {
        host.ask(&format!("vm kill {name}"))?;
    }
    host.ask(&format!("vm delete {name}")).map(|_| ())
}
