//! Everything that a serial line has said so far, shared between the thread that reads it and the test that waits for it.
//! The main type is [`Transcript`]; [`crate::Emulator`] owns one and keeps the reading position.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Why a wait ended without a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The limit passed.
    Limit,
    /// The line was closed: the emulator ended.
    Closed,
}

/// A match: which of the patterns, and the byte range it covers in the transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Index into the patterns that were waited for.
    pub pattern: usize,
    /// Offset of the first byte of the match.
    pub start: usize,
    /// Offset of the first byte after the match.
    pub end: usize,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    closed: bool,
}

/// The bytes received on one serial line, growing until the line is closed.
#[derive(Clone, Default)]
pub struct Transcript {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Transcript {
    /// Starts a thread that copies `source` into the transcript, and into `log` as it arrives, until the end of file.
    pub fn collect(&self, mut source: impl Read + Send + 'static, mut log: File) -> JoinHandle<()> {
        let transcript = self.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let length = match source.read(&mut buffer) {
                    Ok(length @ 1..) => length,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Ok(0) | Err(_) => break,
                };
                // A full disk must not end the test: the transcript in memory still decides.
                let _ = log.write_all(&buffer[..length]);
                transcript.append(&buffer[..length]);
            }
            transcript.close();
        })
    }

    /// Adds bytes at the end and wakes whoever waits.
    pub fn append(&self, bytes: &[u8]) {
        self.lock().bytes.extend_from_slice(bytes);
        self.shared.1.notify_all();
    }

    /// States that nothing more will come.
    pub fn close(&self) {
        self.lock().closed = true;
        self.shared.1.notify_all();
    }

    /// Length in bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().bytes.len()
    }

    /// True before the first byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text from byte `start` to byte `end`; bytes that are not UTF-8 become U+FFFD.
    #[must_use]
    pub fn text(&self, start: usize, end: usize) -> String {
        let state = self.lock();
        let end = end.min(state.bytes.len());
        String::from_utf8_lossy(&state.bytes[start.min(end)..end]).into_owned()
    }

    /// Waits until one of `patterns` occurs at or after byte `from`; the earliest match wins, and among equals the first
    /// pattern.
    ///
    /// # Errors
    /// [`Missing`] when `limit` passes or the line is closed before a match.
    pub fn wait(&self, from: usize, patterns: &[&str], limit: Duration) -> Result<Found, Missing> {
        let deadline = Instant::now() + limit;
        let longest = patterns.iter().map(|pattern| pattern.len()).max().unwrap_or(0);
        let mut searched = from;
        let mut state = self.lock();
        loop {
            if let Some(found) = find(&state.bytes, searched, patterns) {
                return Ok(found);
            }
            // A match may straddle what has been searched and what comes next.
            searched = state.bytes.len().saturating_sub(longest).max(from);
            if state.closed {
                return Err(Missing::Closed);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return Err(Missing::Limit) };
            state = self.shared.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn find(bytes: &[u8], from: usize, patterns: &[&str]) -> Option<Found> {
    let tail = bytes.get(from..)?;
    let position = |pattern: &str| tail.windows(pattern.len().max(1)).position(|window| window == pattern.as_bytes());
    patterns
        .iter()
        .enumerate()
        .filter_map(|(index, pattern)| {
            let start = from + position(pattern)?;
            Some(Found { pattern: index, start, end: start + pattern.len() })
        })
        .min_by_key(|found| found.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn finds_the_earliest_of_several_patterns_and_honours_the_start() {
        let transcript = Transcript::default();
        transcript.append(b"one two one");
        let found = transcript.wait(0, &["two", "one"], SHORT).unwrap();
        assert_eq!(found, Found { pattern: 1, start: 0, end: 3 });
        assert_eq!(transcript.wait(1, &["one"], SHORT).unwrap().start, 8);
    }

    #[test]
    fn finds_a_match_that_arrives_in_two_pieces() {
        let transcript = Transcript::default();
        transcript.append(b"noise poll");
        let writer = transcript.clone();
        let thread = thread::spawn(move || {
            thread::sleep(SHORT);
            writer.append(b"ux> ");
        });
        assert_eq!(transcript.wait(0, &["pollux> "], Duration::from_secs(10)).unwrap().start, 6);
        thread.join().unwrap();
    }

    #[test]
    fn says_why_nothing_was_found() {
        let transcript = Transcript::default();
        assert_eq!(transcript.wait(0, &["x"], SHORT), Err(Missing::Limit));
        transcript.close();
        assert_eq!(transcript.wait(0, &["x"], Duration::from_secs(60)), Err(Missing::Closed));
    }
}
