//! Guests' consoles: kept output, attaching and leaving, and a guest whose output nobody reads.

use anyhow::{Result, ensure};

use super::tiny;
use crate::{Artifacts, GUEST_BOOT_LIMIT};

/// What a guest printed before anyone attached is shown; Ctrl-] leaves; attaching again goes on.
pub fn console(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.fast("console")?)?;
    tiny::create(&mut host, "a", "linger=yes", "")?;
    tiny::create(&mut host, "b", "linger=yes", "")?;
    for vm in ["a", "b", "a"] {
        let mut console = host.attach(vm)?;
        // Printed once, long before the second visit.
        console.expect("BENCH boot_to_user_s", GUEST_BOOT_LIMIT)?;
        console.expect("tick 3", GUEST_BOOT_LIMIT)?;
        console.leave()?;
        ensure!(host.state(vm)?.as_deref() == Some("running"), "leaving the console of {vm} stopped it");
    }
    host.power_off()
}

/// A guest that prints far more than is kept runs to its end unattended.
pub fn unread(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.fast("unread_console")?)?;
    // `initcall_debug` prints several hundred KiB: far more than the 64 KiB that are kept.
    tiny::create(&mut host, "t", "loglevel=8 ignore_loglevel initcall_debug selftest=clock", "")?;
    host.wait_state("t", "stopped", GUEST_BOOT_LIMIT)?;
    let mut console = host.attach("t")?;
    console.expect("SELFTEST ok", GUEST_BOOT_LIMIT)?;
    console.leave()?;
    host.power_off()
}
