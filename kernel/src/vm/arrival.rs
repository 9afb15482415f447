//! A VM that arrives from another host: made without running, let run, or forgotten.
//!
//! [`prepare`] makes what the machine needs and joins no network; [`admit`] is called once the source has given the VM
//! away, [`discard`] where it has not.

use super::{Life, Origin, Refusal, Running, Vm, claim_disks, forget};
use crate::host::Host;
use crate::services;
use crate::storage::Identity;
use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use config::{Mac, VmSpec};
use machine::{Baseline, Plan};

/// Makes a machine by `plan` for a VM of this definition, or says in one line why this host cannot take it. What its
/// firmware keeps is on the partition `variables`, and must not be kept less here.
pub fn prepare(
    host: &'static Host,
    spec: VmSpec,
    macs: Vec<Mac>,
    plan: &Plan,
    variables: Option<&Identity>,
) -> Result<Arc<Running>, Refusal> {
    super::check_room(host)?;
    if host.vm(&spec.name).is_some() {
        let message = alloc::format!("there is a VM {} already", spec.name);
        return Err((message, "delete it, or give it another name".into()));
    }
    let unlike = |unlike: machine::Unlike| (unlike.to_string(), "move it to a host like its own".to_string());
    let profile = plan.profile_on(&super::profile(host, spec.vcpus.into())).map_err(unlike)?;
    let vm = Vm::new(spec, macs)?;
    *vm.baseline.lock() = Some(Baseline::of(&profile));
    let mut disks = Vec::new();
    let running = claim_disks(host, &vm.disks(), &mut disks).and_then(|()| {
        let running = vm.build(host, &disks, Origin::Saved(Box::new(profile)))?;
        plan.same_as(&running.machine.plan()).map_err(unlike)?;
        Ok(running)
    });
    let running = running.inspect_err(|_| {
        let mut storage = host.storage.lock();
        disks.iter().for_each(|&lent| storage.release(lent));
    })?;
    running.set_arriving(true);
    vm.live(host, &running);
    host.vms.lock().push(vm.clone());
    if variables.is_some() && running.variables_identity(host).as_ref() != variables {
        let place = vm.variables_place().unwrap_or_else(|| "not kept".to_string());
        discard(host, &running);
        let message = alloc::format!("here its UEFI variables would be {place}");
        return Err((message, "give both hosts the same disks, with the partition for them".to_string()));
    }
    Ok(running)
}

/// Lets it run. It is this host's from here on.
pub fn admit(host: &'static Host, running: &Arc<Running>) {
    let ports = host.network.lock().add_guest(&running.vm);
    match ports {
        Ok(ports) => {
            *running.ports.lock() = ports;
            host.network.lock().set_guest(running);
        }
        Err((message, remedy)) => log::error!("{} has no network: {message}; {remedy}", running.vm.name()),
    }
    running.set_arriving(false);
    // Memory in its balloon is this host's.
    running.let_go(host);
    services::note_variables(host, cpu::percpu::current().index());
    Vm::enqueue(host, running);
    // Those that slept find out by themselves.
    let from = cpu::percpu::current().index();
    (0..running.vcpus.len()).for_each(|vcpu| {
        running.wake(host, vcpu, from);
    });
}

/// Forgets it: it never ran here.
pub fn discard(host: &'static Host, running: &Arc<Running>) {
    assert!(running.finish_keeping(host), "nothing was read for a VM that never ran here");
    let mut storage = host.storage.lock();
    running.lents().into_iter().for_each(|lent| storage.release(lent));
    drop(storage);
    *running.vm.life.lock() = Life::Stopped;
    forget(host, &running.vm);
}
