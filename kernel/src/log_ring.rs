//! Log messages: into a ring that the shell shows, and to the serial line as far as they matter there.

use crate::time::Clock;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::{Mutex, Once};

/// Messages that are kept.
const MESSAGES_MAX: usize = 512;
/// Memory that each has at least.
const TEXT_BYTES: usize = 128;

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
    /// Memory for messages to come.
    spare: Vec<String>,
}

struct Logger;

static RING: Mutex<Ring> = Mutex::new(Ring { messages: VecDeque::new(), unprinted: 0, spare: Vec::new() });
static CLOCK: Once<Clock> = Once::new();

/// Takes the log over. Messages before the heap is up are not allowed.
pub fn init() {
    log::set_logger(&Logger).expect("the log is taken over once");
    log::set_max_level(LevelFilter::Info);
}

/// Gives messages their times from now on, and takes their memory, so that what the host uses does not grow with them.
pub fn set_clock(clock: Clock) {
    CLOCK.call_once(|| clock);
    let mut ring = RING.lock();
    let left = MESSAGES_MAX - ring.messages.len();
    ring.messages.reserve_exact(left);
    ring.spare = (0..left).map(|_| String::with_capacity(TEXT_BYTES)).collect();
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

impl Ring {
    /// Memory for the next message, the oldest one's where all is in use.
    fn take_text(&mut self) -> String {
        if let Some(text) = self.spare.pop() {
            return text;
        }
        // Before memory was put by, each has its own; none is taken from those that nobody has seen yet.
        if self.messages.len() < MESSAGES_MAX {
            return String::new();
        }
        let Some(Message { mut text, .. }) = self.messages.pop_front() else { return String::new() };
        self.unprinted = self.unprinted.min(self.messages.len());
        text.clear();
        text.shrink_to(TEXT_BYTES);
        text
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        let time_ns = CLOCK.get().map_or(0, Clock::now_ns);
        // Its memory is taken and what falls out is dropped under the lock, but never words found: they may lock.
        let mut text = RING.lock().take_text();
        // A string takes all words.
        let _ = write!(text, "{}", record.args());
        let mut ring = RING.lock();
        ring.messages.push_back(Message { time_ns, level: record.level(), text });
        ring.unprinted = (ring.unprinted + 1).min(MESSAGES_MAX);
    }

    fn flush(&self) {}
}
