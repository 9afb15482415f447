//! A guest's console as the host keeps it.
//!
//! [`ConsoleBuffer`] holds the last bytes that a guest wrote, whether anybody reads them or not. Each attached session
//! has a [`Cursor`] into it and takes what its own line can carry; one that falls behind loses the oldest bytes, the
//! guest never waits.

use alloc::{boxed::Box, vec};

/// The last 64 KiB of a guest's console.
pub struct ConsoleBuffer {
    bytes: Box<[u8]>,
    /// How many bytes were ever written.
    written: u64,
}

/// How far a session has read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    position: u64,
    lost_bytes: u64,
}

impl ConsoleBuffer {
    /// How much is kept.
    pub const BYTES: usize = 64 << 10;

    /// A console on which nothing was written. All its memory is allocated here.
    pub fn new() -> Self {
        Self { bytes: vec![0; Self::BYTES].into_boxed_slice(), written: 0 }
    }

    /// What the guest wrote, appended over the oldest. Takes time in proportion to the bytes that are kept of it.
    pub fn push(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(Self::BYTES)..];
        let skipped = (bytes.len() - kept.len()) as u64;
        let start = offset(self.written.wrapping_add(skipped));
        let (head, tail) = kept.split_at(kept.len().min(Self::BYTES - start));
        self.bytes[start..start + head.len()].copy_from_slice(head);
        self.bytes[..tail.len()].copy_from_slice(tail);
        self.written = self.written.wrapping_add(bytes.len() as u64);
    }

    /// A cursor at the oldest byte kept, or where bytes were lost already, at the first line that is whole: for a
    /// session that attaches and wants to see what went before.
    pub fn replay(&self) -> Cursor {
        let mut cursor = Cursor { position: self.oldest(), lost_bytes: 0 };
        if cursor.position > 0 {
            let mut probe = cursor;
            let mut before = 0;
            loop {
                let run = self.read(&mut probe, Self::BYTES);
                if run.is_empty() {
                    break;
                }
                if let Some(end) = run.iter().position(|&byte| byte == b'\n') {
                    cursor.position += (before + end + 1) as u64;
                    break;
                }
                before += run.len();
            }
        }
        cursor
    }

    /// A cursor behind the newest byte: for a session that wants only what comes.
    pub fn end(&self) -> Cursor {
        Cursor { position: self.written, lost_bytes: 0 }
    }

    /// The next bytes behind `cursor`, at most `bytes_max`, which moves past them. Empty once it has read everything;
    /// shorter than what there is where the ring wraps, so ask until it is empty. Bytes that were overwritten before
    /// they were read are skipped and counted in [`Cursor::take_lost_bytes`].
    pub fn read(&self, cursor: &mut Cursor, bytes_max: usize) -> &[u8] {
        let lost = self.oldest().saturating_sub(cursor.position);
        cursor.position += lost;
        cursor.lost_bytes = cursor.lost_bytes.saturating_add(lost);
        let start = offset(cursor.position);
        let pending = usize::try_from(self.written.saturating_sub(cursor.position)).unwrap_or(Self::BYTES);
        let length = pending.min(bytes_max).min(Self::BYTES - start);
        cursor.position += length as u64;
        &self.bytes[start..start + length]
    }

    /// The position of the oldest byte that is kept.
    fn oldest(&self) -> u64 {
        self.written.saturating_sub(Self::BYTES as u64)
    }
}

/// Where the byte at a position is kept.
const fn offset(position: u64) -> usize {
    (position % ConsoleBuffer::BYTES as u64) as usize
}

impl Cursor {
    /// How many bytes were overwritten before they were read, since this was last asked.
    pub fn take_lost_bytes(&mut self) -> u64 {
        core::mem::take(&mut self.lost_bytes)
    }
}

impl Default for ConsoleBuffer {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything behind a cursor, read in pieces.
    fn rest(buffer: &ConsoleBuffer, cursor: &mut Cursor, bytes_max: usize) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let run = buffer.read(cursor, bytes_max);
            if run.is_empty() {
                return all;
            }
            all.extend_from_slice(run);
        }
    }

    #[test]
    fn a_session_sees_what_went_before_and_what_comes() {
        let mut buffer = ConsoleBuffer::new();
        buffer.push(b"hello ");
        let mut cursor = buffer.replay();
        let mut late = buffer.end();
        buffer.push(b"world");
        assert_eq!(rest(&buffer, &mut cursor, 4), b"hello world");
        assert_eq!(rest(&buffer, &mut late, 100), b"world");
        assert_eq!(cursor.take_lost_bytes(), 0);
        assert!(buffer.read(&mut cursor, 10).is_empty());
    }

    #[test]
    fn keeps_the_last_bytes_across_the_wrap() {
        let mut buffer = ConsoleBuffer::new();
        let text: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
        for piece in text.chunks(1_777) {
            buffer.push(piece);
        }
        let mut cursor = Cursor { position: 0, lost_bytes: 0 };
        assert_eq!(rest(&buffer, &mut cursor, 1000), &text[text.len() - ConsoleBuffer::BYTES..]);
        assert_eq!(cursor.take_lost_bytes(), 200_000 - 65_536);
        assert_eq!(cursor.take_lost_bytes(), 0);
    }

    #[test]
    fn one_push_larger_than_the_ring_leaves_its_end() {
        let mut buffer = ConsoleBuffer::new();
        buffer.push(b"x");
        let text: Vec<u8> = (0..100_000_u32).map(|i| (i % 249) as u8).collect();
        buffer.push(&text);
        let mut cursor = Cursor { position: 0, lost_bytes: 0 };
        assert_eq!(rest(&buffer, &mut cursor, usize::MAX), &text[text.len() - ConsoleBuffer::BYTES..]);
    }

    #[test]
    fn a_slow_session_loses_the_oldest_only() {
        let mut buffer = ConsoleBuffer::new();
        let mut cursor = buffer.replay();
        buffer.push(&[b'a'; 10]);
        assert_eq!(buffer.read(&mut cursor, 4), b"aaaa");
        buffer.push(&[b'b'; ConsoleBuffer::BYTES]);
        assert_eq!(rest(&buffer, &mut cursor, usize::MAX), [b'b'; ConsoleBuffer::BYTES]);
        assert_eq!(cursor.take_lost_bytes(), 6);
    }

    #[test]
    fn a_replay_after_a_loss_starts_at_a_line() {
        let mut buffer = ConsoleBuffer::new();
        for line in 0..10_000 {
            buffer.push(format!("line {line}\r\n").as_bytes());
        }
        let text = String::from_utf8(rest(&buffer, &mut buffer.replay(), usize::MAX)).unwrap();
        assert!(text.starts_with("line ") && text.ends_with("line 9999\r\n"));
        let mut endless = ConsoleBuffer::new();
        endless.push(&[b'x'; 3 * ConsoleBuffer::BYTES]);
        assert_eq!(rest(&endless, &mut endless.replay(), usize::MAX).len(), ConsoleBuffer::BYTES);
    }
}
