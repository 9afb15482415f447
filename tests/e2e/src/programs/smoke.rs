//! What `scripts/run --smoke` does: the image, the real Debian guest, and everything in it that a person would try.

use std::fs::{self, File};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::{Accel, Artifacts, Console, DEBIAN_PASSWORD, Host, Launch, Medium};

/// For a Debian guest to shut down.
pub const SHUTDOWN_LIMIT: Duration = Duration::from_secs(180);
/// How far the guest's clock may be from this machine's: the emulated RTC counts whole seconds, and reading the guest's
/// clock takes a while on a loaded machine.
const CLOCK_TOLERANCE_S: u64 = 20;

/// Boots the image as a USB stick and checks the Debian guest.
pub fn smoke(artifacts: &Artifacts) -> Result<()> {
    smoke_on(artifacts, &artifacts.imaged("smoke", Medium::Usb, false))
}

/// As [`smoke`], on a machine of the caller's.
///
/// # Errors
/// With the first thing that did not work.
pub fn smoke_on(artifacts: &Artifacts, launch: &Launch) -> Result<()> {
    log_in_and_shut_down(artifacts.boot(launch)?)
}

/// Logs in to the Debian guest of a host that started it, checks it, and switches both off.
pub fn log_in_and_shut_down(mut host: Host) -> Result<()> {
    let mut console = host.attach("debian")?;
    console.login("root", DEBIAN_PASSWORD)?;
    check_guest(&mut console)?;
    console.leave()?;
    // The power button: the guest shuts itself down.
    host.ask("vm stop debian")?;
    host.wait_state("debian", "stopped", SHUTDOWN_LIMIT)?;
    host.power_off()
}

/// The same checks on the guest without a hypervisor: shows whether a failure is the guest's own.
pub fn guest_alone(artifacts: &Artifacts) -> Result<()> {
    fs::create_dir_all(&artifacts.logs)?;
    let scratch = artifacts.logs.join("scratch.img");
    File::create(&scratch)?.set_len(64 << 20)?;
    let words = "root=LABEL=debian rw console=ttyS0 net.ifnames=0 quiet";
    let launch = Launch::new("guest_alone").accel(Accel::Tcg).memory_mib(512);
    let launch = launch.linux(&artifacts.linux, &artifacts.debian_initrd, words);
    let mut emulator = launch.disk(&artifacts.datastore).disk(&scratch).nic("").spawn(&artifacts.logs)?;
    let mut console = Console::new(&mut emulator);
    console.login("root", DEBIAN_PASSWORD)?;
    check_guest(&mut console)?;
    console.send("systemctl poweroff\r")?;
    emulator.wait_off(SHUTDOWN_LIMIT).map(|_| ())
}

fn check_guest(console: &mut Console<'_>) -> Result<()> {
    check_disk(console).context("disk")?;
    check_network(console).context("network")?;
    check_clock(console).context("clock")?;
    let failed = console.run("systemctl --failed --no-legend --plain")?;
    ensure!(failed.is_empty(), "services failed in the guest: {failed}");
    Ok(())
}

/// Random bytes written past the cache come back the same, and the root file system holds what is written to it.
fn check_disk(console: &mut Console<'_>) -> Result<()> {
    console.run("dd if=/dev/urandom of=/root/pattern bs=1M count=16 status=none")?;
    console.run("dd if=/root/pattern of=/dev/vdb bs=1M oflag=direct conv=fsync status=none")?;
    console.run("sync && echo 3 > /proc/sys/vm/drop_caches")?;
    let file = console.run("md5sum < /root/pattern")?;
    let disk = console.run("dd if=/dev/vdb bs=1M count=16 iflag=direct status=none | md5sum")?;
    ensure!(file == disk, "what was read from the disk ({disk}) is not what was written ({file})");
    console.run("rm /root/pattern && sync")?;
    Ok(())
}

/// The guest got an address by DHCP and reaches the gateway outside the host.
fn check_network(console: &mut Console<'_>) -> Result<()> {
    console.run(
        "for i in $(seq 60); do ip -4 route | grep -q ^default && break; sleep 1; done; ip -4 route | grep ^default",
    )?;
    console.run("ping -c 3 -W 5 10.0.2.2")?;
    Ok(())
}

/// The guest's clock shows this machine's time, and runs as fast as it does.
fn check_clock(console: &mut Console<'_>) -> Result<()> {
    let (first, here_first) = (guest_time(console)?, now());
    ensure!(first.abs_diff(here_first) <= CLOCK_TOLERANCE_S, "the guest's date is {first}, here it is {here_first}");
    console.run("sleep 5")?;
    let (second, here_second) = (guest_time(console)?, now());
    let (there, here) = (second.saturating_sub(first), here_second - here_first);
    ensure!(there >= 5 && there.abs_diff(here) <= CLOCK_TOLERANCE_S, "{there} s passed in the guest, {here} s here");
    let unstable = console.run("dmesg | grep -ci 'clocksource.*unstable' || true")?;
    ensure!(unstable == "0", "the guest gave up its clock source");
    Ok(())
}

fn guest_time(console: &mut Console<'_>) -> Result<u64> {
    let text = console.run("date +%s")?;
    text.parse().with_context(|| format!("`date +%s` printed {text:?}"))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
