//! The terminal's row that the line is edited in.
//!
//! [`Row`] knows what the row shows and where the cursor is, and writes the least that makes it show something else,
//! with nothing but BS, CUB, CUF and EL of a VT100. The caller keeps what is shown shorter than the terminal is wide,
//! so that nothing ever wraps.

use alloc::{format, vec::Vec};

/// A shorter way is written as backspaces or characters, a longer one as a control sequence.
const STEPS_MAX: usize = 4;

/// What a row shows, in ASCII, and the cursor's column in it.
#[derive(Default)]
pub(crate) struct Row {
    shown: Vec<u8>,
    column: usize,
}

impl Row {
    /// Makes the row show `wanted` with the cursor at `column`.
    pub(crate) fn show(&mut self, wanted: &[u8], column: usize, out: &mut Vec<u8>) {
        let same = self.shown.iter().zip(wanted).take_while(|(shown, wanted)| shown == wanted).count();
        if same < self.shown.len().max(wanted.len()) {
            self.go(same, out);
            out.extend_from_slice(&wanted[same..]);
            self.column = wanted.len();
            if self.shown.len() > wanted.len() {
                out.extend_from_slice(b"\x1b[K");
            }
            self.shown.clear();
            self.shown.extend_from_slice(wanted);
        }
        self.go(column.min(self.shown.len()), out);
    }

    /// Blanks the row and goes to its start.
    pub(crate) fn erase(&mut self, out: &mut Vec<u8>) {
        if !self.shown.is_empty() {
            out.extend_from_slice(b"\r\x1b[K");
        }
        self.forget();
    }

    /// The cursor is at the start of a blank row now, by other means.
    pub(crate) fn forget(&mut self) {
        self.shown.clear();
        self.column = 0;
    }

    fn go(&mut self, column: usize, out: &mut Vec<u8>) {
        match (column.checked_sub(self.column), self.column.saturating_sub(column)) {
            (Some(right), _) if right > STEPS_MAX => out.extend_from_slice(format!("\x1b[{right}C").as_bytes()),
            (Some(_), _) => out.extend_from_slice(&self.shown[self.column..column]),
            (None, left) if left > STEPS_MAX => out.extend_from_slice(format!("\x1b[{left}D").as_bytes()),
            (None, left) => out.extend(core::iter::repeat_n(0x08, left)),
        }
        self.column = column;
    }
}
