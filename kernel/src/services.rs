//! What CPU 0 does for the whole host: disks, network, consoles, and VMs that end.

use crate::cpu_loop::InputHost;
use crate::host::Host;
use crate::host_console::HostConsole;
use crate::management::Management;
use crate::network::Forwarder;
use crate::vm::{self, Running};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use machine::End;
use spin::Mutex;

/// How often devices without an interrupt are asked.
const POLL_NS: u64 = 1_000_000;

/// Lives that ended and wait to be taken down.
static ENDED: Mutex<Vec<(Arc<Running>, End)>> = Mutex::new(Vec::new());
/// Some guest's console printed something.
static CONSOLE: AtomicBool = AtomicBool::new(false);

/// CPU 0's work besides guests.
pub struct Services {
    host: &'static Host,
    console: HostConsole,
    management: Option<Management>,
    management_due_ns: Option<u64>,
    started: bool,
}

/// Gives a life that ended to the services.
pub fn hand_over(running: Arc<Running>, end: End) {
    ENDED.lock().push((running, end));
}

/// Notes that a guest's console printed something. `from` is the CPU that calls.
pub fn note_console(host: &Host, from: usize) {
    if !CONSOLE.swap(true, Ordering::AcqRel) {
        host.cpus.kick(from, 0);
    }
}

/// Whether something waits that no interrupt announces.
pub fn has_work() -> bool {
    CONSOLE.load(Ordering::Acquire) || !ENDED.lock().is_empty()
}

impl Services {
    /// The services of a host.
    pub fn new(host: &'static Host) -> Self {
        let console = HostConsole::new(host);
        Self { host, console, management: Management::new(host), management_due_ns: None, started: false }
    }

    /// Does what is due; returns when it wants to be called next at the latest.
    pub fn poll(&mut self, arrived: &[u8], forwarder: &mut Forwarder) -> Option<u64> {
        let host = self.host;
        let first = !core::mem::replace(&mut self.started, true);
        let (disks_poll, disks_due) = {
            let storage = host.storage.lock();
            (storage.polls(), arrived.iter().any(|&vector| storage.has_vector(vector)))
        };
        if disks_due || disks_poll || first {
            self.finish_transfers();
        }
        let (cards_poll, cards_due) = {
            let network = host.network.lock();
            (network.polls(), arrived.iter().any(|&vector| network.has_vector(vector)))
        };
        if cards_due || cards_poll || first {
            forwarder.receive(host);
        }
        self.poll_management(forwarder);
        forwarder.settle(host, |running, nic| {
            running.machine.frames_settle(nic, &mut InputHost { host, cpu: 0, running });
        });
        self.take_down_ended();
        CONSOLE.store(false, Ordering::Release);
        let console_due_ns = self.console.poll(host);
        let poll_due_ns = (disks_poll || cards_poll).then(|| host.clock.now_ns() + POLL_NS);
        [self.management_due_ns, console_due_ns, poll_due_ns].into_iter().flatten().min()
    }

    /// Tells machines of the disk transfers that ended.
    fn finish_transfers(&mut self) {
        let host = self.host;
        let mut settled: Vec<(Arc<Running>, usize)> = Vec::new();
        loop {
            let Some(ended) = host.storage.lock().next_ended() else { break };
            let (running, disk) = (ended.running, ended.disk);
            running.count_outcome(disk, ended.outcome);
            let mut input = InputHost { host, cpu: 0, running: &running };
            running.machine.disk_done(disk, ended.id, ended.outcome, &mut input);
            if !settled.iter().any(|(other, of)| Arc::ptr_eq(other, &running) && *of == disk) {
                settled.push((running, disk));
            }
        }
        for (running, disk) in &settled {
            running.machine.disks_settle(*disk, &mut InputHost { host, cpu: 0, running });
        }
    }

    fn poll_management(&mut self, forwarder: &mut Forwarder) {
        if let Some(management) = &mut self.management {
            self.management_due_ns = management.poll(self.host, forwarder);
        }
    }

    fn take_down_ended(&mut self) {
        if ENDED.lock().is_empty() {
            return;
        }
        self.finish_transfers();
        let ended = core::mem::take(&mut *ENDED.lock());
        for (running, end) in ended {
            if !vm::take_down(self.host, &running, &end) {
                hand_over(running, end);
                continue;
            }
            let vm = running.vm.clone();
            drop(running);
            if end == End::Reset {
                vm::restart(self.host, &vm);
            }
        }
    }
}
