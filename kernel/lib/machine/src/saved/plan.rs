//! What a machine is made of, as it travels: what a target must have before it takes one.
//!
//! [`Plan`] is compared with a machine ([`Plan::same_as`]) and with a host ([`Plan::profile_on`]); [`Unlike`] names what
//! differs in words.

use super::listed;
use crate::cpuid::SavedProfile;
use crate::{CpuProfile, DebugPorts, Machine};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use minicbor::{Decode, Encode};

/// What a machine is made of.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Plan {
    #[n(0)]
    vcpus: u32,
    #[n(1)]
    memory_bytes: u64,
    #[n(2)]
    disks: Vec<Disk>,
    #[n(3)]
    nics: Vec<Nic>,
    #[n(4)]
    profile: SavedProfile,
    /// Missing where there are none.
    #[n(5)]
    debug: Option<Ports>,
    /// Missing where it has none of its own.
    #[n(6)]
    firmware: Option<Firmware>,
}

/// The firmware of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Firmware {
    #[n(0)]
    pub code_bytes: u64,
    /// By which two firmwares' code is told apart.
    #[n(1)]
    pub code_checksum: u64,
    #[n(2)]
    pub variables_bytes: u64,
}

/// Its debug ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
struct Ports {
    #[n(0)]
    exit: bool,
    #[n(1)]
    console: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Disk {
    #[n(0)]
    pub sectors: u64,
    #[n(1)]
    pub read_only: bool,
    #[n(2)]
    pub discard: bool,
    #[cbor(n(3), with = "minicbor::bytes")]
    pub serial: [u8; 20],
}

#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Nic {
    #[cbor(n(0), with = "minicbor::bytes")]
    pub mac: [u8; 6],
    #[n(1)]
    pub mtu: u16,
}

/// How a saved machine differs from the machine or the host that it shall go on in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unlike {
    /// Another number of vCPUs: saved, here.
    Vcpus(u32, u32),
    /// Another memory size, in bytes: saved, here.
    Memory(u64, u64),
    /// The machine here lacks the disk with this serial number.
    NoDisk([u8; 20]),
    /// Another number of disks: saved, here.
    DiskCount(usize, usize),
    /// This disk is another one: how.
    Disk(usize, &'static str),
    /// Another number of network cards: saved, here.
    NicCount(usize, usize),
    /// This card is another one: how.
    Nic(usize, &'static str),
    /// Another vendor's processor: saved on, here.
    Vendor(&'static str, &'static str),
    /// The processor lacks these features, which the guest was offered.
    Features(Vec<String>),
    /// A firmware that one of them lacks, or another one.
    Firmware,
    /// Debug ports that one of them lacks.
    DebugPorts,
    /// CPUID differs though the features are there.
    Profile,
    /// The TSC has another rate, and the guest no clock that could be told.
    TscRate {
        /// What the guest was told.
        saved_khz: u32,
        /// What it would get.
        here_khz: u32,
    },
}

impl Machine {
    /// What it is made of.
    pub fn plan(&self) -> Plan {
        let board = self.board.lock();
        let debug = board.chipset.debug_ports();
        Plan {
            vcpus: self.vcpus() as u32,
            memory_bytes: self.memory.total_bytes(),
            disks: board.disks.iter().map(|disk| disk.plan()).collect(),
            nics: board.cards.iter().map(|card| card.plan()).collect(),
            profile: self.profile.save(),
            debug: (debug != DebugPorts::default()).then_some(Ports { exit: debug.exit, console: debug.console }),
            firmware: board.firmware.as_ref().map(|firmware| firmware.plan),
        }
    }
}

impl Plan {
    /// How many vCPUs.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// How much memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The debug ports.
    pub fn debug_ports(&self) -> DebugPorts {
        self.debug.map_or(DebugPorts::default(), |ports| DebugPorts { exit: ports.exit, console: ports.console })
    }

    /// The serial numbers of the disks.
    pub fn disk_serials(&self) -> impl Iterator<Item = [u8; 20]> + '_ {
        self.disks.iter().map(|disk| disk.serial)
    }

    /// The addresses of the network cards.
    pub fn macs(&self) -> impl Iterator<Item = [u8; 6]> + '_ {
        self.nics.iter().map(|nic| nic.mac)
    }

    /// What the guest sees by CPUID, on a host that would show new guests `host`.
    ///
    /// # Errors
    /// Where the host is another vendor's, or lacks something.
    pub fn profile_on(&self, host: &CpuProfile) -> Result<CpuProfile, Unlike> {
        CpuProfile::restore(&self.profile, host)
    }

    /// Whether `here`, the machine that it shall go on in, is made of the same.
    ///
    /// # Errors
    /// The first difference.
    pub fn same_as(&self, here: &Self) -> Result<(), Unlike> {
        let check = |same, unlike| if same { Ok(()) } else { Err(unlike) };
        check(self.vcpus == here.vcpus, Unlike::Vcpus(self.vcpus, here.vcpus))?;
        check(self.memory_bytes == here.memory_bytes, Unlike::Memory(self.memory_bytes, here.memory_bytes))?;
        check(self.firmware == here.firmware, Unlike::Firmware)?;
        let lacking = self.disk_serials().find(|serial| here.disk_serials().all(|own| own != *serial));
        lacking.map_or(Ok(()), |serial| Err(Unlike::NoDisk(serial)))?;
        let (saved, own) = (self.disks.len(), here.disks.len());
        check(saved == own, Unlike::DiskCount(saved, own))?;
        for (index, (saved, here)) in self.disks.iter().zip(&here.disks).enumerate() {
            check(saved.sectors == here.sectors, Unlike::Disk(index, "has another size"))?;
            check(saved.serial == here.serial, Unlike::Disk(index, "is another disk"))?;
            check(saved.read_only == here.read_only, Unlike::Disk(index, "can be written in one place only"))?;
            // What is only read is never discarded, whatever was offered.
            let discards_alike = saved.read_only || saved.discard == here.discard;
            check(discards_alike, Unlike::Disk(index, "discards in one place only"))?;
        }
        let (saved, own) = (self.nics.len(), here.nics.len());
        check(saved == own, Unlike::NicCount(saved, own))?;
        for (index, (saved, here)) in self.nics.iter().zip(&here.nics).enumerate() {
            check(saved.mac == here.mac, Unlike::Nic(index, "has another address"))?;
            check(saved.mtu == here.mtu, Unlike::Nic(index, "has another MTU"))?;
        }
        check(self.debug == here.debug, Unlike::DebugPorts)?;
        check(self.profile == here.profile, Unlike::Profile)
    }
}

impl fmt::Display for Unlike {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpus(saved, here) => write!(out, "it was saved with {saved} vCPUs, and this VM has {here}"),
            Self::Memory(saved, here) => {
                write!(out, "it was saved with {} MiB of memory, and this VM has {}", saved >> 20, here >> 20)
            }
            Self::NoDisk(serial) => {
                let serial = serial.split(|&byte| byte == 0).next().unwrap_or_default();
                write!(out, "this VM lacks its disk with the serial number {}", serial.escape_ascii())
            }
            Self::DiskCount(saved, here) => write!(out, "it was saved with {saved} disks, and this VM has {here}"),
            Self::Disk(index, how) => write!(out, "disk {index} {how}"),
            Self::NicCount(saved, here) => {
                write!(out, "it was saved with {saved} network cards, and this VM has {here}")
            }
            Self::Nic(index, how) => write!(out, "network card {index} {how}"),
            Self::Vendor(saved, here) => write!(out, "it was saved on {saved}, and this is {here}"),
            Self::Features(missing) => write!(out, "this processor lacks {}", listed(missing)),
            Self::Firmware => write!(out, "its firmware is another than this VM's"),
            Self::DebugPorts => write!(out, "its debug ports are others than this VM's"),
            Self::Profile => write!(out, "its CPUID is another than this VM's"),
            Self::TscRate { saved_khz, here_khz } => write!(
                out,
                "its TSC ran at {saved_khz} kHz, here it would at {here_khz} kHz, and the guest uses no clock that can be told"
            ),
        }
    }
}
