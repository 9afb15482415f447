//! What CPU 0 does for the whole host: devices without an interrupt, consoles, and VMs that end.

use crate::confinement;
use crate::devices::{self, Devices};
use crate::host::Host;
use crate::host_console::HostConsole;
use crate::management::Management;
use crate::measure::Measurements;
use crate::network::Forwarder;
use crate::saved::Jobs;
use crate::vm::hotplug::Removals;
use crate::vm::variables::Keepers;
use crate::vm::{self, Ending, Order, Running};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use machine::End;
use spin::Mutex;

/// How often devices without an interrupt are asked.
const POLL_NS: u64 = 1_000_000;
/// How often for a while after a card without one had frames: more are likely to come.
const BUSY_POLL_NS: u64 = 100_000;
/// How long that is.
const BUSY_NS: u64 = 5_000_000;
/// How often cards are looked after.
const CARDS_NS: u64 = 1_000_000_000;
/// How soon the driver of a disk that is being reset gets its turn.
const RECOVERY_NS: u64 = 1_000_000;
/// Moves have CPU 0 for so many parts where guests who want it have one.
const MOVES_PARTS: u64 = 3;
/// How long moves may go on with their part before guests have theirs.
const OWED_NS_MAX: u64 = 500_000;
/// How often it is looked whether an ended life can be taken down: another CPU needs microseconds to let go of it.
const TAKE_DOWN_NS: u64 = 50_000;
/// How often it is looked whether every vCPU has forgotten memory that its guest gave up.
const RELEASE_NS: u64 = 50_000;
/// How long a life may take to end before that is worth a message.
const SLOW_END_NS: u64 = 5_000_000_000;

/// Lives that ended and that the services have not seen yet.
static ENDED: Mutex<Vec<(Arc<Running>, Ending)>> = Mutex::new(Vec::new());
/// The kinds of work that wait for CPU 0: one word, as it is asked again and again whether there is any.
static WAITING: AtomicU32 = AtomicU32::new(0);
/// Some guest's console printed something.
const CONSOLE: Work = Work(1 << 0);
/// Guests gave memory up.
const GIVEN_UP: Work = Work(1 << 1);
/// Firmware wrote variables, or a life began.
const VARIABLES: Work = Work(1 << 2);
/// Frames wait for the management address.
const MANAGEMENT: Work = Work(1 << 3);
/// Guests wait for memory that is on its way.
const WANTED: Work = Work(1 << 4);
/// Disk transfers ended that no interrupt announces, or those of the host itself.
const TRANSFERS: Work = Work(1 << 5);
/// A life ended.
const ENDINGS: Work = Work(1 << 6);
/// A job, a measurement or a removal was begun.
const BEGUN: Work = Work(1 << 7);

/// A kind of work that waits for CPU 0: its bit.
struct Work(u32);

/// CPU 0's work besides guests.
pub struct Services {
    host: &'static Host,
    console: HostConsole,
    management: Option<Management>,
    management_due_ns: Option<u64>,
    /// How long guests who want this CPU are to have it for what moves had of it.
    owed_ns: u64,
    /// Moves wait until guests have had their part.
    holds_moves: bool,
    faults_due_ns: Option<u64>,
    ending: Vec<Life>,
    /// Some disks raise no interrupt.
    polls_disks: bool,
    /// When the disks' drivers look after their devices next.
    disks_due_ns: Option<u64>,
    jobs: Jobs,
    keepers: Keepers,
    measurements: Measurements,
    removals: Removals,
    /// Until when devices without an interrupt are asked more often.
    busy_until_ns: u64,
    /// When the cards are looked after next; none without one.
    cards_due_ns: Option<u64>,
    /// When to look again after memory that guests gave up.
    release_due_ns: Option<u64>,
    started: bool,
}

/// A life on its way out.
struct Life {
    running: Arc<Running>,
    ending: Ending,
    since_ns: u64,
    is_slow: bool,
}

/// Gives a life that ended to the services. `from` is the CPU that calls.
pub fn hand_over(host: &Host, from: usize, running: Arc<Running>, ending: Ending) {
    ENDED.lock().push((running, ending));
    ENDINGS.note(host, from);
}

/// Notes that a job, a measurement or a removal was begun, which CPU 0 does.
pub fn note_begun() {
    WAITING.fetch_or(BEGUN.0, Ordering::AcqRel);
}

/// Notes that a guest's console printed something. `from` is the CPU that calls.
pub fn note_console(host: &Host, from: usize) {
    CONSOLE.note(host, from);
}

/// Notes that a frame for the management address waits. `from` is the CPU that calls.
pub fn note_management(host: &Host, from: usize) {
    MANAGEMENT.note(host, from);
}

/// Notes that a guest gave memory up. `from` is the CPU that calls.
pub fn note_given_up(host: &Host, from: usize) {
    GIVEN_UP.note(host, from);
}

/// Notes that a guest's firmware wrote variables, or that there is a life that may. `from` is the CPU that calls.
pub fn note_variables(host: &Host, from: usize) {
    VARIABLES.note(host, from);
}

/// Notes that a guest waits for memory that is on its way. `from` is the CPU that calls.
pub fn note_wanted(host: &Host, from: usize) {
    WANTED.note(host, from);
}

/// Notes that disk transfers ended which no interrupt announces, or the host's own. `from` is the CPU that calls.
pub fn note_transfers(host: &Host, from: usize) {
    TRANSFERS.note(host, from);
}

/// Whether an interrupt may be the console's.
pub fn may_be_console(devices: &Devices, vector: u8) -> bool {
    /// By which processors call themselves and each other.
    const OWN: [u8; 3] = [interrupts::KICK, interrupts::POSTED, interrupts::TIMER];
    !OWN.contains(&vector) && !devices.raise(vector)
}

/// Whether something waits that no interrupt announces.
pub fn has_work() -> bool {
    WAITING.load(Ordering::Acquire) != 0
}

/// Whether some of that should be done before the present slice would end.
pub fn is_urgent() -> bool {
    WAITING.load(Ordering::Acquire) & (MANAGEMENT.0 | TRANSFERS.0 | WANTED.0) != 0
}

impl Work {
    fn note(&self, host: &Host, from: usize) {
        if WAITING.fetch_or(self.0, Ordering::AcqRel) & self.0 == 0 {
            host.cpus.kick(from, 0);
        }
    }

    /// Whether it waited. What is noted from here on will be looked at again.
    fn take(&self) -> bool {
        WAITING.fetch_and(!self.0, Ordering::AcqRel) & self.0 != 0
    }
}

impl Services {
    /// The services of a host.
    pub fn new(host: &'static Host) -> Self {
        let (console, management) = (HostConsole::new(), Management::new(host));
        let polls_disks = host.storage.lock().polls();
        let cards_due_ns = (!host.network.lock().nics().is_empty()).then_some(0);
        // Without an uplink there is nothing that could ever be due.
        let management_due_ns = management.is_some().then_some(0);
        Self {
            host,
            console,
            management,
            management_due_ns,
            owed_ns: 0,
            holds_moves: false,
            faults_due_ns: Some(0),
            ending: Vec::new(),
            polls_disks,
            disks_due_ns: Some(0),
            jobs: Jobs::default(),
            keepers: Keepers::default(),
            measurements: Measurements::default(),
            removals: Removals::default(),
            busy_until_ns: 0,
            cards_due_ns,
            release_due_ns: None,
            started: false,
        }
    }

    /// Does what is due; returns when it wants to be called next at the latest.
    pub fn poll(&mut self, arrived: &[u8], devices: &mut Devices, forwarder: &mut Forwarder) -> Option<u64> {
        let host = self.host;
        let first = !core::mem::replace(&mut self.started, true);
        // Whoever has memory on its way is asked below anyway.
        WANTED.take();
        // Each of those finds what was begun.
        BEGUN.take();
        let ticked = self.tick_disks();
        if TRANSFERS.take() || self.polls_disks || ticked || first {
            self.finish_transfers(devices);
        }
        let overlooked = self.tick_cards();
        let had_frames = (devices.polls_cards() || first || overlooked) && devices.take_frames(host, forwarder);
        self.poll_management(forwarder);
        let migration_due_ns = self.poll_migrations(forwarder);
        devices::settle(host, 0, forwarder);
        let release_due_ns = self.release_given_up();
        let ending_due_ns = self.take_down_ended(devices);
        // Behind everything that may note the end of a transfer.
        let jobs_due_ns = self.jobs.poll(host);
        let keepers_due_ns = self.keepers.poll(host, VARIABLES.take());
        let measurements_due_ns = self.measurements.poll(host);
        let removals_due_ns = self.removals.poll(host);
        CONSOLE.take();
        let console_due_ns = self.console.poll(host, arrived.iter().any(|&vector| may_be_console(devices, vector)));
        let poll_due_ns = self.poll_due_ns(devices.polls_cards(), had_frames);
        let faults_due_ns = self.tell_of_faults();
        let services_due_ns = [
            self.management_due_ns,
            console_due_ns,
            self.disks_due_ns,
            self.cards_due_ns,
            ending_due_ns,
            faults_due_ns,
        ];
        let jobs_due_ns =
            [jobs_due_ns, keepers_due_ns, migration_due_ns, measurements_due_ns, removals_due_ns, release_due_ns];
        let due = services_due_ns.into_iter().chain([poll_due_ns]).chain(jobs_due_ns);
        due.flatten().min()
    }

    /// When devices without an interrupt are asked next. `had_frames`: a card
    /// without one had some, just now.
    fn poll_due_ns(&mut self, polls_cards: bool, had_frames: bool) -> Option<u64> {
        let now_ns = self.host.clock.now_ns();
        if had_frames {
            self.busy_until_ns = now_ns + BUSY_NS;
        }
        let is_busy = now_ns < self.busy_until_ns;
        (self.polls_disks || polls_cards).then_some(now_ns + if is_busy { BUSY_POLL_NS } else { POLL_NS })
    }

    /// Lets the disks' drivers look after their devices when that is due; returns whether it was.
    fn tick_disks(&mut self) -> bool {
        let now_ns = self.host.clock.now_ns();
        let is_due = self.disks_due_ns.is_some_and(|due_ns| due_ns <= now_ns);
        if is_due {
            self.disks_due_ns = self.host.storage.lock().tick(now_ns);
        }
        is_due
    }

    /// Looks after the cards when that is due; says whether frames wait that none announced.
    fn tick_cards(&mut self) -> bool {
        let now_ns = self.host.clock.now_ns();
        if self.cards_due_ns.is_none_or(|due_ns| due_ns > now_ns) {
            return false;
        }
        self.cards_due_ns = Some(now_ns + CARDS_NS);
        self.host.network.lock().tick()
    }

    /// Tells of what IOMMUs stopped, when that is due.
    fn tell_of_faults(&mut self) -> Option<u64> {
        let now_ns = self.host.clock.now_ns();
        if self.faults_due_ns.is_some_and(|due_ns| due_ns <= now_ns) {
            self.faults_due_ns = confinement::tell_of_faults(now_ns);
        }
        self.faults_due_ns
    }

    /// Tells machines of the disk transfers that ended.
    fn finish_transfers(&mut self, devices: &mut Devices) {
        let host = self.host;
        devices.finish_transfers(host, None);
        if host.storage.lock().is_recovering() {
            let soon_ns = host.clock.now_ns() + RECOVERY_NS;
            self.disks_due_ns = Some(self.disks_due_ns.map_or(soon_ns, |due_ns| due_ns.min(soon_ns)));
        }
    }

    fn poll_management(&mut self, forwarder: &mut Forwarder) {
        let is_due = self.management_due_ns.is_some_and(|due_ns| due_ns <= self.host.clock.now_ns());
        if let Some(management) = &mut self.management
            && (MANAGEMENT.take() || is_due)
        {
            self.management_due_ns = management.poll(self.host, forwarder);
        }
    }

    /// Notes that a guest had this CPU for so long.
    pub fn note_guest_ran(&mut self, ns: u64) {
        self.owed_ns = self.owed_ns.saturating_sub(ns);
    }

    /// Notes that no guest wants this CPU; says whether moves wait that may go on now.
    pub fn note_no_guest(&mut self) -> bool {
        self.owed_ns = 0;
        self.holds_moves
    }

    /// Goes on with moves. Where guests want this CPU too they get their part of it, however much other hosts send.
    fn poll_migrations(&mut self, forwarder: &mut Forwarder) -> Option<u64> {
        let management = self.management.as_mut()?;
        let start_ns = self.host.clock.now_ns();
        self.holds_moves = self.owed_ns > OWED_NS_MAX;
        if self.holds_moves {
            return Some(start_ns + self.owed_ns - OWED_NS_MAX);
        }
        let due_ns = self.host.migrations.lock().poll(self.host, management, forwarder);
        if management.has_to_send() {
            self.management_due_ns = management.poll(self.host, forwarder);
        }
        self.owed_ns += (self.host.clock.now_ns() - start_ns) / MOVES_PARTS;
        // Others have their turn first, and then the rest of what arrived.
        if management.is_behind() { Some(0) } else { due_ns }
    }

    /// Takes what guests gave up; returns when to look again after what is not done.
    fn release_given_up(&mut self) -> Option<u64> {
        let is_due = self.release_due_ns.is_some_and(|due_ns| due_ns <= self.host.clock.now_ns());
        if GIVEN_UP.take() || is_due {
            let vms = self.host.vms.lock().clone();
            let running = vms.iter().filter_map(|vm| vm.running());
            let more = running.filter(|running| running.release(self.host, 0)).count() > 0;
            self.release_due_ns = more.then(|| self.host.clock.now_ns() + RELEASE_NS);
        }
        self.release_due_ns
    }

    /// Takes down the lives that ended; returns when to look again after those that are not done.
    fn take_down_ended(&mut self, devices: &mut Devices) -> Option<u64> {
        let now_ns = self.host.clock.now_ns();
        ENDINGS.take();
        for (running, ending) in core::mem::take(&mut *ENDED.lock()) {
            vm::disconnect(self.host, &running);
            self.ending.push(Life { running, ending, since_ns: now_ns, is_slow: false });
        }
        if self.ending.is_empty() {
            return None;
        }
        self.finish_transfers(devices);
        for life in core::mem::take(&mut self.ending) {
            self.take_down(life, now_ns);
        }
        (!self.ending.is_empty()).then_some(now_ns + TAKE_DOWN_NS)
    }

    fn take_down(&mut self, mut life: Life, now_ns: u64) {
        let vm = life.running.vm.clone();
        let is_killed = life.running.order() == Order::Kill;
        if is_killed && life.ending == Ending::Ended(End::Reset) {
            life.ending = Ending::Ended(End::PowerOff);
        }
        if !vm::take_down(self.host, &life.running, &life.ending) {
            if !life.is_slow && now_ns - life.since_ns > SLOW_END_NS {
                life.is_slow = true;
                log::warn!("{} has ended, but its disks still work in its memory", vm.name());
            }
            return self.ending.push(life);
        }
        let Life { running, ending, .. } = life;
        // Its memory is free from here on.
        drop(running);
        if ending == Ending::Ended(End::Reset) {
            vm::restart(self.host, &vm);
        }
    }
}
