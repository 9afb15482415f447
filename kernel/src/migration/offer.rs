//! What the source tells of a VM before it sends it, and what the target makes of that.
//!
//! Numbered fields (CBOR, RFC 8949), as in saved state: a later version adds some and stays readable. The protocol's
//! version is [`migrate::wire::VERSION`].

use crate::vm::{Refusal, Vm};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use config::{Invalid, Mac, NicSpec, Size, VmSpec};
use machine::{Machine, Plan};
use minicbor::{Decode, Encode};

/// A VM, described.
#[derive(Encode, Decode)]
pub struct Offer {
    #[n(0)]
    name: String,
    #[n(1)]
    kernel: String,
    #[n(2)]
    initrd: Option<String>,
    #[n(3)]
    command_line: String,
    #[n(4)]
    disks: Vec<String>,
    /// What its machine is made of, which is checked against what this host would make.
    #[n(5)]
    plan: Plan,
}

impl Offer {
    /// Of a VM that runs.
    pub fn new(vm: &Vm, machine: &Machine) -> Self {
        let VmSpec { name, kernel, initrd, command_line, disks, .. } = &vm.spec;
        Self {
            name: name.to_string(),
            // A VM without one is not offered.
            kernel: kernel.clone().unwrap_or_default(),
            initrd: initrd.clone(),
            command_line: command_line.clone(),
            disks: disks.clone(),
            plan: machine.plan(),
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

    /// The VM's definition here, its addresses, and what its machine is made of.
    pub fn spec(self) -> Result<(VmSpec, Vec<Mac>, Plan), Refusal> {
        let Self { name, kernel, initrd, command_line, disks, plan } = self;
        let spec = || -> Result<(VmSpec, Vec<Mac>), Invalid> {
            let mut spec = VmSpec::new(name.parse()?, Some(kernel));
            spec.initrd = initrd;
            spec.set_command_line(command_line)?;
            spec.set_memory(Size::from_bytes(plan.memory_bytes()))?;
            spec.set_vcpus(plan.vcpus().into())?;
            let debug = plan.debug_ports();
            (spec.debug_exit, spec.debug_console) = (debug.exit, debug.console);
            for disk in disks {
                spec.add_disk(disk)?;
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
