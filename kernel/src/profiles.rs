//! CPU profiles by name: what guests see that are to run on several hosts.
//!
//! [`Profiles`] keeps what `cpu profile derive` found for as long as the host is on; `migration/survey` asks the others,
//! and [`machine::Baseline`] knows what processors have in common. A VM keeps its own copy of what it sees.

use crate::host::Host;
use crate::vm::{self, Refusal};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use config::Name;
use machine::Baseline;
use shell::{CpuProfileInfo, Reply};

/// What this host's own profile is called.
const OWN: &str = "this-host";

/// Profiles that are kept at most.
const PROFILES_MAX: usize = 64;

/// The profiles that were derived.
#[derive(Default)]
pub struct Profiles(Vec<Profile>);

/// One of them.
struct Profile {
    name: Name,
    /// The other hosts that it is of.
    hosts: Vec<String>,
    baseline: Baseline,
}

/// What this host's processor has.
pub fn own(host: &Host) -> Baseline {
    Baseline::of(&vm::profile(host, 1))
}

impl Profiles {
    /// Whether there is room for a profile of this name.
    pub fn check_new(&self, name: &Name) -> Result<(), Refusal> {
        if &**name == OWN || self.find(name).is_some() {
            let remedy = format!("choose another name, or: cpu profile remove {name}");
            return Err((format!("there is a CPU profile {name} already"), remedy));
        }
        if self.0.len() >= PROFILES_MAX {
            let message = format!("there are {PROFILES_MAX} CPU profiles already");
            return Err((message, "remove one first: cpu profile remove NAME".into()));
        }
        Ok(())
    }

    /// Keeps a profile.
    pub fn add(&mut self, name: Name, hosts: Vec<String>, baseline: Baseline) -> Result<(), Refusal> {
        self.check_new(&name)?;
        self.0.push(Profile { name, hosts, baseline });
        Ok(())
    }

    /// Forgets one.
    pub fn remove(&mut self, name: &Name) -> Result<(), Refusal> {
        let before = self.0.len();
        self.0.retain(|profile| profile.name != *name);
        (self.0.len() < before).then_some(()).ok_or_else(|| missing(name))
    }

    /// The profile with this name.
    pub fn get(&self, name: &Name) -> Result<Baseline, Refusal> {
        self.find(name).map(|profile| profile.baseline.clone()).ok_or_else(|| missing(name))
    }

    fn find(&self, name: &Name) -> Option<&Profile> {
        self.0.iter().find(|profile| profile.name == *name)
    }
}

/// Keeps what `hosts` and this one have in common, without the features of these names.
pub fn keep(
    host: &Host,
    name: Name,
    hosts: Vec<String>,
    common: Baseline,
    without: &[String],
) -> Result<Reply, Refusal> {
    let names: Vec<&str> = without.iter().map(String::as_str).collect();
    let common = common.without(&names).map_err(no_feature)?;
    let withheld = common.withholds_of(&own(host));
    let what = if hosts.is_empty() { "what this host has" } else { "what they have in common" };
    let rest = if withheld.is_empty() { "nothing that this host has".to_string() } else { withheld.join(", ") };
    let message = format!("{name} is {what}; it withholds {rest}");
    host.profiles.lock().add(name, hosts, common)?;
    Ok(Reply::done(message))
}

/// Whether there are features of these names.
pub fn check_features(host: &Host, names: &[String]) -> Result<(), Refusal> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    own(host).without(&names).map(drop).map_err(no_feature)
}

fn no_feature(name: &str) -> Refusal {
    (format!("there is no feature {name}"), format!("see \"cpu profile show {OWN}\""))
}

/// All of them, this host's own first.
pub fn list(host: &Host) -> Reply {
    let own = own(host);
    let mut infos = alloc::vec![info(OWN, &[], &own, &own)];
    let profiles = host.profiles.lock();
    infos.extend(profiles.0.iter().map(|profile| info(&profile.name, &profile.hosts, &profile.baseline, &own)));
    Reply::CpuProfiles(infos)
}

/// One of them.
pub fn show(host: &Host, name: &Name) -> Result<Reply, Refusal> {
    let own = own(host);
    if &**name == OWN {
        return Ok(Reply::CpuProfile(info(OWN, &[], &own, &own)));
    }
    let profiles = host.profiles.lock();
    let profile = profiles.find(name).ok_or_else(|| missing(name))?;
    Ok(Reply::CpuProfile(info(&profile.name, &profile.hosts, &profile.baseline, &own)))
}

fn missing(name: &Name) -> Refusal {
    (format!("there is no CPU profile {name}"), "see \"cpu profile list\"".into())
}

fn info(name: &str, hosts: &[String], baseline: &Baseline, own: &Baseline) -> CpuProfileInfo {
    let (family, model, stepping) = baseline.signature();
    CpuProfileInfo {
        name: name.to_string(),
        hosts: hosts.to_vec(),
        vendor: baseline.vendor().to_string(),
        processor: baseline.name(),
        family,
        model,
        stepping,
        physical_address_bits: baseline.physical_address_bits(),
        xcr0: baseline.xcr0(),
        tsc_khz: baseline.tsc_khz(),
        needs_kvm_clock: baseline.has_several_rates(),
        features: baseline.features(),
        withheld: baseline.withholds_of(own),
    }
}
