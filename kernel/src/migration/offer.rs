//! What the source tells of a VM before it sends it, and what the target makes of that.
//!
//! Numbered fields (CBOR, RFC 8949), as in saved state: a later version adds some and stays readable. The protocol's
//! version is [`migrate::wire::VERSION`].

use crate::host::Host;
use crate::storage::Identity;
use crate::vm::{Refusal, Running, limits};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use block::gpt::Guid;
use config::{DiskSpec, Invalid, Mac, NicSpec, Size, VmSpec};
use machine::Plan;
use minicbor::{Decode, Encode};

/// A VM, described.
#[derive(Encode, Decode)]
pub struct Offer {
    #[n(0)]
    name: String,
    /// Missing where it boots by UEFI.
    #[n(1)]
    kernel: Option<String>,
    #[n(2)]
    initrd: Option<String>,
    #[n(3)]
    command_line: String,
    #[n(4)]
    disks: Vec<String>,
    /// What its machine is made of, which is checked against what this host would make.
    #[n(5)]
    plan: Plan,
    /// Which partitions the disks are, in their order.
    #[n(6)]
    partitions: Vec<Partition>,
    #[n(7)]
    weight: u16,
    /// What its CPU profile is called where it was derived.
    #[n(8)]
    cpu_profile: Option<String>,
    /// Missing from a host that knows none.
    #[n(9)]
    limits: Option<state::Limits>,
    /// Memory that is kept for it, in bytes.
    #[n(10)]
    reserved_bytes: Option<u64>,
    /// Where what its firmware keeps is; missing where that is nowhere. This host is the only one that writes there until
    /// the VM is given away.
    #[n(11)]
    variables: Option<Partition>,
    /// Which of the disks is its CD; missing where none is.
    #[n(12)]
    cdrom: Option<u32>,
    /// Its kernel's modules, with their texts; missing where there are none.
    #[n(13)]
    modules: Option<Vec<String>>,
}

/// A partition that both hosts see.
#[derive(Encode, Decode)]
struct Partition {
    #[cbor(n(0), with = "minicbor::bytes")]
    guid: [u8; 16],
    #[n(1)]
    disk_serial: String,
}

impl Offer {
    /// Of a VM that runs.
    pub fn new(host: &Host, running: &Running) -> Self {
        let VmSpec { name, kernel, initrd, modules, command_line, weight, cpu_profile, .. } = &running.vm.spec;
        let modules: Vec<String> = modules.iter().map(|module| module.text().to_string()).collect();
        let variables = running.variables_identity(host).map(Partition::from);
        let disks = running.vm.disks();
        let cdrom = disks.iter().position(|disk| disk.is_cdrom).map(|index| index as u32);
        let storage = host.storage.lock();
        let partitions = running.lents().into_iter().map(|lent| storage.identity(lent).into());
        Self {
            name: name.to_string(),
            kernel: kernel.clone(),
            initrd: initrd.clone(),
            command_line: command_line.clone(),
            disks: disks.into_iter().map(|disk| disk.name).collect(),
            plan: running.machine.plan(),
            partitions: partitions.collect(),
            weight: *weight,
            cpu_profile: cpu_profile.as_ref().map(ToString::to_string),
            limits: Some(limits::to_travel(&running.vm.limits())),
            reserved_bytes: Some(running.vm.reservation.bytes()),
            variables,
            cdrom,
            modules: (!modules.is_empty()).then_some(modules),
        }
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        // A vector takes every byte.
        minicbor::to_vec(self).unwrap_or_default()
    }

    /// From another host's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        minicbor::decode(bytes)
            .map_err(|_| ("the VM's description cannot be read".to_string(), "update the host".to_string()))
    }

    /// Where what its firmware keeps is, and is to be kept from now on.
    pub fn variables(&self) -> Option<Identity> {
        self.variables.as_ref().map(Partition::identity)
    }

    /// The VM's definition here, its addresses, and what its machine is made of.
    pub fn spec(self, host: &Host) -> Result<(VmSpec, Vec<Mac>, Plan), Refusal> {
        let Self { name, kernel, initrd, command_line, disks, plan, partitions, weight, cpu_profile, .. } = self;
        let (limits, reserved_bytes, cdrom) = (self.limits, self.reserved_bytes, self.cdrom);
        let modules = self.modules.unwrap_or_default();
        if cdrom.is_some_and(|index| index as usize >= disks.len()) {
            return Err(("the VM's description contradicts itself".to_string(), "update the host".to_string()));
        }
        let disks = names_here(host, &disks, partitions)?;
        let spec = || -> Result<(VmSpec, Vec<Mac>), Invalid> {
            let mut spec = VmSpec::new(name.parse()?, kernel);
            spec.initrd = initrd;
            modules.into_iter().try_for_each(|module| spec.add_module(module))?;
            spec.set_command_line(command_line)?;
            spec.set_memory(Size::from_bytes(plan.memory_bytes()))?;
            spec.set_reserved(Size::from_bytes(reserved_bytes.unwrap_or(0)))?;
            spec.set_vcpus(plan.vcpus().into())?;
            spec.set_weight(weight.into())?;
            spec.limits = limits::from_travel(limits.unwrap_or_default())?;
            spec.cpu_profile = cpu_profile.map(|name| name.parse()).transpose()?;
            let debug = plan.debug_ports();
            (spec.debug_exit, spec.debug_console) = (debug.exit, debug.console);
            for (index, name) in (0..).zip(disks) {
                spec.add_disk(DiskSpec { name, is_cdrom: cdrom == Some(index) })?;
            }
            let mut macs = Vec::new();
            for bytes in plan.macs() {
                let mac = Mac::new(bytes).ok_or_else(|| Invalid::new("a card has no address", "start it anew"))?;
                spec.add_nic(NicSpec { mac: Some(mac) })?;
                macs.push(mac);
            }
            Ok((spec, macs))
        };
        let (spec, macs) = spec().map_err(|invalid| (invalid.message.to_string(), invalid.remedy.to_string()))?;
        Ok((spec, macs, plan))
    }
}

impl Partition {
    fn identity(&self) -> Identity {
        Identity { guid: Guid(self.guid), disk_serial: self.disk_serial.clone() }
    }
}

impl From<Identity> for Partition {
    fn from(Identity { guid, disk_serial }: Identity) -> Self {
        Self { guid: guid.0, disk_serial }
    }
}

/// What the disks are called here.
fn names_here(host: &Host, disks: &[String], partitions: Vec<Partition>) -> Result<Vec<String>, Refusal> {
    if disks.len() != partitions.len() {
        return Err(("the VM's description cannot be read".to_string(), "update the host".to_string()));
    }
    let storage = host.storage.lock();
    let name = |(disk, partition): (&String, Partition)| {
        storage.name_of(&partition.identity(), disk).map_err(|(message, remedy)| (message, remedy.to_string()))
    };
    disks.iter().zip(partitions).map(name).collect()
}
