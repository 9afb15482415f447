//! Disks and network cards that the operator adds to a VM and takes from it, while it runs or not.
//!
//! [`add_disk`], [`add_nic`] and [`remove`] begin; a removal from a running VM is a [`Removal`], which the services poll: the
//! guest is asked and lets go, or the part is pulled out; what the disks still do is waited for; then it is free. A guest
//! that does not answer keeps what it has. A disk that is pulled out is free as soon as the host's disk is done with it; the
//! guest has one that only fails, until it lets go of that or [`PULLED_NS`] are over.

use super::life::Bay;
use super::{Refusal, Running, Start, Vm, choose_mac, claim_disk, devices, disk_config};
use crate::cpu_loop::InputHost;
use crate::host::Host;
use crate::services;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use config::{DISKS_MAX, DiskSpec, Mac, NICS_MAX, NicSpec};
use machine::{BusFull, NicConfig, Part};
use shell::{VmPart, VmState};
use spin::Mutex;

/// How long a guest has to let go.
const LET_GO_NS: u64 = 60_000_000_000;
/// How long it has to let go of a disk that was pulled.
const PULLED_NS: u64 = 30_000_000_000;
/// How often it is looked whether it has.
const PERIOD_NS: u64 = 10_000_000;
/// The services run on this CPU.
const SERVICE_CPU: usize = 0;

/// Removals that were begun and that the services have not seen yet.
static BEGUN: Mutex<Vec<Removal>> = Mutex::new(Vec::new());

/// Removals under way.
#[derive(Default)]
pub struct Removals(Vec<Removal>);

/// A part on its way out of a running VM.
struct Removal {
    vm: Arc<Vm>,
    life: Weak<Running>,
    part: Part,
    which: Found,
    is_pulled: bool,
    until_ns: u64,
    outcome: Arc<Start>,
}

/// A disk or card that a VM has.
#[derive(Clone)]
enum Found {
    Disk(DiskSpec),
    Nic(Mac),
}

/// Gives a VM a disk, or a CD.
pub fn add_disk(host: &'static Host, vm: &Arc<Vm>, spec: &DiskSpec) -> Result<(), Refusal> {
    may_change(vm)?;
    let (disks, name) = (vm.disks(), &spec.name);
    if disks.iter().any(|other| other.name == *name) {
        return Err((format!("{} has disk {name} already", vm.name()), "see \"vm show\"".into()));
    }
    if let Some(other) = disks.iter().find(|other| spec.is_cdrom && other.is_cdrom) {
        let remedy = format!("take that out first: vm remove {} --cdrom {}", vm.name(), other.name);
        return Err((format!("{} has CD {} already", vm.name(), other.name), remedy));
    }
    if disks.len() >= DISKS_MAX {
        return Err((format!("{} has {DISKS_MAX} disks already", vm.name()), "remove one first".into()));
    }
    match vm.running() {
        Some(running) => plug_disk(host, &running, spec)?,
        None if host.storage.lock().catalog().find(name).is_err() => {
            return Err((format!("there is no disk {name}"), "see \"disk list\"".into()));
        }
        None => {}
    }
    vm.devices.lock().disks.push(devices::Disk { spec: spec.clone(), leaves: false });
    Ok(())
}

fn plug_disk(host: &'static Host, running: &Arc<Running>, spec: &DiskSpec) -> Result<(), Refusal> {
    let lent = claim_disk(host, spec)?;
    let source = host.storage.lock().source(lent);
    let plugged = running.frames.put_in_reach(source).map_err(|_| no_room("there is no memory for page tables"));
    let plugged = plugged.and_then(|()| {
        let config = disk_config(host, lent);
        let number = running.add_bay(Bay::new(spec.name.clone(), lent));
        host.storage.lock().set_owner(lent, running, number);
        let mut input = InputHost::new(host, SERVICE_CPU, running);
        let plugged = running.machine.plug_disk(config, &mut input);
        let plugged = plugged.inspect_err(|BusFull| running.withdraw_bay(number));
        assert!(plugged.is_err() || plugged == Ok(number), "the machine and its life count alike");
        plugged.map(drop).map_err(|BusFull| no_room("its PCI bus is full"))
    });
    plugged.inspect_err(|_| host.storage.lock().release(lent))
}

/// Gives a VM a network card; returns its address.
pub fn add_nic(host: &'static Host, vm: &Arc<Vm>, spec: NicSpec) -> Result<Mac, Refusal> {
    may_change(vm)?;
    let mac = spec.mac.unwrap_or_else(choose_mac);
    let macs = vm.devices.lock().macs();
    if macs.contains(&mac) {
        return Err((format!("{} has a NIC with {mac} already", vm.name()), "see \"vm show\"".into()));
    }
    if macs.len() >= NICS_MAX {
        return Err((format!("{} has {NICS_MAX} NICs already", vm.name()), "remove one first".into()));
    }
    if let Some(running) = vm.running() {
        let port = host.network.lock().add_guest_port(vm, mac)?;
        let mut input = InputHost::new(host, SERVICE_CPU, &running);
        match running.machine.plug_nic(NicConfig { mac: mac.bytes(), mtu: 1500 }, &mut input) {
            Ok(number) => running.set_port(number, port),
            Err(BusFull) => {
                host.network.lock().remove_guest_port(port);
                return Err(no_room("its PCI bus is full"));
            }
        }
        host.network.lock().set_guest(&running);
    }
    vm.devices.lock().nics.push(devices::Nic { mac, is_chosen: spec.mac.is_none(), leaves: false });
    Ok(mac)
}

/// Begins to take a disk or card from a VM; the outcome is there once the guest has let go, or was not asked.
pub fn remove(host: &'static Host, vm: &Arc<Vm>, wanted: &VmPart, is_pulled: bool) -> Result<Arc<Start>, Refusal> {
    may_change(vm)?;
    let which = find(vm, wanted)?;
    let outcome: Arc<Start> = Arc::default();
    let Some(running) = vm.running() else {
        which.set_leaving(vm, true);
        vm.devices.lock().settle();
        outcome.settle(Ok(()));
        return Ok(outcome);
    };
    if !running.may_run() && !is_pulled {
        let remedy = format!("let it go on first: vm resume {}", vm.name());
        return Err((format!("{} is paused, and its guest cannot let go of anything", vm.name()), remedy));
    }
    if !running.hold() {
        return Err(busy(vm));
    }
    let part = which.part(&running);
    let mut input = InputHost::new(host, SERVICE_CPU, &running);
    match part {
        Part::Disk(disk) if is_pulled && running.may_run() => running.machine.cut_off(disk, &mut input),
        _ if is_pulled => running.machine.pull(part, &mut input),
        _ => running.machine.ask_to_leave(part, &mut input),
    }
    which.set_leaving(vm, true);
    BEGUN.lock().push(Removal {
        vm: vm.clone(),
        life: Arc::downgrade(&running),
        part,
        which,
        is_pulled,
        until_ns: host.clock.now_ns() + if is_pulled { PULLED_NS } else { LET_GO_NS },
        outcome: outcome.clone(),
    });
    services::note_begun();
    Ok(outcome)
}

impl Removals {
    /// Goes on with every removal; returns when to look again.
    pub fn poll(&mut self, host: &'static Host) -> Option<u64> {
        self.0.append(&mut BEGUN.lock());
        self.0.retain(|removal| match removal.poll(host) {
            None => true,
            Some(outcome) => {
                removal.outcome.settle(outcome);
                false
            }
        });
        (!self.0.is_empty()).then(|| host.clock.now_ns() + PERIOD_NS)
    }
}

impl Removal {
    /// How it went, once it is over.
    fn poll(&self, host: &'static Host) -> Option<Result<(), Refusal>> {
        let Some(running) = self.life.upgrade().filter(|running| !running.is_over()) else {
            // With its life everything is given back.
            return (self.life.strong_count() == 0).then_some(Ok(()));
        };
        let machine = &running.machine;
        if !machine.is_leaving(self.part) && host.clock.now_ns() >= self.until_ns {
            let mut input = InputHost::new(host, SERVICE_CPU, &running);
            if self.is_pulled {
                machine.pull(self.part, &mut input);
            } else {
                machine.let_stay(self.part, &mut input);
                if !machine.is_leaving(self.part) {
                    return Some(Err(self.stays(host, &running)));
                }
            }
        }
        if !(self.is_pulled || machine.is_leaving(self.part)) || !self.take_back(host, &running) {
            return None;
        }
        self.vm.devices.lock().settle();
        running.let_go(host);
        Some(Ok(()))
    }

    /// Takes back what the VM had for the part; says whether that is done.
    fn take_back(&self, host: &'static Host, running: &Running) -> bool {
        match self.part {
            Part::Disk(number) => {
                if !self.free_disk(host, running, number) || !running.machine.has_left(self.part) {
                    return false;
                }
            }
            Part::Nic(number) => {
                if !running.machine.has_left(self.part) {
                    return false;
                }
                let port = running.take_port(number);
                host.network.lock().remove_guest_port(port);
            }
        }
        true
    }

    /// Gives a disk's partition back; says whether that is done.
    fn free_disk(&self, host: &'static Host, running: &Running, number: usize) -> bool {
        let Some(lent) = running.lent(number) else { return true };
        let mut storage = host.storage.lock();
        // What was begun goes on; what is left over fails.
        let is_idle = if self.is_pulled { storage.drain(lent) } else { storage.is_idle(lent) };
        let machine = &running.machine;
        if !is_idle || !(machine.has_left(self.part) || self.is_pulled && machine.is_disk_idle(number)) {
            return false;
        }
        storage.release(lent);
        running.remove_bay(number);
        if self.is_pulled {
            // The operator has it back, whatever the guest still does.
            self.vm.devices.lock().settle();
            self.outcome.settle(Ok(()));
        }
        true
    }

    fn stays(&self, host: &Host, running: &Running) -> Refusal {
        self.which.set_leaving(&self.vm, false);
        running.let_go(host);
        let (name, what) = (self.vm.name(), self.which.describe());
        let seconds = LET_GO_NS / 1_000_000_000;
        let message = format!("{name}'s guest has not let go of {what} within {seconds} s, and keeps it");
        (message, "see to its use in the guest, or pull it out: --force".into())
    }
}

impl Found {
    fn describe(&self) -> String {
        match self {
            Self::Disk(spec) => spec.to_string(),
            Self::Nic(mac) => format!("NIC {mac}"),
        }
    }

    fn set_leaving(&self, vm: &Vm, leaves: bool) {
        let mut devices = vm.devices.lock();
        match self {
            Self::Disk(spec) => {
                devices.disks.iter_mut().filter(|disk| disk.spec == *spec).for_each(|disk| disk.leaves = leaves);
            }
            Self::Nic(mac) => {
                devices.nics.iter_mut().filter(|nic| nic.mac == *mac).for_each(|nic| nic.leaves = leaves);
            }
        }
    }

    /// Which part of a life's machine it is.
    fn part(&self, running: &Running) -> Part {
        match self {
            Self::Disk(spec) => Part::Disk(running.disk_number(&spec.name).expect("a life has the disks of its VM")),
            Self::Nic(mac) => Part::Nic(running.machine.nic_number(mac.bytes()).expect("and its cards")),
        }
    }
}

fn find(vm: &Vm, wanted: &VmPart) -> Result<Found, Refusal> {
    let devices = vm.devices.lock();
    let none = |what: String| Err((format!("{} has no {what}", vm.name()), format!("see \"vm show {}\"", vm.name())));
    match wanted {
        VmPart::Disk(spec) => {
            let found = Found::Disk(spec.clone());
            if devices.disks.iter().any(|disk| disk.spec == *spec) { Ok(found) } else { none(found.describe()) }
        }
        VmPart::Nic(Some(mac)) if devices.nics.iter().any(|nic| nic.mac == *mac) => Ok(Found::Nic(*mac)),
        VmPart::Nic(Some(mac)) => none(format!("NIC {mac}")),
        VmPart::Nic(None) => match devices.nics.as_slice() {
            [nic] => Ok(Found::Nic(nic.mac)),
            [] => none("NIC".into()),
            _ => Err((format!("{} has several NICs", vm.name()), "say which: --nic mac=ADDRESS".into())),
        },
    }
}

/// Whether what a VM has can change now.
pub fn may_change(vm: &Vm) -> Result<(), Refusal> {
    match (vm.state(), vm.running()) {
        (VmState::Saved, _) => {
            let remedy = format!("let it go on first, or give that up: vm delete {}", vm.name());
            Err((format!("{} is saved with what it has", vm.name()), remedy))
        }
        (_, Some(running)) if running.is_over() => Err((format!("{} is ending", vm.name()), "wait for that".into())),
        (_, Some(running)) if !running.has_started() => {
            Err((format!("{} has not started yet", vm.name()), "try again in a moment".into()))
        }
        (_, Some(running)) if running.is_held() || running.is_moving() || running.is_arriving() => Err(busy(vm)),
        _ => Ok(()),
    }
}

fn busy(vm: &Vm) -> Refusal {
    (format!("{} is being saved, moved, measured or changed", vm.name()), "wait for that".to_string())
}

fn no_room(what: &str) -> Refusal {
    (what.to_string(), "remove something first, or stop another VM".to_string())
}
