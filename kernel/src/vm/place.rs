//! Where one vCPU of a life is: not started, at home, or on its CPU; asleep or ready; and the time that it got.
//!
//! The type is [`Place`]. A vCPU's thread is at home or in the hands of its CPU's loop, so that no lock is held while a
//! guest runs, and whoever finds all threads of a paused VM at home has all of its state.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use machine::{Machine, Sleep, Thread};
use spin::Mutex;
use vcpu::Vcpu;

/// How long a vCPU that halts looks for mail before it sleeps, at most; and how short a halt is after which it does so
/// the next time.
pub const LINGER_NS: u64 = 200_000;

/// One vCPU's place.
pub struct Place {
    /// The CPU that it runs on, in whose queue it is.
    cpu: AtomicUsize,
    home: Mutex<Home>,
    sleep: Sleep,
    /// It slept before it became ready.
    woken: AtomicBool,
    /// Since when it halts, if it does, and whether it halted for a short while only the last time.
    halted_since_ns: AtomicU64,
    halts_shortly: AtomicBool,
    /// Since when it is ready, unless it sleeps.
    ready_since_ns: AtomicU64,
    /// It is throttled until this moment.
    throttled_until_ns: AtomicU64,
    /// Time on a CPU, and time that it was ready and had none.
    time: Mutex<CpuTime>,
    steal_ns: AtomicU64,
}

/// Time on a CPU.
#[derive(Default)]
struct CpuTime {
    /// All slices that are over.
    booked_ns: u64,
    /// When the one began that is not: where nothing calls it, a vCPU runs for long.
    since_ns: Option<u64>,
}

/// Who has the thread.
enum Home {
    /// There is none yet.
    Unprepared(Box<dyn Vcpu>),
    /// Nobody: it is here, and nothing of it is in a processor.
    Here(Box<Thread>),
    /// Somebody else.
    Away,
}

impl Place {
    /// A vCPU that is to run on `cpu`. The boot vCPU is ready from `now_ns` on, the others sleep.
    pub fn new(cpu: usize, vcpu: Box<dyn Vcpu>, is_boot: bool, now_ns: u64) -> Self {
        Self {
            cpu: AtomicUsize::new(cpu),
            home: Mutex::new(Home::Unprepared(vcpu)),
            sleep: Sleep::until(if is_boot { 0 } else { Sleep::FOR_EVER_NS }),
            woken: AtomicBool::new(false),
            halted_since_ns: AtomicU64::new(0),
            halts_shortly: AtomicBool::new(false),
            ready_since_ns: AtomicU64::new(now_ns),
            throttled_until_ns: AtomicU64::new(0),
            time: Mutex::default(),
            steal_ns: AtomicU64::new(0),
        }
    }

    /// The CPU that it runs on.
    pub fn cpu(&self) -> usize {
        self.cpu.load(Ordering::SeqCst)
    }

    /// The CPU that is to be told of what the caller just left for it. It may have moved when the caller tells: it looks
    /// at all that was left for it after each move.
    pub fn cpu_to_tell(&self) -> usize {
        fence(Ordering::SeqCst);
        self.cpu()
    }

    /// Moves it to another CPU. Only the CPU that it runs on does this, while it is in no queue and its thread at home.
    pub fn move_to(&self, cpu: usize) {
        self.cpu.store(cpu, Ordering::SeqCst);
    }

    /// How long it has been ready at home, out of every processor; `None` where it is not.
    pub fn waits_ns(&self, now_ns: u64) -> Option<u64> {
        let since_ns = self.ready_at_ns().max(self.ready_since_ns.load(Ordering::Relaxed));
        let waited_ns = now_ns.checked_sub(since_ns)?;
        matches!(*self.home.lock(), Home::Here(_)).then_some(waited_ns)
    }

    /// Makes its thread.
    pub fn prepare(&self, make: impl FnOnce(Box<dyn Vcpu>) -> Thread) {
        let mut home = self.home.lock();
        match core::mem::replace(&mut *home, Home::Away) {
            Home::Unprepared(vcpu) => *home = Home::Here(Box::new(make(vcpu))),
            other => *home = other,
        }
    }

    /// Takes the vCPU of which no thread was made yet.
    pub fn take_vcpu(&self) -> Option<Box<dyn Vcpu>> {
        let mut home = self.home.lock();
        match core::mem::replace(&mut *home, Home::Away) {
            Home::Unprepared(vcpu) => Some(vcpu),
            other => {
                *home = other;
                None
            }
        }
    }

    /// Takes its thread, if that is at home and `may` still says so.
    pub fn take(&self, may: impl FnOnce() -> bool) -> Option<Box<Thread>> {
        let mut home = self.home.lock();
        match core::mem::replace(&mut *home, Home::Away) {
            Home::Here(thread) if may() => Some(thread),
            other => {
                *home = other;
                None
            }
        }
    }

    /// Puts its thread back, which is out of every processor.
    pub fn put(&self, thread: Box<Thread>) {
        *self.home.lock() = Home::Here(thread);
    }

    /// Ends its sleep; says whether it slept.
    pub fn wake(&self, now_ns: impl FnOnce() -> u64) -> bool {
        let slept = self.sleep.end() != 0;
        if slept {
            self.woken.store(true, Ordering::Relaxed);
            self.ready_since_ns.store(now_ns(), Ordering::Relaxed);
        }
        slept
    }

    /// Lets it, vCPU `index` of `machine`, sleep until a moment, unless mail came meanwhile.
    pub fn sleep(&self, machine: &Machine, index: usize, until_ns: Option<u64>) {
        self.sleep.begin(machine, index, until_ns);
    }

    /// Notes that it halts; says whether it is likely to go on at once.
    pub fn begin_halt(&self, now_ns: u64) -> bool {
        self.halted_since_ns.store(now_ns, Ordering::Relaxed);
        self.halts_shortly.load(Ordering::Relaxed)
    }

    /// Notes that the halt is over before it slept.
    pub fn end_halt(&self) {
        self.halted_since_ns.store(0, Ordering::Relaxed);
    }

    /// When it is ready, were it allowed to run.
    pub fn ready_at_ns(&self) -> u64 {
        self.sleep.ends_at_ns().max(self.throttled_until_ns.load(Ordering::Relaxed))
    }

    /// Keeps it off its CPU for as long as it just ran, times what it does not get of what it gets.
    pub fn throttle(&self, ran_ns: u64, now_ns: u64, percent: u8) {
        let percent = u64::from(percent.clamp(1, 100));
        let off_ns = ran_ns * (100 - percent) / percent;
        self.throttled_until_ns.store(if off_ns == 0 { 0 } else { now_ns + off_ns }, Ordering::Relaxed);
    }

    /// Whether it has slept since it last ran.
    pub fn woke(&self) -> bool {
        self.woken.load(Ordering::Relaxed) || self.ready_at_ns() != 0
    }

    /// Counts waiting from here on: it may run again after a pause.
    pub fn set_ready_since(&self, now_ns: u64) {
        self.ready_since_ns.store(now_ns, Ordering::Relaxed);
    }

    /// It has a CPU from here on: books the time that it was ready and had none.
    pub fn begin_slice(&self, now_ns: u64) {
        // A moment to sleep until that has come is when it became ready.
        self.woken.store(false, Ordering::Relaxed);
        let slept_until_ns = self.sleep.end();
        let since_ns = slept_until_ns.max(self.ready_since_ns.load(Ordering::Relaxed));
        let halted_since_ns = self.halted_since_ns.swap(0, Ordering::Relaxed);
        if halted_since_ns != 0 {
            let is_short = since_ns.saturating_sub(halted_since_ns) < LINGER_NS;
            // The end of a sleep that was known before is nothing to look for.
            self.halts_shortly.store(is_short && slept_until_ns == 0, Ordering::Relaxed);
        }
        self.steal_ns.fetch_add(now_ns.saturating_sub(since_ns), Ordering::Relaxed);
        self.time.lock().since_ns = Some(now_ns);
    }

    /// Books the time that it had a CPU.
    pub fn end_slice(&self, now_ns: u64) {
        let mut time = self.time.lock();
        time.booked_ns += time.since_ns.take().map_or(0, |since_ns| now_ns.saturating_sub(since_ns));
        drop(time);
        self.ready_since_ns.store(now_ns, Ordering::Relaxed);
    }

    /// The time that it had a CPU until now.
    pub fn cpu_ns(&self, now_ns: u64) -> u64 {
        let time = self.time.lock();
        time.booked_ns + time.since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns))
    }

    /// The time that it was ready and had none.
    pub fn steal_ns(&self) -> u64 {
        self.steal_ns.load(Ordering::Relaxed)
    }
}
