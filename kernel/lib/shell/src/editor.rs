//! Editing a line on a terminal.
//!
//! [`LineEditor`] takes the bytes that the terminal sends, echoes what they do and says when a line is complete. The
//! line stays in one row of the terminal, which it scrolls through where it is longer: a serial line does not tell how
//! wide the terminal behind it is, so wrapping cannot be left to it.

use alloc::{format, string::String, vec::Vec};

use crate::{
    complete::{Completion, Names, complete},
    history::History,
    keys::{Key, KeyDecoder},
    row::Row,
    words::quote,
};

/// The narrowest terminal that is expected.
const COLUMNS: usize = 80;
/// How many candidates are listed at most.
const CANDIDATES_MAX: usize = 100;
const BELL: u8 = 0x07;

/// A line being edited, and those before it.
///
/// After a line was [completed](Input) nothing is shown until [`show`](LineEditor::show). Text that comes in between
/// is put between [`hide`](LineEditor::hide) and `show`.
pub struct LineEditor {
    prompt: String,
    /// ASCII without control characters.
    line: String,
    /// How much of the line is before the cursor, in bytes.
    cursor: usize,
    /// How much of the line is scrolled out of the row on the left, in bytes.
    scrolled: usize,
    keys: KeyDecoder,
    history: History,
    killed: String,
    row: Row,
}

/// What the operator finished.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A line, without its end.
    Line(String),
    /// A line given up with Ctrl-C.
    Cancelled,
}

impl LineEditor {
    /// The longest line, in bytes: more rings the bell.
    pub const LINE_BYTES_MAX: usize = 4096;

    /// An editor that asks with `prompt`, which is at most 40 printable ASCII characters.
    pub fn new(prompt: &str) -> Self {
        assert!(prompt.len() <= COLUMNS / 2 && prompt.bytes().all(|byte| matches!(byte, b' '..=b'~')));
        Self {
            prompt: prompt.into(),
            line: String::new(),
            cursor: 0,
            scrolled: 0,
            keys: KeyDecoder::default(),
            history: History::default(),
            killed: String::new(),
            row: Row::default(),
        }
    }

    /// Shows the prompt and as much of the line as was typed. The terminal's cursor is at the start of a row.
    pub fn show(&mut self, out: &mut Vec<u8>) {
        self.row.forget();
        self.refresh(out);
    }

    /// Takes the prompt and the line away, so that something else can be shown from the start of the row.
    pub fn hide(&mut self, out: &mut Vec<u8>) {
        self.row.erase(out);
    }

    /// Takes a byte from the terminal. What goes back to the terminal is appended to `out`; `names` are there to be
    /// completed.
    pub fn byte(&mut self, byte: u8, names: &dyn Names, out: &mut Vec<u8>) -> Option<Input> {
        match self.keys.byte(byte)? {
            Key::Enter => return Some(self.enter(out)),
            Key::Cancel => return Some(self.cancel(out)),
            Key::Tab => self.complete(names, out),
            Key::ClearScreen => {
                out.extend_from_slice(b"\x1b[H\x1b[2J");
                self.row.forget();
            }
            key => {
                if !self.edit(key) {
                    out.push(BELL);
                }
            }
        }
        self.refresh(out);
        None
    }

    /// Changes the line or the cursor. False where the key has no use there.
    fn edit(&mut self, key: Key) -> bool {
        let (cursor, end) = (self.cursor, self.line.len());
        match key {
            Key::Char(char) => self.replace(cursor, cursor, char.encode_utf8(&mut [0; 4])),
            Key::Backspace => cursor > 0 && self.replace(cursor - 1, cursor, ""),
            Key::Delete | Key::DeleteOrEnd => cursor < end && self.replace(cursor, cursor + 1, ""),
            Key::Left => cursor > 0 && self.go(cursor - 1),
            Key::Right => cursor < end && self.go(cursor + 1),
            Key::WordLeft => self.go(self.word_left(|char| char.is_ascii_alphanumeric())),
            Key::WordRight => self.go(self.word_right()),
            Key::Home => self.go(0),
            Key::End => self.go(end),
            Key::KillToEnd => self.kill(cursor, end),
            Key::KillToStart => self.kill(0, cursor),
            Key::KillWord => self.kill(self.word_left(|char| char != ' '), cursor),
            Key::Yank => {
                let killed = self.killed.clone();
                self.replace(cursor, cursor, &killed)
            }
            Key::Up => {
                let line = self.history.older(&self.line).map(String::from);
                self.recall(line)
            }
            Key::Down => {
                let line = self.history.newer().map(String::from);
                self.recall(line)
            }
            Key::Enter | Key::Tab | Key::ClearScreen | Key::Cancel | Key::Unusable => false,
        }
    }

    /// Puts `text` in the place of a part of the line and the cursor behind it, unless the line gets too long.
    fn replace(&mut self, start: usize, end: usize, text: &str) -> bool {
        if self.line.len() - (end - start) + text.len() > Self::LINE_BYTES_MAX {
            return false;
        }
        self.line.replace_range(start..end, text);
        self.go(start + text.len())
    }

    fn go(&mut self, cursor: usize) -> bool {
        self.cursor = cursor;
        true
    }

    fn kill(&mut self, start: usize, end: usize) -> bool {
        if start < end {
            self.killed = self.line[start..end].into();
        }
        self.replace(start, end, "")
    }

    fn recall(&mut self, line: Option<String>) -> bool {
        let Some(line) = line else { return false };
        self.line = line;
        self.go(self.line.len())
    }

    /// Where the word before the cursor starts.
    fn word_left(&self, in_word: fn(char) -> bool) -> usize {
        let before = self.line[..self.cursor].trim_end_matches(|char| !in_word(char));
        before.trim_end_matches(in_word).len()
    }

    /// Where the word behind the cursor ends.
    fn word_right(&self) -> usize {
        let in_word = |char: char| char.is_ascii_alphanumeric();
        let behind = self.line[self.cursor..].trim_start_matches(|char| !in_word(char)).trim_start_matches(in_word);
        self.line.len() - behind.len()
    }

    fn enter(&mut self, out: &mut Vec<u8>) -> Input {
        self.show_all(out);
        let line = core::mem::take(&mut self.line);
        self.history.push(&line);
        self.start_over();
        Input::Line(line)
    }

    fn cancel(&mut self, out: &mut Vec<u8>) -> Input {
        self.go(self.line.len());
        self.refresh(out);
        out.extend_from_slice(b"^C\r\n");
        self.line.clear();
        self.history.leave();
        self.start_over();
        Input::Cancelled
    }

    fn start_over(&mut self) {
        self.cursor = 0;
        self.scrolled = 0;
        self.row.forget();
    }

    /// Ends the row, once it shows the whole line: it stays on the terminal and in what records it.
    fn show_all(&mut self, out: &mut Vec<u8>) {
        if self.scrolled > 0 || self.line.len() > self.room() {
            self.row.erase(out);
            out.extend_from_slice(self.prompt.as_bytes());
            out.extend_from_slice(self.line.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }

    /// How much of the line fits behind the prompt. The last column stays free: there terminals differ in where the
    /// cursor goes.
    fn room(&self) -> usize {
        COLUMNS - 1 - self.prompt.len()
    }

    /// Makes the row show what is to be seen. It scrolls by half a row at a time, so that fast typing costs little.
    fn refresh(&mut self, out: &mut Vec<u8>) {
        let room = self.room();
        if self.line.len() <= room {
            self.scrolled = 0;
        } else if self.cursor > self.scrolled + room || (self.cursor <= self.scrolled && self.scrolled > 0) {
            self.scrolled = self.cursor.saturating_sub(room / 2);
        }
        let end = self.line.len().min(self.scrolled + room);
        let wanted = format!("{}{}", self.prompt, &self.line[self.scrolled..end]);
        self.row.show(wanted.as_bytes(), self.prompt.len() + self.cursor - self.scrolled, out);
    }

    fn complete(&mut self, names: &dyn Names, out: &mut Vec<u8>) {
        let completion = complete(&self.line[..self.cursor], names);
        let grown = match completion.candidates.as_slice() {
            [] => false,
            [only] => {
                let next = self.line[self.cursor..].starts_with(' ');
                let text = quote(only) + if next { "" } else { " " };
                self.replace(completion.start, self.cursor, &text) && (!next || self.go(self.cursor + 1))
            }
            several => {
                let common = common_prefix(several);
                if common.len() > completion.typed.len() {
                    let quoted = quote(common);
                    let open = quoted.strip_suffix('"').unwrap_or(&quoted);
                    self.replace(completion.start, self.cursor, open)
                } else {
                    self.list(&completion, out);
                    true
                }
            }
        };
        if !grown {
            out.push(BELL);
        }
    }

    /// Lists candidates in columns below the row, and leaves a blank row for the line.
    fn list(&mut self, completion: &Completion, out: &mut Vec<u8>) {
        let shown = &completion.candidates[..completion.candidates.len().min(CANDIDATES_MAX)];
        let width = shown.iter().map(String::len).max().unwrap_or(0) + 2;
        for row in shown.chunks(((COLUMNS - 1) / width).max(1)) {
            let row: String = row.iter().map(|text| format!("{text:width$}")).collect();
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(row.trim_end().as_bytes());
        }
        if shown.len() < completion.candidates.len() {
            let more = format!("\r\nand {} more", completion.candidates.len() - shown.len());
            out.extend_from_slice(more.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        self.row.forget();
    }
}

/// What all the texts start with.
fn common_prefix(texts: &[String]) -> &str {
    let Some((first, rest)) = texts.split_first() else { return "" };
    let mut length = first.len();
    for text in rest {
        length = first.bytes().zip(text.bytes()).take(length).take_while(|(a, b)| a == b).count();
    }
    &first[..length]
}

#[cfg(test)]
mod tests;
