//! What the operator is told of CPU profiles: the replies to `cpu profile list` and `show`.

use crate::table::{
    Side::{Left, Right},
    Table,
};
use crate::units::{count, hertz};
use alloc::{format, string::String, vec::Vec};
use serde::Serialize;

/// A CPU profile.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CpuProfileInfo {
    /// What it is called here.
    pub name: String,
    /// The hosts that have all of it, by their names here; none where it is this host's own.
    pub hosts: Vec<String>,
    /// Whose processors they are.
    pub vendor: String,
    /// What its guests are told that the processor is called.
    pub processor: String,
    /// Its family, as the vendor counts.
    pub family: u32,
    /// Its model in the family.
    pub model: u32,
    /// Its stepping.
    pub stepping: u32,
    /// Bits of a physical address.
    pub physical_address_bits: u32,
    /// The bits that a guest may set in XCR0.
    pub xcr0: u32,
    /// The lowest and the highest rate of the hosts' time stamp counters, in kHz.
    pub tsc_khz: (u32, u32),
    /// Whether those differ so much that only a guest on kvm-clock can move between them.
    pub needs_kvm_clock: bool,
    /// The features that it has, those that have names.
    pub features: Vec<String>,
    /// The features that this host has beyond it.
    pub withheld: Vec<String>,
}

pub(crate) fn render_profiles(profiles: &[CpuProfileInfo]) -> String {
    let heads = [("PROFILE", Left), ("OF", Left), ("VENDOR", Left), ("FEATURES", Right), ("WITHHELD", Right)];
    let mut table = Table::new(heads);
    for profile in profiles {
        table.row([
            profile.name.clone(),
            hosts(profile),
            profile.vendor.clone(),
            count(profile.features.len() as u64),
            count(profile.withheld.len() as u64),
        ]);
    }
    table.render()
}

pub(crate) fn render_profile(profile: &CpuProfileInfo) -> String {
    let (lowest, highest) = profile.tsc_khz;
    let rate = |khz: u32| hertz(u64::from(khz) * 1000);
    let tsc = match profile.needs_kvm_clock {
        false => rate(lowest),
        true => format!(
            "{} to {}: a guest moves where the processor scales it, or by kvm-clock",
            rate(lowest),
            rate(highest)
        ),
    };
    let mut facts = Table::plain([Left, Left]);
    facts.row(["profile".into(), profile.name.clone()]);
    facts.row(["of".into(), hosts(profile)]);
    facts.row(["vendor".into(), profile.vendor.clone()]);
    facts.row(["processor".into(), profile.processor.clone()]);
    let (family, model, stepping) = (profile.family, profile.model, profile.stepping);
    facts.row(["signature".into(), format!("family {family}, model {model}, stepping {stepping}")]);
    facts.row(["addresses".into(), format!("{} bits, physical", profile.physical_address_bits)]);
    facts.row(["XCR0".into(), format!("{:#x}", profile.xcr0)]);
    facts.row(["TSC".into(), tsc]);
    facts.row(["features".into(), listed(&profile.features)]);
    facts.row(["withheld".into(), listed(&profile.withheld)]);
    facts.render()
}

fn hosts(profile: &CpuProfileInfo) -> String {
    if profile.hosts.is_empty() { "this host".into() } else { format!("{}, this host", profile.hosts.join(", ")) }
}

fn listed(features: &[String]) -> String {
    if features.is_empty() { "none".into() } else { features.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_says_what_it_takes_away() {
        let profile = CpuProfileInfo {
            name: "rack1".into(),
            hosts: alloc::vec!["castor".into()],
            vendor: "AMD (SVM)".into(),
            processor: "EPYC".into(),
            family: 23,
            model: 1,
            stepping: 2,
            physical_address_bits: 40,
            xcr0: 3,
            tsc_khz: (2_000_000, 3_000_000),
            needs_kvm_clock: true,
            features: alloc::vec!["SSE3".into(), "AES".into()],
            withheld: alloc::vec!["AVX2".into()],
        };
        let text = render_profile(&profile);
        for part in ["castor, this host", "family 23, model 1, stepping 2", "kvm-clock", "SSE3 AES", "AVX2", "0x3"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let list = render_profiles(&[profile.clone(), CpuProfileInfo { hosts: Vec::new(), ..profile }]);
        assert_eq!(list.lines().count(), 3, "{list}");
    }
}
