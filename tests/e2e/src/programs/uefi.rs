//! Guests that boot an installed disk by UEFI: firmware, GRUB, kernel, and what the firmware keeps.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::tiny;
use crate::{Artifacts, Console, DEBIAN_PASSWORD, GUEST_BOOT_LIMIT, Host, Launch, OVMF_CODE, OVMF_VARIABLES};

/// For a Debian guest to shut down.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(180);
/// A variable that no firmware has: attributes (non-volatile, for boot services and the running system), then a value.
const VARIABLE: &str = "/sys/firmware/efi/efivars/Pollux-706f6c6c-7578-4000-8000-0000000000aa";
const VALUE: &str = r"\007\000\000\000kept";

/// A disk with GPT, system partition, GRUB and a kernel on ext4, booted without a kernel of the host's on two vCPUs; its
/// firmware's variables outlive a reset.
pub fn guest(artifacts: &Artifacts) -> Result<()> {
    let mut host = boot(artifacts, "uefi_guest", &[])?;
    refuse(&mut host)?;
    host.ask("vm create d --disk uefi --memory 512M --vcpus 2 --start")?;
    let refusal = host.refusal("vm save d --to uefi-vars")?;
    ensure!(refusal.contains("boots by UEFI"), "{refusal}");
    let mut console = host.attach("d")?;
    console.expect("GNU GRUB", GUEST_BOOT_LIMIT).context("GRUB did not come")?;
    console.login("root", DEBIAN_PASSWORD)?;
    let cpus = console.run("nproc")?;
    ensure!(cpus == "2", "the guest sees {cpus} CPUs");
    console.run(&format!("printf '{VALUE}' > {VARIABLE} && sync"))?;
    console.send("systemctl reboot\r")?;
    console.expect("GNU GRUB", GUEST_BOOT_LIMIT).context("GRUB did not come after the reset")?;
    console.login("root", DEBIAN_PASSWORD)?;
    let kept = console.run(&format!("cat {VARIABLE} | tail -c 4"))?;
    ensure!(kept == "kept", "after a reset the variable is {kept:?}");
    console.send("systemctl poweroff\r")?;
    console.leave()?;
    host.wait_state("d", "stopped", SHUTDOWN_LIMIT)?;
    host.power_off()
}

/// What a firmware keeps outlives the host's restart, whatever was being written when that came, and only the operator
/// erases it.
pub fn variables(artifacts: &Artifacts) -> Result<()> {
    let launch = launch(artifacts, "uefi_variables", &[])?.argument("-action", "reboot=reset");
    let mut host = artifacts.boot(&launch)?;
    let mut console = start_and_log_in(&mut host)?;
    // The kernel protects variables that it does not know, once they are there.
    console.run(&format!("printf '{VALUE}' > {VARIABLE} && chattr -i {VARIABLE}"))?;
    let value = VALUE.replace("kept", "$n");
    console.run(&format!("(n=1000; while printf \"{value}\" > {VARIABLE}; do n=$((n + 1)); done) & sleep 5"))?;
    console.leave()?;
    let refusal = host.refusal("vm erase-variables d")?;
    ensure!(refusal.contains("is running"), "{refusal}");
    host.reset()?;
    let mut console =
        start_and_log_in(&mut host).context("after the host's power was cut while variables were written")?;
    let kept = console.run(&format!("cat {VARIABLE} | tail -c 4"))?;
    ensure!(kept.parse::<u16>().is_ok_and(|number| number > 1000), "after the host restarted it is {kept:?}");
    console.leave()?;
    let show = host.ask("vm show d")?;
    ensure!(show["variables"] == "kept on uefi-vars", "{show}");
    host.ask("vm kill d")?;
    host.ask("vm erase-variables d")?;
    // Made anew, its console has nothing of the earlier boot.
    host.ask("vm delete d")?;
    let mut console = start_and_log_in(&mut host)?;
    let left = console.run(&format!("ls {VARIABLE} 2>&1 | tail -n 1"))?;
    ensure!(left.contains("No such file"), "an erased variable is there: {left:?}");
    console.leave()?;
    host.power_off()
}

/// Creates the VM, as an operator does after each start of the host.
fn start_and_log_in(host: &mut Host) -> Result<Console<'_>> {
    host.ask("vm create d --disk uefi --memory 512M --start")?;
    let mut console = host.attach("d")?;
    console.expect("GNU GRUB", GUEST_BOOT_LIMIT).context("GRUB did not come")?;
    console.login("root", DEBIAN_PASSWORD)?;
    Ok(console)
}

/// Such a guest, two vCPUs by direct boot and a Multiboot kernel, all running at once.
pub fn side_by_side(artifacts: &Artifacts) -> Result<()> {
    let bare = artifacts.guest("multiboot")?.with_extension("");
    let mut host = boot(artifacts, "guests_side_by_side", &[(bare.as_path(), "multiboot")])?;
    host.ask("vm create disk --disk uefi --memory 512M --start")?;
    tiny::create(&mut host, "direct", "linger=yes", "--memory 192M --vcpus 2")?;
    let image = "--kernel multiboot --initrd multiboot --memory 64M";
    host.ask(&format!("vm create kernel {image} --cmdline \"debug=42\" --debug-exit --debug-console --start"))?;
    host.wait_state("kernel", "exited", GUEST_BOOT_LIMIT)?;
    let mut console = host.attach("direct")?;
    console.expect("tick ", GUEST_BOOT_LIMIT).context("the guest of two vCPUs")?;
    console.leave()?;
    let mut console = host.attach("disk")?;
    console.expect("login: ", GUEST_BOOT_LIMIT).context("the guest that boots by UEFI")?;
    console.leave()?;
    for vm in ["disk", "direct"] {
        let state = host.state(vm)?;
        ensure!(state.as_deref() == Some("running"), "{vm} is {state:?}");
    }
    let list = host.command("vm list")?;
    println!("{list}");
    host.power_off()
}

/// What cannot boot is refused, and nothing is kept of it.
fn refuse(host: &mut Host) -> Result<()> {
    for (command, why) in [
        ("vm create x", "nothing to boot"),
        ("vm create x --disk uefi --cmdline quiet", "go with a kernel"),
        ("vm create x --disk nowhere --start", "there is no disk nowhere"),
    ] {
        let refusal = host.refusal(command)?;
        ensure!(refusal.contains(why), "`{command}`: {refusal}");
    }
    ensure!(host.state("x")?.is_none(), "a VM that was refused is there");
    Ok(())
}

fn boot(artifacts: &Artifacts, name: &str, modules: &[(&std::path::Path, &str)]) -> Result<Host> {
    artifacts.boot(&launch(artifacts, name, modules)?)
}

fn launch(artifacts: &Artifacts, name: &str, modules: &[(&std::path::Path, &str)]) -> Result<Launch> {
    let ovmf = [(artifacts.ovmf.0.as_path(), OVMF_CODE), (artifacts.ovmf.1.as_path(), OVMF_VARIABLES)];
    Ok(artifacts.bare_with(name, &[modules, &ovmf].concat())?.disk(&artifacts.uefi_datastore))
}
