//! The host by itself: it comes up, says what it has, and answers mistakes.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Accel, Artifacts, Host, Medium, Skipped};

/// The prompt comes, `help` and `host` answer, and the host switches itself off.
pub fn prompt(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.fast("prompt")?)?;
    let report = answers(&mut host, "svm", 2)?;
    ready(&report["disks"]).context("disks")?;
    ready(&report["nics"]).context("NICs")?;
    host.power_off()
}

/// `help` and `host` answer, and the report, which is given, has this back end and so many CPUs.
pub fn answers(host: &mut Host, backend: &str, cpus: u32) -> Result<Value> {
    let help = host.command("help")?;
    for word in ["vm", "disk", "net", "log", "trace", "stat", "poweroff"] {
        ensure!(help.contains(word), "`help` does not mention `{word}`: {help}");
    }
    let report = host.ask("host")?;
    ensure!(report["backend"] == backend, "the back end is {}", report["backend"]);
    ensure!(report["cpus"] == cpus, "{} CPUs were started and not {cpus}", report["cpus"]);
    Ok(report)
}

fn ready(devices: &Value) -> Result<()> {
    let ready = devices.as_array().is_some_and(|list| list.iter().any(|device| device["status"] == "ready"));
    ensure!(ready, "none is ready: {devices}");
    Ok(())
}

/// The image on this machine's own processor, nested in its KVM: to a login, as in emulation.
pub fn nested_kvm(artifacts: &Artifacts) -> Result<()> {
    let backend = Accel::nested_backend().map_err(Skipped)?;
    let launch = artifacts.imaged("nested_kvm", Medium::Usb, false).accel(Accel::Kvm);
    let mut host = artifacts.boot(&launch)?;
    answers(&mut host, backend, 2)?;
    super::smoke::log_in_and_shut_down(host)
}

/// One CPU carries the shell and a guest.
pub fn one_cpu(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.fast("one_cpu")?.cpus(1))?;
    super::tiny::run_selftest(&mut host, "t", "clock", "")?;
    host.power_off()
}

/// One CPU and no device: nothing is due but the guest, which must get on.
pub fn bare_host(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.bare_with("bare_host", &[])?.cpus(1))?;
    super::tiny::run_selftest(&mut host, "t", "clock", "")?;
    host.power_off()
}

/// A CPU without AMD-V: the report says so, the shell comes up, and a VM is refused with the reason.
pub fn no_svm(artifacts: &Artifacts) -> Result<()> {
    let launch = artifacts.fast("no_svm")?.accel(crate::Accel::Tcg).cpu("EPYC,-svm,+x2apic");
    let mut host = artifacts.boot(&launch)?;
    let report = host.ask("host")?;
    ensure!(report["backend"] == "none", "the back end is {}", report["backend"]);
    let reason = report["backend_reason"].as_str().context("`host` does not say why no guest can run")?;
    ensure!(reason.to_lowercase().contains("svm") || reason.contains("AMD-V"), "the reason is {reason:?}");
    host.refusal("vm create t --kernel linux --start")?;
    host.power_off()
}

/// Mistakes get one line with the remedy, and leave the prompt working.
pub fn mistakes(artifacts: &Artifacts) -> Result<()> {
    let mut host = artifacts.boot(&artifacts.fast("mistakes")?)?;
    for line in ["vm crate x", "vm create", "vm start nobody", "vm create t --kernel nothing --start", "nonsense"] {
        let answer = host.command(line)?;
        ensure!(!answer.is_empty() && answer.lines().count() <= 2, "`{line}` is answered by {answer:?}");
    }
    for line in ["vm start nobody", "vm create t --kernel linux --memory 12X", "disk show nothing"] {
        host.refusal(line)?;
    }
    ensure!(host.state("t")?.is_none(), "a VM of a refused command is listed");
    with_a_guest(&mut host)?;
    host.power_off()
}

/// Mistakes beside a VM `web` that runs, and what is said of each.
const MISTAKES: &[(&str, &str)] = &[
    ("vm create web --kernel linux", "there is a VM web already"),
    ("vm create t --kernel linux --memory 3T --start", "it needs 3145728 MiB of memory"),
    ("vm create t --kernel linux --memory 3T", "it needs 3145728 MiB of memory and the host has"),
    ("vm create t --kernel linux --memory 2000M --start", "it needs 2000 MiB of memory"),
    ("vm create t --kernel linux --memory 5T --start", "5T"),
    ("vm create t --kernel linux --memory 1K", "1K"),
    ("vm create t --kernel linux --memory 3M", "3M"),
    ("vm create t --kernel linux --memory 99999999999999999999G", "is not a size"),
    ("vm create t --kernel linux --memory -1M", "is not a size"),
    ("vm create t --kernel linux --disk scratch --start", "disk scratch is in use by web"),
    ("vm create t --kernel linux --disk nothing --start", "there is no disk nothing"),
    ("vm create t --kernel linux --disk scratch --disk scratch", "scratch"),
    ("vm create t --kernel linux --nic mac=03:00:00:00:00:07", "03:00:00:00:00:07"),
    ("vm create t --kernel linux --nic mac=02:00:00:00:00:07 --start", "02:00:00:00:00:07"),
    ("vm create t --kernel linux --vcpus 65", "`65` is not a number of vCPUs"),
    ("vm create t --kernel linux --vcpus 0", "`0` is not a number of vCPUs"),
    ("vm create t --kernel linux --pin 99 --start", "99"),
    ("vm create t --kernel linux --pin 7", "it is pinned to CPU 7, which is not there"),
    ("vm create t --kernel linux --initrd nothing --start", "there is no boot module nothing"),
    ("vm create a/b --kernel linux", "a/b"),
    ("vm create t --kernel linux --memroy 128M", "unknown option --memroy"),
    ("vm create t --kernel linux --memory 128M --memory 256M", "--memory is given twice"),
    ("vm start web", "web is running already"),
    ("vm resume nobody", "nobody"),
    ("vm delete web", "web is running"),
    ("vm save web --to scratch", "scratch"),
    ("vm balloon web 1M", "web cannot keep 1 MiB of its 128 MiB"),
    ("vm balloon web 256M", "web cannot keep 256 MiB of its 128 MiB"),
    ("vm balloon web", "NAME SIZE"),
    ("vm balloon nobody 64M", "nobody"),
    ("vm migrate web to nowhere", "nowhere"),
    ("vm set web", "no limit is named"),
    ("vm set web --iops 0", "`0` is not a number of requests"),
    ("vm set web --cpu-limit 1.5", "`1.5` is not a percentage"),
    ("vm set web --net-rate none --disk-rate 1K", "a VM cannot be limited to 1K a second"),
    ("vm set nobody --iops 5", "nobody"),
    ("vm create t --kernel linux --cpu-limit 0", "`0` is not a percentage"),
    ("vm create t --kernel linux --reserved 512M", "512M cannot be reserved for a VM of 256M"),
    ("vm create t --kernel linux --memory 2000M --reserved 2000M", "it reserves 2000 MiB of memory"),
    ("vm create t --kernel linux --cpu-profile nothing", "nothing"),
    ("vm create t", "the VM has nothing to boot"),
    ("vm create t --disk scratch --initrd linux", "go with a kernel"),
    ("vm add web", "no disk, CD or NIC is named"),
    ("vm add web --disk scratch", "web has disk scratch already"),
    ("vm add web --disk nothing", "there is no disk nothing"),
    ("vm add web --nic mac=02:00:00:00:00:07", "02:00:00:00:00:07"),
    ("vm add nobody --nic", "nobody"),
    ("vm remove web --disk nothing", "web has no disk nothing"),
    ("vm remove web --nic mac=02:00:00:00:00:08", "02:00:00:00:00:08"),
    ("vm restore web --from scratch", "web is running already"),
    ("vm restore nobody --from scratch", "nobody"),
    ("vm erase-variables web", "web has a kernel, and so no UEFI variables"),
    ("vm measure nobody", "nobody"),
    ("disk measure nothing", "nothing"),
    ("migrate cancel web", "web is not on its way"),
    ("peer remove nobody", "nobody"),
    ("cpu profile show nothing", "nothing"),
    ("stat nobody", "nobody"),
    ("trace --cpu 17", "there are 2 CPUs"),
];

/// Each of [`MISTAKES`] is refused for its reason, and nothing is changed by it.
fn with_a_guest(host: &mut Host) -> Result<()> {
    super::tiny::create(host, "web", "linger=yes", "--memory 128M --disk scratch --nic mac=02:00:00:00:00:07")?;
    let before = unchanging(host)?;
    for (command, why) in MISTAKES {
        let refusal = host.refusal(command)?;
        ensure!(refusal.contains(why) && refusal.lines().count() == 1, "`{command}` is answered by {refusal:?}");
        ensure!(host.state("t")?.is_none(), "`{command}` left a VM");
    }
    let after = unchanging(host)?;
    ensure!(before == after, "mistakes changed {before} into {after}");
    ensure!(host.state("web")?.as_deref() == Some("running"), "the VM beside them has stopped");
    Ok(())
}

/// What no mistake changes: disks with their owners, what the VM has and may use, and what memory is kept.
fn unchanging(host: &mut Host) -> Result<String> {
    let disks = host.ask("disk list")?;
    let report = host.ask("vm show web")?;
    let has = ["memory_bytes", "reserved_bytes", "limits", "disks", "nics"].map(|part| report[part].to_string());
    let kept = host.ask("host")?["memory"]["promised_bytes"].clone();
    Ok(format!("{disks} {has:?} {kept}"))
}
