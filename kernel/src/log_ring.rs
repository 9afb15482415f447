//! Log messages: into a ring that the shell shows, and to the serial line as far as they matter there.

use crate::time::Clock;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::{Mutex, Once};

/// Messages that are kept.
const MESSAGES_MAX: usize = 512;

/// A message.
#[derive(Clone)]
pub struct Message {
    /// Since the start.
    pub time_ns: u64,
    /// How grave.
    pub level: Level,
    /// What it says.
    pub text: String,
}

struct Ring {
    messages: VecDeque<Message>,
    /// Messages that the console has not printed yet.
    unprinted: usize,
}

struct Logger;

static RING: Mutex<Ring> = Mutex::new(Ring { messages: VecDeque::new(), unprinted: 0 });
static CLOCK: Once<Clock> = Once::new();

/// Takes the log over. Messages before the heap is up are not allowed.
pub fn init() {
    log::set_logger(&Logger).expect("the log is taken over once");
    log::set_max_level(LevelFilter::Info);
}

/// Gives messages their times from now on.
pub fn set_clock(clock: Clock) {
    CLOCK.call_once(|| clock);
}

/// The last `lines` messages, oldest first.
pub fn last(lines: usize) -> Vec<Message> {
    let ring = RING.lock();
    ring.messages.iter().skip(ring.messages.len().saturating_sub(lines)).cloned().collect()
}

/// Messages that were not printed before.
pub fn take_unprinted() -> Vec<Message> {
    let mut ring = RING.lock();
    let unprinted = core::mem::take(&mut ring.unprinted);
    ring.messages.iter().skip(ring.messages.len() - unprinted).cloned().collect()
}

/// Whether any message waits to be printed.
pub fn has_unprinted() -> bool {
    RING.lock().unprinted > 0
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        let time_ns = CLOCK.get().map_or(0, Clock::now_ns);
        let message = Message { time_ns, level: record.level(), text: format!("{}", record.args()) };
        let mut ring = RING.lock();
        if ring.messages.len() == MESSAGES_MAX {
            ring.messages.pop_front();
        }
        ring.messages.push_back(message);
        ring.unprinted = (ring.unprinted + 1).min(MESSAGES_MAX);
    }

    fn flush(&self) {}
}
