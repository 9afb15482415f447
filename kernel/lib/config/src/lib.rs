//! What the operator writes down: the configuration file, and the values that it shares with the shell.
//!
//! [`parse`] turns the text of the file, TOML that travels on the boot image as a module, into a [`Config`] that is
//! checked throughout, or into an [`Error`] with the line and the remedy. `shell` parses a typed `vm create` into the
//! same [`VmSpec`] by the same rules; `kernel/src/host_console` carries either out.
//!
//! The format is TOML 1.1:
//!
//! ```toml
//! [host]
//! name = "rack1-03"           # default "pollux"
//! management = "static"       # default "dhcp"
//! address = "192.168.7.20/24" # with "static" only
//! gateway = "192.168.7.1"     # with "static" only, and only where there is one
//! detach_key = "ctrl-]"       # leaves a guest's console
//! # private, 64 digits; one is made at each start where there is none
//! key = "77076d0a7318a57d3c16c17251b26645df4c2f92ebc099c170b6b4a1a6f1b3d5"
//!
//! [[vm]]
//! name = "web"
//! kernel = "vmlinuz"          # a boot module
//! initrd = "initrd.img"       # another
//! # modules = ["one", "two with words"] # more, for a Multiboot or PVH kernel, with what it is told of each
//! command_line = "root=/dev/vda1 console=ttyS0"
//! memory = "1G"               # default "256M"
//! vcpus = 2                   # default 1
//! weight = 200                # its share of CPUs that others want too, default 100
//! pin = [2, 3]                # the CPUs of the host for its vCPUs; without it the host chooses
//! disks = ["web-root"]        # partitions of datastores, by name
//! cdrom = "debian-iso"        # another, with an ISO image, which the VM only reads and others may have too
//! nics = [{ mac = "02:00:00:00:00:07" }, {}] # or only how many: nics = 2
//! autostart = true            # default false
//!
//! [[peer]]                    # a host to move VMs to and to take VMs from
//! name = "castor"
//! address = "192.168.7.21"
//! # the key that its `host` shows
//! key = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
//! ```
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod host;
mod invalid;
mod key;
mod limits;
mod mac;
mod name;
mod nearest;
mod peer;
mod section;
mod size;
mod vm;

use alloc::{format, string::String, vec::Vec};
use core::fmt;

pub use host::{Host, Management, StaticAddress};
pub use invalid::Invalid;
pub use key::ControlKey;
pub use limits::{CPU_PERCENT_MAX, IOPS_MAX, Limits, RATE_MIN};
pub use mac::Mac;
pub use name::Name;
pub use nearest::nearest;
pub use peer::{Key, PeerSpec};
pub use size::Size;
use toml::de::DeTable;
pub use vm::{
    CPU_MAX, DISKS_MAX, DiskSpec, MEMORY_MAX, MEMORY_MIN, MODULES_MAX, ModuleSpec, NICS_MAX, NicSpec, VCPUS_MAX,
    VmSpec, WEIGHT_DEFAULT, WEIGHT_MAX, WEIGHT_MIN,
};

use crate::section::{Lines, Section};

/// The longest configuration file, in bytes.
pub const TEXT_BYTES_MAX: usize = 256 << 10;

/// A configuration file, checked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// The table `[host]`.
    pub host: Host,
    /// The tables `[[vm]]` in the order of the file. Names are distinct, and so are the MAC addresses given.
    pub vms: Vec<VmSpec>,
    /// The tables `[[peer]]`. Names and keys are distinct.
    pub peers: Vec<PeerSpec>,
}

/// What is wrong with a configuration file, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// The line, from 1.
    pub line: u32,
    /// What is wrong there.
    pub cause: Invalid,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.cause)
    }
}

impl core::error::Error for Error {}

/// Parses and checks a configuration file.
///
/// # Errors
/// The first thing that is wrong: text that is no TOML, a key that is not known, a value of the wrong type or out of
/// range, a VM name or MAC address that occurs twice.
pub fn parse(text: &str) -> Result<Config, Error> {
    if text.len() > TEXT_BYTES_MAX {
        let cause = Invalid::new("the configuration file is too long", format!("keep it under {TEXT_BYTES_MAX} bytes"));
        return Err(Error { line: 1, cause });
    }
    let lines = Lines::new(text);
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(text.len(), |span| span.start);
        lines.error(at, Invalid::new(one_line(error.message()), "see a TOML 1.1 reference, or quote the value"))
    })?;
    let root = Section::new("the file", table.get_ref(), 0..0, lines, &["host", "vm", "peer"])?;
    let host = match root.table("host", host::KEYS)? {
        Some(section) => Host::parse(&section)?,
        None => Host::default(),
    };
    let mut config = Config { host, vms: Vec::new(), peers: Vec::new() };
    for section in root.tables("vm", vm::KEYS)? {
        let vm = VmSpec::parse(&section)?;
        refuse_doubles(&config.vms, &vm).map_err(|cause| section.error(cause))?;
        config.vms.push(vm);
    }
    for section in root.tables("peer", peer::KEYS)? {
        let peer = PeerSpec::parse(&section)?;
        if config.peers.iter().any(|other| other.name == peer.name || other.key == peer.key) {
            let cause = Invalid::new(format!("a peer `{}`, or its key, is there already", peer.name), "list it once");
            return Err(section.error(cause));
        }
        config.peers.push(peer);
    }
    Ok(config)
}

fn refuse_doubles(earlier: &[VmSpec], vm: &VmSpec) -> Result<(), Invalid> {
    if earlier.iter().any(|other| other.name == vm.name) {
        return Err(Invalid::new(format!("a VM `{}` is defined already", vm.name), "give each VM a name of its own"));
    }
    let taken = |mac: &Mac| earlier.iter().any(|other| other.nics.iter().any(|nic| nic.mac.as_ref() == Some(mac)));
    match vm.nics.iter().filter_map(|nic| nic.mac).find(taken) {
        Some(mac) => Err(Invalid::new(
            format!("another VM has the MAC address {mac} already"),
            "give each NIC an address of its own, or none to have one chosen",
        )),
        None => Ok(()),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
