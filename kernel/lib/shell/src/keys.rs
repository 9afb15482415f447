//! From the bytes of a terminal to keys.
//!
//! [`KeyDecoder`] takes one byte at a time, so that nothing depends on how bytes arrive. Sequences are those of ECMA-48
//! (5th edition, 5.4) as VT100, xterm, rxvt, the Linux console and PuTTY use them.

/// A key, or a combination of keys, that means something to the line editor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Key {
    /// A printable ASCII character.
    Char(char),
    Enter,
    Tab,
    Backspace,
    Delete,
    /// Ctrl-D.
    DeleteOrEnd,
    Left,
    Right,
    WordLeft,
    WordRight,
    Home,
    End,
    Up,
    Down,
    /// Ctrl-K.
    KillToEnd,
    /// Ctrl-U.
    KillToStart,
    /// Ctrl-W.
    KillWord,
    /// Ctrl-Y.
    Yank,
    /// Ctrl-L.
    ClearScreen,
    /// Ctrl-C.
    Cancel,
    /// Something that cannot be part of a line.
    Unusable,
}

/// Where in a sequence the decoder is.
#[derive(Clone, Copy, Default)]
enum State {
    /// In none.
    #[default]
    Ground,
    /// Behind ESC.
    Escape,
    /// Behind ESC O.
    SingleShift,
    /// Behind ESC [ with the first parameter so far.
    Control { parameter: u16, first: bool },
    /// Behind ESC [ [, a function key of the Linux console.
    ConsoleFunction,
    /// Behind the first parameter of a control sequence.
    MoreParameters { parameter: u16 },
}

/// Puts bytes together to keys.
#[derive(Default)]
pub(crate) struct KeyDecoder {
    state: State,
    /// Whether the last byte was a carriage return, which a line feed or a zero may follow.
    after_return: bool,
}

impl KeyDecoder {
    /// The key that this byte completes, if it does.
    pub(crate) fn byte(&mut self, byte: u8) -> Option<Key> {
        let after_return = core::mem::replace(&mut self.after_return, byte == b'\r');
        if after_return && matches!(byte, b'\n' | 0) {
            return None;
        }
        // A control character ends any sequence and counts itself: no line end is ever lost.
        let state = core::mem::take(&mut self.state);
        match (state, byte) {
            (_, 0x1b) => self.enter(State::Escape),
            (State::Ground, _) | (_, 0..0x20) => ground(byte),
            (State::Escape, b'[') => self.enter(State::Control { parameter: 0, first: true }),
            (State::Escape, b'O') => self.enter(State::SingleShift),
            (State::Escape, _) => meta(byte),
            (State::SingleShift, _) => cursor(byte),
            (State::ConsoleFunction, _) => None,
            (State::Control { first: true, .. }, b'[') => self.enter(State::ConsoleFunction),
            (State::Control { parameter, .. }, b'0'..=b'9') => {
                let parameter = parameter.saturating_mul(10).saturating_add(u16::from(byte - b'0'));
                self.enter(State::Control { parameter, first: false })
            }
            (State::Control { parameter, .. } | State::MoreParameters { parameter }, b' '..=b'?') => {
                self.enter(State::MoreParameters { parameter })
            }
            (State::Control { parameter, .. }, _) => control(parameter, byte, false),
            (State::MoreParameters { parameter }, _) => control(parameter, byte, true),
        }
    }

    fn enter(&mut self, state: State) -> Option<Key> {
        self.state = state;
        None
    }
}

/// A byte that is in no sequence.
fn ground(byte: u8) -> Option<Key> {
    Some(match byte {
        b' '..=b'~' => Key::Char(char::from(byte)),
        b'\r' | b'\n' => Key::Enter,
        b'\t' => Key::Tab,
        0x08 | 0x7f => Key::Backspace,
        0x01 => Key::Home,
        0x02 => Key::Left,
        0x03 => Key::Cancel,
        0x04 => Key::DeleteOrEnd,
        0x05 => Key::End,
        0x06 => Key::Right,
        0x0b => Key::KillToEnd,
        0x0c => Key::ClearScreen,
        0x0e => Key::Down,
        0x10 => Key::Up,
        0x15 => Key::KillToStart,
        0x17 => Key::KillWord,
        0x19 => Key::Yank,
        // A zero is line noise or padding; the rest of a character beyond ASCII was reported with its first byte.
        0 | 0x80..0xc0 => return None,
        _ => Key::Unusable,
    })
}

/// The last byte of a sequence that consists of ESC and it.
fn meta(byte: u8) -> Option<Key> {
    match byte {
        b'b' => Some(Key::WordLeft),
        b'f' => Some(Key::WordRight),
        0x7f => Some(Key::KillWord),
        _ => None,
    }
}

/// The last byte of ESC O or of ESC [ without a parameter.
fn cursor(byte: u8) -> Option<Key> {
    match byte {
        b'A' => Some(Key::Up),
        b'B' => Some(Key::Down),
        b'C' => Some(Key::Right),
        b'D' => Some(Key::Left),
        b'H' => Some(Key::Home),
        b'F' => Some(Key::End),
        // rxvt: Ctrl with an arrow.
        b'c' => Some(Key::WordRight),
        b'd' => Some(Key::WordLeft),
        _ => None,
    }
}

/// The last byte of ESC [ with parameters; a second one says which keys were held down.
fn control(parameter: u16, byte: u8, modified: bool) -> Option<Key> {
    match (byte, parameter) {
        (b'C', _) if modified => Some(Key::WordRight),
        (b'D', _) if modified => Some(Key::WordLeft),
        (b'~', 1 | 7) => Some(Key::Home),
        (b'~', 4 | 8) => Some(Key::End),
        (b'~', 3) => Some(Key::Delete),
        (b'~', _) => None,
        _ => cursor(byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut decoder = KeyDecoder::default();
        bytes.iter().filter_map(|&byte| decoder.byte(byte)).collect()
    }

    #[test]
    fn every_line_end_counts_once() {
        use Key::{Char, Enter};
        assert_eq!(
            keys(b"a\rb\nc\r\nd\r\0e"),
            [Char('a'), Enter, Char('b'), Enter, Char('c'), Enter, Char('d'), Enter, Char('e')]
        );
        assert_eq!(keys(b"\r\r\n\n"), [Enter; 3]);
        assert_eq!(keys(b"\n\n"), [Enter; 2]);
    }

    #[test]
    fn knows_the_arrows_of_every_terminal() {
        assert_eq!(keys(b"\x1b[A\x1bOA\x1b[B\x1bOB"), [Key::Up, Key::Up, Key::Down, Key::Down]);
        assert_eq!(keys(b"\x1b[C\x1b[D\x1b[1;5C\x1b[1;5D"), [Key::Right, Key::Left, Key::WordRight, Key::WordLeft]);
        assert_eq!(keys(b"\x1b[H\x1bOH\x1b[1~\x1b[7~"), [Key::Home; 4]);
        assert_eq!(keys(b"\x1b[F\x1bOF\x1b[4~\x1b[8~"), [Key::End; 4]);
        assert_eq!(keys(b"\x1b[3~\x1b[3;5~"), [Key::Delete; 2]);
        assert_eq!(keys(b"\x1bb\x1bf\x1b\x7f"), [Key::WordLeft, Key::WordRight, Key::KillWord]);
    }

    #[test]
    fn sequences_that_mean_nothing_leave_nothing_behind() {
        let end = [Key::Char('x')];
        for bytes in [
            &b"\x1b[5~x"[..],
            b"\x1b[15~x",
            b"\x1b[?25hx",
            b"\x1b[[Ax",
            b"\x1bOPx",
            b"\x1b[99999999999999~x",
            b"\x1bzx",
            b"\x1b\x1b[200~x",
        ] {
            assert_eq!(keys(bytes), end, "{bytes:?}");
        }
    }

    #[test]
    fn a_line_end_breaks_a_sequence_off() {
        assert_eq!(keys(b"\x1b\r"), [Key::Enter]);
        assert_eq!(keys(b"\x1b[1;\rx"), [Key::Enter, Key::Char('x')]);
        assert_eq!(keys(b"\x1bO\x03"), [Key::Cancel]);
    }

    #[test]
    fn a_character_beyond_ascii_is_refused_once() {
        assert_eq!(keys("aäb".as_bytes()), [Key::Char('a'), Key::Unusable, Key::Char('b')]);
        assert_eq!(keys("€".as_bytes()), [Key::Unusable]);
        assert_eq!(keys(&[0xff, 0x80, 0]), [Key::Unusable]);
    }
}
