//! `cargo xtask setup`: installs what is missing, and nothing else. Debian packages go by apt-get when run by root;
//! anyone else is told the command. Safe to run again.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::steps;

/// Everything that xtask calls, by Debian package.
const PACKAGES: [&str; 20] = [
    "qemu-system-x86",
    "seabios",
    "bochsbios",
    "xz-utils",
    "make",
    "ovmf",
    "grub-pc-bin",
    "grub-efi-amd64-bin",
    "grub-common",
    "xorriso",
    "mtools",
    "mmdebstrap",
    "debian-archive-keyring",
    "busybox-static",
    "e2fsprogs",
    "gdisk",
    "binutils",
    "gcc",
    "libc6-dev",
    "g++",
];
/// What building a root file system needs when it is not root who does it.
const PACKAGES_WITHOUT_ROOT: [&str; 2] = ["fakeroot", "uidmap"];
/// The first QEMU that emulates x2APIC together with everything else that Pollux uses.
const QEMU_MAJOR_MIN: u32 = 8;
const BACKPORTS: &str = "/etc/apt/sources.list.d/pollux-backports.sources";
const TARGET: &str = "x86_64-unknown-none";

/// Installs what is missing.
pub fn setup() -> Result<()> {
    rust_target()?;
    if !has("dpkg-query") {
        eprintln!(
            "this is not Debian: make sure that the programs of these packages are there: {}",
            PACKAGES.join(" ")
        );
        return Ok(());
    }
    let missing = missing_packages();
    let old_qemu = !missing.contains(&"qemu-system-x86") && qemu_major().is_some_and(|major| major < QEMU_MAJOR_MIN);
    if missing.is_empty() && !(old_qemu && backports_suite().is_some() && is_root()) {
        if old_qemu {
            eprintln!("note: this QEMU is older than {QEMU_MAJOR_MIN}: it has no x2APIC; xAPIC serves instead");
        }
        return Ok(());
    }
    if !is_root() {
        bail!("these packages are missing; run: sudo apt-get install {}", missing.join(" "));
    }
    install(&missing, old_qemu)
}

/// True if user root runs us.
pub fn is_root() -> bool {
    steps::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

fn install(missing: &[&str], old_qemu: bool) -> Result<()> {
    let suite = backports_suite();
    let wants_backport = old_qemu || missing.contains(&"qemu-system-x86");
    if let Some(suite) = suite.as_deref().filter(|_| wants_backport) {
        add_backports(suite)?;
    }
    steps::logged("updating the package lists", "apt-update", apt().args(["update", "-q"]))?;
    if let Some(suite) = suite.filter(|_| wants_backport) {
        let mut command = apt();
        command.args(["install", "-q", "-y", "--no-install-recommends", "-t", &suite, "qemu-system-x86"]);
        if let Err(error) = steps::logged("installing QEMU from the backports", "apt-qemu", &mut command) {
            eprintln!("{error:#}\nnote: going on with the release's own QEMU, which has no x2APIC");
        }
    }
    let missing = missing_packages();
    if missing.is_empty() { Ok(()) } else { install_packages(&missing) }
}

/// Installs packages of the lists as they are.
pub fn install_packages(packages: &[&str]) -> Result<()> {
    let title = format!("installing {}", packages.join(" "));
    steps::logged(&title, "apt-install", apt().args(["install", "-q", "-y", "--no-install-recommends"]).args(packages))
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn missing_packages() -> Vec<&'static str> {
    let mut wanted = PACKAGES.to_vec();
    if !is_root() {
        wanted.extend(PACKAGES_WITHOUT_ROOT);
    }
    let installed = |package: &str| {
        let mut query = Command::new("dpkg-query");
        query.args(["--show", "--showformat=${db:Status-Status}", package]);
        steps::output(&mut query).is_ok_and(|status| status == "installed")
    };
    wanted.into_iter().filter(|package| !installed(package)).collect()
}

/// The backports suite that carries a newer QEMU than the release itself, where that is needed.
fn backports_suite() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    release.lines().any(|line| line == "VERSION_CODENAME=bookworm").then(|| "bookworm-backports".to_owned())
}

fn qemu_major() -> Option<u32> {
    let version = steps::output(Command::new("qemu-system-x86_64").arg("--version")).ok()?;
    version.split_once("version ")?.1.split('.').next()?.parse().ok()
}

/// Writes a source for the backports, at the place where the release itself comes from, unless there is one.
fn add_backports(suite: &str) -> Result<()> {
    let sources = read_sources();
    if sources.iter().any(|text| text.contains(suite)) {
        return Ok(());
    }
    let release = suite.trim_end_matches("-backports");
    let Some((uri, key)) = sources.iter().find_map(|text| source_of(text, release)) else {
        eprintln!("note: no package source names {release}: QEMU stays as it is");
        return Ok(());
    };
    let stanza = format!("Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nSigned-By: {key}\n");
    fs::write(BACKPORTS, stanza).with_context(|| format!("writing {BACKPORTS}"))
}

/// The places where this machine gets Debian's packages from, but those of security updates.
pub fn mirrors() -> Vec<String> {
    let sources = read_sources();
    let words = sources.iter().flat_map(|text| text.lines()).filter(|line| !line.trim_start().starts_with('#'));
    let mut mirrors: Vec<String> = Vec::new();
    for word in
        words.flat_map(str::split_whitespace).filter(|word| word.starts_with("http") && !word.contains("security"))
    {
        if !mirrors.iter().any(|mirror| mirror == word) {
            mirrors.push(word.to_owned());
        }
    }
    mirrors
}

fn read_sources() -> Vec<String> {
    let mut texts: Vec<String> = fs::read_to_string("/etc/apt/sources.list").into_iter().collect();
    for entry in fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten() {
        texts.extend(fs::read_to_string(entry.path()));
    }
    texts
}

/// URI and key of the source that carries `release` itself: a deb822 stanza or a one-line entry.
fn source_of(text: &str, release: &str) -> Option<(String, String)> {
    const KEY: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
    for stanza in text.split("\n\n") {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if field("Suites:").is_some_and(|suites| suites.split_whitespace().any(|suite| suite == release)) {
            let uri = field("URIs:")?.split_whitespace().next()?;
            return Some((uri.to_owned(), field("Signed-By:").unwrap_or(KEY).to_owned()));
        }
    }
    text.lines().filter(|line| line.starts_with("deb ")).find_map(|line| {
        let mut words = line.split_whitespace().skip(1).skip_while(|word| !word.contains("://"));
        let uri = words.next()?;
        (words.next() == Some(release)).then(|| (uri.to_owned(), KEY.to_owned()))
    })
}

fn rust_target() -> Result<()> {
    let sysroot = steps::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    if Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).exists() {
        return Ok(());
    }
    if !has("rustup") {
        bail!("this Rust has no target {TARGET} and there is no rustup to add it; install Rust by https://rustup.rs");
    }
    steps::logged("adding the Rust target", "rustup", Command::new("rustup").args(["target", "add", TARGET]))
}

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_source_is_found_in_both_formats() {
        let stanza = "Types: deb\nURIs: http://mirror/security\nSuites: bookworm-security\n\n\
                      Types: deb\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\nSigned-By: /k.gpg\n";
        assert_eq!(source_of(stanza, "bookworm"), Some(("http://mirror/debian".into(), "/k.gpg".into())));
        let line = "deb [arch=amd64] http://mirror/debian bookworm main\n";
        assert_eq!(source_of(line, "bookworm").map(|source| source.0).as_deref(), Some("http://mirror/debian"));
        assert_eq!(source_of(line, "trixie"), None);
    }
}
