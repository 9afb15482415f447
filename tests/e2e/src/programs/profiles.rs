//! Two hosts whose processors are not alike: what keeps a guest from moving between them, and the profile that lets it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::migrate::{EVERY, Pair, check, machine, modules, start};
use crate::{Artifacts, GUEST_BOOT_LIMIT, Host, Launch};

/// The second host has less than the first, and in one way the first less than the second.
const PROCESSORS: [&str; 2] =
    ["EPYC,+svm,+npt,+x2apic,-rdseed", "EPYC,+svm,+npt,+x2apic,-avx2,-bmi2,-smap,model-id=Pollux test processor"];

/// A guest that saw all of the first host is refused by the second, with the reason; one with their common profile moves
/// there and back, and after a reset on the way, too.
pub fn baseline(artifacts: &Artifacts) -> Result<()> {
    let (sockets, guest) = (Pair::sockets()?, modules(artifacts)?);
    let host = |index: usize| -> Result<Launch> {
        let launch = machine(artifacts, "cpu_profile", index, &guest, &sockets[index])?;
        Ok(launch.memory_mib(512).cpu(PROCESSORS[index]))
    };
    let mut pair = Pair::boot_with(host, artifacts)?;
    start(&mut pair.hosts[0], "")?;
    pair.hosts[0].ask("vm migrate g to b")?;
    let stayed = pair.wait_end(0)?;
    let reason = stayed["reason"].as_str().unwrap_or_default();
    let names = ["lacks", "AVX2", "BMI2", "SMAP"].iter().all(|name| reason.contains(name));
    ensure!(stayed["phase"] == "stayed" && names && !reason.contains("RDSEED"), "between unlike hosts: {stayed}");
    eprintln!("        {reason}");
    pair.hosts[0].ask("vm kill g")?;
    pair.hosts[0].ask("vm delete g")?;
    mistakes(&mut pair)?;
    derive(&mut pair)?;
    start(&mut pair.hosts[0], "--cpu-profile common")?;
    pair.migrate(0, "g").context("to the host with less")?;
    let last = check(&mut pair.hosts[1], EVERY)?;
    let shown = pair.hosts[1].ask("vm show g")?;
    ensure!(shown["cpu_profile"] == "common", "on the way the profile lost its name: {shown}");
    pair.migrate(1, "g").context("back")?;
    check(&mut pair.hosts[0], last)?;
    restart(&mut pair.hosts[0])?;
    pair.migrate(0, "g").context("after a reset: it saw more than its profile").map(drop)
}

/// Both hosts find the same, whichever asks.
fn derive(pair: &mut Pair) -> Result<()> {
    pair.hosts[0].ask("cpu profile derive common b")?;
    pair.hosts[1].ask("cpu profile derive other-way a")?;
    let here = pair.hosts[0].ask("cpu profile show common")?;
    let there = pair.hosts[1].ask("cpu profile show other-way")?;
    for key in ["vendor", "processor", "family", "model", "stepping", "physical_address_bits", "xcr0", "features"] {
        ensure!(here[key] == there[key], "{key} is another, asked the other way round: {here} and {there}");
    }
    let has = |profile: &Value, key: &str, name: &str| {
        profile[key].as_array().is_some_and(|names| names.iter().any(|other| other == name))
    };
    for name in ["AVX2", "BMI2", "SMAP", "RDSEED"] {
        ensure!(!has(&here, "features", name), "what one of them lacks is in common: {name}");
    }
    ensure!(has(&here, "features", "AVX") && has(&here, "features", "SMEP"), "what both have is not in common: {here}");
    ensure!(has(&here, "withheld", "AVX2") && !has(&here, "withheld", "RDSEED"), "withheld of the first: {here}");
    ensure!(has(&there, "withheld", "RDSEED") && !has(&there, "withheld", "AVX2"), "of the second: {there}");
    let list = pair.hosts[0].ask("cpu profile list")?;
    let names: Vec<_> = list.as_array().into_iter().flatten().map(|profile| profile["name"].as_str()).collect();
    ensure!(names == [Some("this-host"), Some("common")], "the list is {names:?}");
    Ok(())
}

/// What an operator gets wrong changes nothing.
fn mistakes(pair: &mut Pair) -> Result<()> {
    let a = &mut pair.hosts[0];
    for (line, why) in [
        ("cpu profile derive p c", "no peer c"),
        ("cpu profile derive this-host b", "already"),
        ("cpu profile show p", "no CPU profile p"),
        ("cpu profile remove p", "no CPU profile p"),
        ("vm create x --kernel memory_hash --cpu-profile p", "no CPU profile p"),
    ] {
        let message = a.refusal(line)?;
        ensure!(message.contains(why), "`{line}`: {message}");
    }
    ensure!(a.state("x")?.is_none(), "a VM without its profile was created");
    pair.hosts[1].ask("peer remove a")?;
    let message = pair.hosts[0].refusal("cpu profile derive p b")?;
    ensure!(message.contains("b (") && message.contains("does not trust"), "asked by a stranger: {message}");
    pair.introduce(1)
}

/// Resets the guest, and waits until it runs anew.
fn restart(host: &mut Host) -> Result<()> {
    let before = host.ask("vm show g")?["uptime_ns"].as_u64();
    host.ask("vm reset g")?;
    let until = host.emulator().elapsed() + GUEST_BOOT_LIMIT;
    let mut is_new = false;
    loop {
        let shown = host.ask("vm show g")?;
        is_new |= shown["uptime_ns"].as_u64() < before;
        // What a vCPU did is counted when it leaves its CPU, which a busy one does every few seconds.
        if is_new && shown["exits"].as_u64() > Some(0) {
            return Ok(());
        }
        let elapsed = host.emulator().elapsed();
        ensure!(elapsed < until, host.emulator().failure(&format!("it does not run after a reset: {shown}")));
    }
}
