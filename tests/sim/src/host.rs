//! A host: its clock, its VM, what leaves and arrives. The main types are [`Host`] and [`Vm`]; [`crate::world`] joins
//! hosts by streams and lets time pass.

use crate::guest::{Processor, Truth, boot_state};
use crate::incoming::Incoming;
use crate::outgoing::Outgoing;
use crate::random::Random;
use crate::stream::{News, Stream};
use addr::{Gpa, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use guestmem::heap::Heap;
use guestmem::{GuestMemory, PageSet};
use machine::{CpuProfile, DebugPorts, Leaf, Machine, MachineConfig, Moment, Outbox, Thread};
use migrate::source::Phase;
use migrate::wire::Message;
use peer::{KeyPair, PublicKey};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub const TSC_KHZ: u32 = 2_000_000;
/// The stream of a session that migration is on.
pub const STREAM: u8 = 1;
const MEMORY_BYTES: u64 = LARGE_PAGE_BYTES;
const EPOCH_UNIX_NS: u64 = 1_700_000_000_000_000_000;

/// The streams between hosts, and what decides about them.
pub struct Net {
    /// By number.
    pub streams: BTreeMap<usize, Stream>,
    /// Chance.
    pub random: Random,
    /// How late segments are at most.
    pub late_ns: u64,
    /// Each host's keys, and whether it is on.
    pub hosts: Vec<(KeyPair, bool)>,
    next: usize,
}

impl Net {
    /// No streams.
    pub fn new(hosts: usize, mut random: Random) -> Self {
        let key = |host: usize| KeyPair::new([host as u8 + 1; 32]);
        let late_ns = 100_000 + random.below(5_000_000);
        let hosts = (0..hosts).map(|host| (key(host), true)).collect();
        Self { streams: BTreeMap::new(), random, late_ns, hosts, next: 0 }
    }

    /// A stream from one host to another, if that one is on.
    pub fn connect(&mut self, from: usize, to: usize) -> Option<usize> {
        let ((own, _), (theirs, is_on)) = (&self.hosts[from], &self.hosts[to]);
        if !is_on {
            return None;
        }
        let stream = Stream::new((from, own), (to, theirs), self.late_ns, &mut self.random);
        self.next += 1;
        self.streams.insert(self.next, stream);
        Some(self.next)
    }

    /// Sends a message; into the void where the session is not open.
    pub fn say(&mut self, id: usize, end: usize, message: &Message<'_>) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.send(id, end, &bytes);
    }

    /// The same with bytes.
    pub fn send(&mut self, id: usize, end: usize, bytes: &[u8]) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.ends[end].session.send(STREAM, &[bytes]);
        }
    }

    /// Ends a session.
    pub fn close(&mut self, id: usize, end: usize, reason: &str, now_ns: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.close(end, reason, now_ns);
        }
    }
}

/// A VM on a host.
pub struct Vm {
    /// The machine.
    pub machine: Machine,
    /// Its vCPU; none before it is restored.
    pub thread: Option<Thread>,
    /// Its processor until then.
    pub processor: Option<Processor>,
    /// Memory as its processor reaches it.
    pub view: Arc<GuestMemory>,
    /// Pages whose dirty bit is set in the second-stage tables.
    pub dirty: Arc<Mutex<PageSet>>,
    /// Whether it may run, and for how much of the time.
    pub runs: bool,
    /// See there.
    pub percent: u8,
    outbox: Outbox,
}

impl Vm {
    /// A VM on a host whose clock on the wall was at `wall_unix_ns` when it was switched on.
    pub fn new(wall_unix_ns: u64, truth: &Arc<Mutex<Truth>>) -> Self {
        let heap = Arc::new(Heap::new(MEMORY_BYTES));
        let view = || {
            let mut memory = GuestMemory::new(heap.clone());
            memory.add_slot(Gpa::new(0), vec![Hpa::new(0)]);
            memory
        };
        let dirty = Arc::new(Mutex::new(PageSet::new(MEMORY_BYTES / PAGE_BYTES).expect("there is memory")));
        let processor_view = Arc::new(view());
        let processor = Processor::new(processor_view.clone(), dirty.clone(), truth.clone());
        let machine = Machine::new(MachineConfig {
            id: 1,
            vcpus: 1,
            memory: view(),
            profile: CpuProfile::new(leaf, 1, TSC_KHZ),
            disks: vec![],
            nics: vec![],
            debug: DebugPorts::default(),
            firmware: None,
            wall_unix_ns,
        });
        let (thread, outbox) = (None, Outbox::new());
        let view = processor_view;
        Self { machine, thread, processor: Some(processor), view, dirty, runs: false, percent: 100, outbox }
    }

    /// Has it begin as a new guest does.
    pub fn boot(&mut self, now: Moment) {
        if let Some(processor) = self.processor.take() {
            self.thread = Some(self.machine.thread(0, Box::new(processor), &boot_state(), 0, now));
            self.runs = true;
        }
    }

    /// Lets its vCPU run for a while.
    pub fn run(&mut self, now: Moment, truth: &Mutex<Truth>) {
        if let Some(thread) = self.thread.as_mut().filter(|_| self.runs) {
            self.machine.run(thread, &mut self.outbox, &mut Surroundings { now, truth, memory: self.machine.memory() });
        }
    }
}

/// What a machine sees of its host.
struct Surroundings<'a> {
    now: Moment,
    truth: &'a Mutex<Truth>,
    memory: &'a GuestMemory,
}

impl machine::Host for Surroundings<'_> {
    fn now(&self) -> Moment {
        self.now
    }

    fn arm(&mut self, _ns: u64) {}
    fn kick(&mut self, _vcpu: usize) {}
    fn give_way(&mut self, _to: Option<usize>) {}

    fn back(&mut self, gpa: Gpa) -> bool {
        self.memory.is_here(gpa, 1)
    }

    fn steal_ns(&self) -> u64 {
        0
    }

    fn flush(&mut self, outbox: &mut Outbox) {
        let mut truth = self.truth.lock().expect("nobody panicked");
        outbox.console().iter().for_each(|&byte| truth.heard(byte));
    }

    fn random(&mut self, into: &mut [u8]) {
        into.fill(0x5a);
    }

    fn trace(&mut self, _event: trace::Event) {}
}

/// A host.
pub struct Host {
    /// Which.
    pub index: usize,
    /// When it was switched on, in the world's time.
    on_ns: u64,
    /// How far its clock on the wall is off.
    skew_ns: u64,
    /// The VM, if it is here.
    pub vm: Option<Vm>,
    /// The VM on its way out.
    pub outgoing: Option<Outgoing>,
    /// Moves that it took back, and whose targets do not know yet. The VM may be on its way elsewhere meanwhile.
    pub withdrawn: Vec<Outgoing>,
    /// VMs that arrived, arrive, or did not.
    pub incoming: Vec<Incoming>,
    /// It has no room for a VM.
    pub is_full: bool,
}

impl Host {
    /// A host that was switched on just now.
    pub fn new(index: usize, now_ns: u64, random: &mut Random) -> Self {
        let skew_ns = random.below(2_000_000_000);
        Self {
            index,
            on_ns: now_ns,
            skew_ns,
            vm: None,
            outgoing: None,
            withdrawn: Vec::new(),
            incoming: Vec::new(),
            is_full: false,
        }
    }

    /// The moment by its clock.
    pub fn moment(&self, now_ns: u64) -> Moment {
        let ns = now_ns - self.on_ns + 1000;
        Moment { ns, tsc: 2 * ns + 77 }
    }

    /// UTC, as it has it.
    pub fn utc_ns(&self, now_ns: u64) -> u64 {
        self.wall_unix_ns() + self.moment(now_ns).ns
    }

    /// UTC when it was switched on, as it has it.
    pub fn wall_unix_ns(&self) -> u64 {
        EPOCH_UNIX_NS + self.on_ns + self.skew_ns
    }

    /// Takes what has arrived, and goes on with everything.
    pub fn poll(&mut self, net: &mut Net, now_ns: u64, truth: &Arc<Mutex<Truth>>) {
        let ids: Vec<usize> = net.streams.keys().copied().collect();
        for id in ids {
            for end in 0..2 {
                let news = match net.streams.get_mut(&id) {
                    Some(stream) if stream.ends[end].host == self.index => stream.receive(end, now_ns),
                    _ => continue,
                };
                for piece in news {
                    self.hear(id, end, piece, net, now_ns, truth);
                }
            }
        }
        let (utc_ns, moment) = (self.utc_ns(now_ns), self.moment(now_ns));
        if let Some(outgoing) = &mut self.outgoing {
            outgoing.poll(&mut self.vm, net, moment, now_ns);
        }
        for outgoing in &mut self.withdrawn {
            outgoing.withdraw(net, now_ns);
        }
        self.withdrawn.retain(|outgoing| outgoing.source.phase() != Phase::Done);
        for incoming in &mut self.incoming {
            incoming.poll(&mut self.vm, net, (moment, utc_ns), now_ns);
        }
    }

    fn hear(&mut self, id: usize, end: usize, news: News, net: &mut Net, now_ns: u64, truth: &Arc<Mutex<Truth>>) {
        let utc_ns = self.utc_ns(now_ns);
        if end == 0 {
            let mut all = self.outgoing.iter_mut().chain(&mut self.withdrawn);
            if let Some(outgoing) = all.find(|outgoing| outgoing.is_on(id)) {
                outgoing.hear(news, now_ns, utc_ns);
            }
            return;
        }
        if let Some(incoming) = self.incoming.iter_mut().find(|incoming| incoming.is_on(id)) {
            return incoming.hear(news, &mut self.vm, net, now_ns);
        }
        match news {
            News::Identified => {
                if let Some(stream) = net.streams.get_mut(&id) {
                    stream.ends[1].session.trust(Ok(()));
                }
            }
            News::Message(bytes) => self.direct(id, &bytes, net, now_ns, truth),
            News::Open | News::Ended(_) => {}
        }
    }

    /// The first message says what a session is about.
    fn direct(&mut self, id: usize, bytes: &[u8], net: &mut Net, now_ns: u64, truth: &Arc<Mutex<Truth>>) {
        let key = net.streams.get(&id).and_then(|stream| stream.ends[1].session.remote());
        let Some(key) = key else { return };
        let known = |incoming: &&mut Incoming, id| incoming.target.id() == id;
        match Message::parse(bytes) {
            Ok(Message::Offer { id: migration, .. }) => {
                let room = (!self.is_full && self.vm.is_none()).then(|| Vm::new(self.wall_unix_ns(), truth));
                self.incoming.push(Incoming::new(migration, key, id, room));
            }
            Ok(Message::Commit { id: migration } | Message::Abort { id: migration, .. }) => {
                match self.incoming.iter_mut().find(|incoming| known(incoming, migration)) {
                    Some(incoming) if incoming.key == key => incoming.relink(id, bytes, &mut self.vm, net, now_ns),
                    _ => {
                        net.say(id, 1, &Message::Unknown { id: migration });
                        net.close(id, 1, "there is nothing to talk about", now_ns);
                    }
                }
            }
            _ => net.close(id, 1, "it begins with what no source begins with", now_ns),
        }
    }
}

/// The key by which hosts know each other.
pub type Key = PublicKey;

/// A processor of AMD's with every feature but vectors.
fn leaf(leaf: u32, subleaf: u32) -> Leaf {
    let all = Leaf { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX };
    let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    let named = |last| Leaf { eax: last, ebx: word(b"Auth"), ecx: word(b"cAMD"), edx: word(b"enti") };
    match (leaf, subleaf) {
        (0, _) => named(0x20),
        (0x8000_0000, _) => named(0x8000_001e),
        (0x8000_0008, _) => Leaf { eax: 0x3030_3028, ..all },
        (0xd, 0) => Leaf { eax: 3, ebx: 0, ecx: 0, edx: 0 },
        (0xd, _) => Leaf::default(),
        _ => all,
    }
}
