//! The small Linux guest: devices, states and ends of a VM.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{Artifacts, GUEST_BOOT_LIMIT, Host, LINUX, SCRATCH_DISK, TINY_INITRD, TINY_PASSWORD};

/// For a guest that has powered itself off to be listed as stopped.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Each has one chance in a few to hit a guest that QEMU owes nothing but an interrupt it has delivered.
const EMULATOR_STOPS: u32 = 200;

/// Waits until something is so, or for two minutes; says at last whether it is.
const WAIT: &str =
    "n=0; until CONDITION || test $n = 120; do sleep 1; n=$((n+1)); done; CONDITION && echo yes || echo no";

/// The small guest with a shell.
pub struct Guest {
    /// The host it runs on.
    pub host: Host,
    /// How many commands were run: the console shows first what it printed before, so each has a number of its own.
    commands: u32,
}

impl Guest {
    /// Starts it as `t` with these options, and logs in.
    pub fn start(mut host: Host, options: &str) -> Result<Self> {
        create(&mut host, "t", "shell=yes", options)?;
        let mut console = host.attach("t")?;
        console.login("root", TINY_PASSWORD)?;
        console.leave()?;
        Ok(Self { host, commands: 0 })
    }

    /// The guest, which was saved, on the host as it is after it was switched off and on.
    pub fn restart_host(self, boot: impl FnOnce() -> Result<Host>) -> Result<Self> {
        self.host.power_off()?;
        Ok(Self { host: boot()?, ..self })
    }

    /// Runs a command and gives what it printed.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.commands += 1;
        run(&mut self.host, self.commands, command)
    }

    /// Waits until a condition holds in the guest.
    pub fn expect(&mut self, condition: &str) -> Result<()> {
        let answer = self.run(&WAIT.replace("CONDITION", condition))?;
        ensure!(answer == "yes", self.host.emulator().failure(&format!("in the guest it is not so: {condition}")));
        Ok(())
    }
}

/// Runs a command in the shell at the console of `t` and gives what it printed. Each has a `number` of its own.
pub fn run(host: &mut Host, number: u32, command: &str) -> Result<String> {
    let mut console = host.attach("t")?;
    console.send(&format!("printf '<%s:%s>\\n' \"$({command})\" {number}\r"))?;
    let output = console.expect(&format!(":{number}>"), GUEST_BOOT_LIMIT)?;
    console.leave()?;
    Ok(output.rsplit('<').next().unwrap_or_default().to_owned())
}

/// Creates and starts a VM with the small guest; `words` go on its kernel's command line, `options` on `vm create`.
pub fn create(host: &mut Host, vm: &str, words: &str, options: &str) -> Result<()> {
    host.ask(&format!(
        "vm create {vm} --kernel {LINUX} --initrd {TINY_INITRD} --cmdline \"console=ttyS0 quiet {words}\" {options} --start"
    ))?;
    Ok(())
}

/// Runs the guest's own test of `parts`, then sees it power itself off.
pub fn run_selftest(host: &mut Host, vm: &str, parts: &str, options: &str) -> Result<()> {
    create(host, vm, &format!("selftest={parts}"), options)?;
    let mut console = host.attach(vm)?;
    let (which, _) = console.expect_any(&["SELFTEST ok", "SELFTEST FAILED", "Kernel panic"], GUEST_BOOT_LIMIT)?;
    ensure!(which == 0, console.emulator().failure("the guest's own test failed"));
    console.leave()?;
    host.wait_state(vm, "stopped", STOP_LIMIT)
}

/// Logs in at the console of a guest started with the word `shell=yes`, runs commands, and has the guest switch itself off.
pub fn log_in_and_shut_down(host: &mut Host, vm: &str) -> Result<()> {
    let mut console = host.attach(vm)?;
    console.login("root", TINY_PASSWORD)?;
    ensure!(console.run("id -un")? == "root", "another user was logged in");
    ensure!(console.run("uname -sm")? == "Linux x86_64", "another kernel answers");
    console.run("test -d /proc/1 && test -c /dev/console")?;
    console.leave()?;
    power_off(host, vm)
}

/// Has a guest with a shell at its console switch itself off.
pub fn power_off(host: &mut Host, vm: &str) -> Result<()> {
    let mut console = host.attach(vm)?;
    console.send("poweroff -f\r")?;
    console.expect("Power down", GUEST_BOOT_LIMIT)?;
    console.leave()?;
    host.wait_state(vm, "stopped", STOP_LIMIT)
}

/// Disk, NIC, random numbers and clock of one guest.
pub fn selftest(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.fast("selftest")?)?;
    run_selftest(&mut host, "t", "disk,nic,rng,clock", &format!("--disk {SCRATCH_DISK} --nic"))?;
    host.ask("vm delete t")?;
    ensure!(host.state("t")?.is_none(), "a deleted VM is listed");
    host.power_off()
}

/// A paused guest prints nothing more, and goes on where it stood.
pub fn pause_resume(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.fast("pause_resume")?)?;
    create(&mut host, "t", "linger=yes", "")?;
    let mut console = host.attach("t")?;
    console.expect("tick 2", GUEST_BOOT_LIMIT)?;
    console.leave()?;
    host.ask("vm pause t")?;
    ensure!(host.state("t")?.as_deref() == Some("paused"), "the VM is not paused");
    let last = last_tick(&mut host)?;
    std::thread::sleep(Duration::from_secs(3));
    let still = last_tick(&mut host)?;
    ensure!(last == still, "a paused guest went from tick {last} to {still}");
    host.ask("vm resume t")?;
    host.attach("t")?.expect(&format!("tick {}\r", last + 1), GUEST_BOOT_LIMIT)?;
    Ok(())
}

/// A busy guest lives through an emulator that stops and goes on: QEMU would deliver its last interrupt a second time.
pub fn emulator_stops(artifacts: &Artifacts) -> Result<()> {
    let host = artifacts.boot(&artifacts.fast("emulator_stops")?)?;
    let mut guest = Guest::start(host, "--vcpus 2")?;
    guest.run("for n in 1 2; do (while :; do :; done) >/dev/null 2>&1 & done")?;
    for _ in 0..EMULATOR_STOPS {
        guest.host.emulator().monitor("stop")?;
        guest.host.emulator().monitor("cont")?;
    }
    ensure!(guest.run("echo alive")? == "alive", "the guest's shell does not answer");
    guest.host.power_off()
}

/// The last tick in what the console has kept.
fn last_tick(host: &mut Host) -> Result<u32> {
    let mut console = host.attach("t")?;
    // What has been kept is printed before anything is typed.
    std::thread::sleep(Duration::from_secs(1));
    let before = console.emulator().transcript();
    console.leave()?;
    let last = before.rsplit("tick ").next().unwrap_or_default();
    let digits: String = last.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().map_err(|_| host.emulator().failure("no tick was seen"))
}

/// `vm reset` starts the guest again from its kernel.
pub fn reset(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.fast("reset")?)?;
    create(&mut host, "t", "linger=yes", "")?;
    for _ in 0..2 {
        let mut console = host.attach("t")?;
        console.expect("BENCH boot_to_user_s", GUEST_BOOT_LIMIT)?;
        console.expect("tick 1\r", GUEST_BOOT_LIMIT)?;
        console.leave()?;
        host.ask("vm reset t")?;
    }
    host.ask("vm kill t")?;
    host.wait_state("t", "stopped", STOP_LIMIT)?;
    host.power_off()
}

/// `poweroff` of the host ends although a guest ignores its power button.
pub fn power_button(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.fast("power_button")?)?;
    create(&mut host, "t", "linger=yes", "")?;
    host.attach("t")?.expect("tick 1", GUEST_BOOT_LIMIT)?;
    host.emulator().send("\x1d")?;
    host.power_off()
}

/// What is not a Linux kernel is refused, and the next VM starts.
pub fn malformed_kernel(artifacts: &Artifacts) -> Result<()> {
    fs::create_dir_all(&artifacts.logs)?;
    let mut cut = fs::read(&artifacts.linux)?;
    cut.truncate(5000);
    let mut wild = fs::read(&artifacts.linux)?;
    // setup_sects, init_size and the preferred address of the setup header (Linux Documentation/arch/x86/boot.rst).
    wild[0x1f1] = 0xff;
    wild[0x258..0x264].fill(0xff);
    let files = [("cut", cut), ("wild", wild), ("empty", Vec::new()), ("text", b"not a kernel\n".repeat(100))];
    let mut paths = Vec::new();
    for (name, bytes) in &files {
        let path = artifacts.logs.join(format!("malformed-{name}"));
        fs::write(&path, bytes)?;
        paths.push((path, *name));
    }
    let modules: Vec<_> =
        paths.iter().filter(|(_, name)| *name != "empty").map(|(path, name)| (path.as_path(), *name)).collect();
    let mut host = artifacts.boot(&artifacts.fast_with("malformed_kernel", &modules)?)?;
    for (_, name) in &modules {
        host.refusal(&format!("vm create {name} --kernel {name} --start"))?;
    }
    run_selftest(&mut host, "t", "clock", "")?;
    host.power_off()
}
