//! The rules on dependencies: which crate may know which, and that versions are exact. The main type is [`Package`], read
//! from `cargo metadata`.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Violation;

/// Who may depend on whom, in the workspace: crate, and what it may name. Development dependencies are free.
///
/// `kernel` -> `machine` -> models -> {`guestmem`, `vcpu`} -> `addr`; `kernel` -> `hw/*` -> `hw/cpu`. A `hw` crate sees of
/// `lib` only the traits that it implements and the types in them.
const ARROWS: &[(&str, &[&str])] = &[
    // Pure crates, lowest first.
    ("addr", &[]),
    ("guestmem", &["addr"]),
    ("vcpu", &["addr"]),
    ("nested", &["addr"]),
    ("trace", &[]),
    ("mca", &[]),
    ("mitigation", &[]),
    ("config", &[]),
    ("steering", &[]),
    ("state", &[]),
    ("pci", &["addr", "state"]),
    ("insn", &["addr", "vcpu", "guestmem"]),
    ("chipset", &["addr", "vcpu", "guestmem", "state"]),
    ("firmware", &["addr", "guestmem", "state"]),
    ("virtio", &["addr", "guestmem", "pci", "state"]),
    ("loader", &["addr", "guestmem", "vcpu"]),
    ("block", &["addr", "guestmem"]),
    ("limit", &[]),
    ("switch", &["addr", "guestmem"]),
    ("shell", &["config"]),
    ("migrate", &["addr", "guestmem"]),
    ("peer", &[]),
    (
        "machine",
        &[
            "addr", "block", "chipset", "config", "firmware", "guestmem", "insn", "limit", "loader", "nested", "pci",
            "state", "switch", "trace", "vcpu", "virtio",
        ],
    ),
    // Silicon.
    ("boot", &[]),
    ("cpu", &["mca", "mitigation"]),
    ("interrupts", &["addr", "cpu"]),
    ("memory", &["addr", "boot", "cpu", "guestmem", "nested"]),
    ("iommu", &["addr", "memory", "nested", "platform"]),
    ("platform", &["addr", "cpu", "interrupts", "memory"]),
    ("smp", &["addr", "boot", "cpu", "interrupts", "memory"]),
    ("svm", &["addr", "cpu", "vcpu"]),
    ("vmx", &["addr", "cpu", "vcpu"]),
    ("gcm", &["cpu", "peer"]),
    ("drivers", &["addr", "block", "cpu", "guestmem", "interrupts", "memory", "switch"]),
    // Tools and tests.
    ("e2e", &[]),
    ("guests", &[]),
    ("sim", &["addr", "guestmem", "machine", "migrate", "peer", "trace", "vcpu"]),
    ("guest_image", &[]),
    ("tidy", &[]),
    ("xtask", &["e2e", "gcm", "guest_image", "peer"]),
];
/// The binary joins everything but the tools.
const KERNEL: &str = "kernel";
const NOT_FOR_KERNEL: [&str; 6] = ["e2e", "guests", "guest_image", "sim", "tidy", "xtask"];

/// A crate of the workspace.
#[derive(Debug, Clone)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The crates of the workspace that it depends on, other than for its tests.
    pub inner: Vec<String>,
    /// Third-party crates and the versions asked for.
    pub outer: Vec<(String, String)>,
}

/// Reads what `cargo metadata --no-deps --format-version=1` prints.
///
/// # Errors
/// If it is not that.
pub fn packages(metadata: &str) -> Result<Vec<Package>> {
    let metadata: Value = serde_json::from_str(metadata).context("reading cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    packages.iter().map(package).collect()
}

fn package(value: &Value) -> Result<Package> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a name is missing in cargo metadata");
    let mut package = Package { name: text(&value["name"])?, inner: Vec::new(), outer: Vec::new() };
    for dependency in value["dependencies"].as_array().context("a package has no list of dependencies")? {
        let name = text(&dependency["name"])?;
        if !dependency["path"].is_string() {
            package.outer.push((name, text(&dependency["req"])?));
        } else if dependency["kind"] != "dev" {
            package.inner.push(name);
        }
    }
    Ok(package)
}

/// Dependencies that the design does not allow, and crates that it does not know.
#[must_use]
pub fn wrong(packages: &[Package]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for package in packages {
        let mut report = |what: String| violations.push(Violation::new(&package.name, 0, what));
        let allowed = ARROWS.iter().find(|(name, _)| *name == package.name).map(|(_, allowed)| *allowed);
        if allowed.is_none() && package.name != KERNEL {
            report("a new crate: say in tests/tidy/src/arrows.rs what it may depend on".to_owned());
            continue;
        }
        for dependency in &package.inner {
            let is_allowed = match allowed {
                Some(allowed) => allowed.contains(&dependency.as_str()),
                None => !NOT_FOR_KERNEL.contains(&dependency.as_str()),
            };
            if !is_allowed {
                report(format!("may not depend on `{dependency}`"));
            }
        }
    }
    violations
}

/// Third-party dependencies whose version is not exact.
#[must_use]
pub fn unpinned(packages: &[Package]) -> Vec<Violation> {
    let loose = |package: &Package| {
        let outer = package.outer.iter().filter(|(_, version)| !version.starts_with('='));
        let report = |(name, version): &(String, String)| {
            Violation::new(&package.name, 0, format!("`{name} = \"{version}\"` is not exact: write `=`"))
        };
        outer.map(report).collect::<Vec<_>>()
    };
    packages.iter().flat_map(loose).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depends(name: &str, inner: &[&str]) -> Package {
        Package { name: name.into(), inner: inner.iter().map(|name| (*name).to_owned()).collect(), outer: Vec::new() }
    }

    #[test]
    fn arrows_against_the_design_are_found() {
        for (from, to) in
            [("virtio", "chipset"), ("addr", "vcpu"), ("svm", "machine"), ("machine", "svm"), ("cpu", "kernel")]
        {
            assert_eq!(wrong(&[depends(from, &[to])]).len(), 1, "{from} -> {to}");
        }
        assert_eq!(wrong(&[depends("kernel", &["xtask"])]).len(), 1);
        assert!(wrong(&[depends("kernel", &["svm", "machine"]), depends("machine", &["vcpu"])]).is_empty());
    }

    #[test]
    fn an_unknown_crate_is_found() {
        assert_eq!(wrong(&[depends("newcomer", &[])]).len(), 1);
    }

    #[test]
    fn metadata_is_read_and_loose_versions_are_found() {
        let metadata = r#"{"packages":[{"name":"virtio","dependencies":[
            {"name":"addr","req":"*","kind":null,"path":"/x"},
            {"name":"chipset","req":"*","kind":"dev","path":"/x"},
            {"name":"spin","req":"=0.12.3","kind":null},
            {"name":"log","req":"^0.4","kind":"dev"}]}]}"#;
        let packages = packages(metadata).unwrap();
        assert!(wrong(&packages).is_empty());
        let violations = unpinned(&packages);
        assert_eq!(violations.len(), 1);
        assert!(violations[0].what.contains("log"));
    }
}
