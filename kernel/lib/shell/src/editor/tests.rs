//! The editor against a terminal that does what a VT100 does with what the editor writes.

use proptest::prelude::*;

use super::*;
use crate::complete::{NoNames, tests::SomeNames};

/// A terminal of 80 columns that remembers its lines.
#[derive(Default)]
struct Terminal {
    rows: Vec<Vec<u8>>,
    row: usize,
    column: usize,
    bells: usize,
    wrapped: bool,
}

impl Terminal {
    /// Carries out a stream of characters and the control sequences of a VT100; panics at anything else.
    fn take(&mut self, bytes: &[u8]) {
        let mut bytes = bytes.iter().copied();
        while let Some(byte) = bytes.next() {
            self.rows.resize(self.rows.len().max(self.row + 1), Vec::new());
            match byte {
                BELL => self.bells += 1,
                0x08 => self.column = self.column.checked_sub(1).expect("a backspace at the margin"),
                b'\r' => self.column = 0,
                b'\n' => self.row += 1,
                0x1b => self.sequence(&mut bytes),
                b' '..=b'~' => self.put(byte),
                _ => panic!("an odd byte {byte:#x}"),
            }
        }
        self.rows.resize(self.rows.len().max(self.row + 1), Vec::new());
    }

    fn put(&mut self, byte: u8) {
        if self.column == COLUMNS {
            self.wrapped = true;
            (self.row, self.column) = (self.row + 1, 0);
            self.rows.resize(self.rows.len().max(self.row + 1), Vec::new());
        }
        let row = &mut self.rows[self.row];
        row.resize(row.len().max(self.column + 1), b' ');
        row[self.column] = byte;
        self.column += 1;
    }

    fn sequence(&mut self, bytes: &mut impl Iterator<Item = u8>) {
        assert_eq!(bytes.next(), Some(b'['));
        let mut number = String::new();
        let last = loop {
            match bytes.next().expect("a whole sequence") {
                digit @ b'0'..=b'9' => number.push(char::from(digit)),
                last => break last,
            }
        };
        let count = number.parse().unwrap_or(0);
        match (last, count) {
            (b'K', 0) => self.rows[self.row].truncate(self.column),
            (b'C', 1..) => self.column = (self.column + count).min(COLUMNS - 1),
            (b'D', 1..) => self.column = self.column.checked_sub(count).expect("a move beyond the margin"),
            (b'H', 0) => (self.row, self.column) = (0, 0),
            (b'J', 2) => self.rows.iter_mut().for_each(Vec::clear),
            other => panic!("an odd sequence {other:?}"),
        }
    }

    fn text(&self, row: usize) -> String {
        String::from_utf8(self.rows[row].clone()).unwrap().trim_end().into()
    }

    fn last(&self) -> String {
        self.text(self.row)
    }
}

struct Session {
    editor: LineEditor,
    terminal: Terminal,
    inputs: Vec<Input>,
    written_bytes: usize,
}

impl Session {
    fn new() -> Self {
        let mut session = Self {
            editor: LineEditor::new("pollux> "),
            terminal: Terminal::default(),
            inputs: Vec::new(),
            written_bytes: 0,
        };
        session.show();
        session
    }

    fn show(&mut self) {
        let mut out = Vec::new();
        self.editor.show(&mut out);
        self.terminal.take(&out);
    }

    /// Types, and answers every line with a new prompt.
    fn key(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        for &byte in bytes.as_ref() {
            let mut out = Vec::new();
            let input = self.editor.byte(byte, &SomeNames, &mut out);
            self.terminal.take(&out);
            self.written_bytes += out.len();
            if let Some(input) = input {
                self.inputs.push(input);
                self.show();
            }
        }
        self
    }

    fn line(&mut self, bytes: impl AsRef<[u8]>) -> String {
        self.key(bytes).key("\r");
        match self.inputs.pop() {
            Some(Input::Line(line)) => line,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_line_is_echoed_and_returned() {
    let mut session = Session::new();
    assert_eq!(session.line("vm list"), "vm list");
    assert_eq!(session.terminal.text(0), "pollux> vm list");
    assert_eq!((session.terminal.text(1).as_str(), session.terminal.column), ("pollux>", 8));
    assert_eq!(session.line(""), "");
}

#[test]
fn typing_at_the_end_echoes_one_byte_each() {
    let mut session = Session::new();
    session.key("vm create web --kernel vmlinuz");
    assert_eq!(session.written_bytes, 30);
}

#[test]
fn edits_anywhere() {
    let mut session = Session::new();
    assert_eq!(session.line("lst\x1b[D\x1b[Di"), "list");
    assert_eq!(session.line("xlist\x01\x04\x05s"), "lists");
    assert_eq!(session.line("ab\x02\x02\x1b[3~\x06c\x7f"), "b");
    assert_eq!(session.line("one two three\x1bb\x1bb\x0b"), "one ");
    assert_eq!(session.line("one two\x17\x19\x19"), "one twotwo");
    assert_eq!(session.line("one two\x15x"), "x");
    assert_eq!(session.line("one two\x01\x1bf!"), "one! two");
    assert_eq!(session.line("vm start web-1 \x17x"), "vm start x");
}

#[test]
fn keys_without_use_ring_the_bell() {
    let mut session = Session::new();
    session.key("\x7f\x04\x02\x06\x1b[A\x1b[B\x12");
    assert_eq!(session.terminal.bells, 7);
    session.key("a\x1bz\x1b[5~");
    assert_eq!(session.terminal.bells, 7);
    session.key("ä€");
    assert_eq!((session.terminal.bells, session.terminal.last().as_str()), (9, "pollux> a"));
}

#[test]
fn history_comes_back() {
    let mut session = Session::new();
    for line in ["one", "two", "two"] {
        session.line(line);
    }
    assert_eq!(session.line("\x1b[A\x1b[A"), "one");
    assert_eq!(session.line("dra\x1b[A\x1b[B\x10\x0eft"), "draft");
    session.key("\x1b[Axyz\x03");
    assert_eq!(session.inputs.pop(), Some(Input::Cancelled));
    assert_eq!(session.line("\x1b[A"), "draft");
}

#[test]
fn ctrl_c_gives_the_line_up() {
    let mut session = Session::new();
    session.key("abc\x1b[D\x1b[D\x03");
    assert_eq!(session.terminal.text(0), "pollux> abc^C");
    assert_eq!(session.terminal.last(), "pollux>");
    assert_eq!(session.line("x"), "x");
}

#[test]
fn ctrl_l_starts_a_new_screen() {
    let mut session = Session::new();
    session.line("one");
    session.key("two\x0c");
    assert_eq!((session.terminal.row, session.terminal.text(0).as_str()), (0, "pollux> two"));
    assert_eq!(session.terminal.text(1), "");
}

#[test]
fn tab_completes() {
    let mut session = Session::new();
    assert_eq!(session.line("mo\t"), "modules ");
    assert_eq!(session.line("vm st\ta\tw\t-\t"), "vm start web-2 ");
    assert_eq!(session.line("disk show my\t"), "disk show \"my disk\" ");
    assert_eq!(session.line("disk show \"m\t"), "disk show \"my disk\" ");
    assert_eq!(session.line("vm sta web\x1b[D\x1b[D\x1b[D\x1b[D\t"), "vm start web");
    let bells = session.terminal.bells;
    assert_eq!(session.line("xyz\t"), "xyz");
    assert_eq!(session.terminal.bells, bells + 1);
}

#[test]
fn tab_lists_what_is_possible() {
    let mut session = Session::new();
    session.key("vm s\t");
    assert_eq!(session.terminal.text(0), "pollux> vm s");
    assert_eq!(session.terminal.text(1), "show   start  stop   set    save");
    assert_eq!(session.terminal.text(2), "pollux> vm s");
    assert_eq!(session.line("how"), "vm show");
}

#[test]
fn a_long_line_scrolls_and_is_left_whole() {
    let mut session = Session::new();
    let long: String = (0..300).map(|i| char::from(b'a' + (i % 26) as u8)).collect();
    session.key(&long);
    assert_eq!((session.terminal.row, session.terminal.wrapped), (0, false));
    assert!(session.terminal.last().ends_with(&long[290..]));
    session.key("\x01");
    assert_eq!(session.terminal.last(), format!("pollux> {}", &long[..71]));
    assert_eq!(session.terminal.column, 8);
    assert_eq!(session.line("X"), format!("X{long}"));
    let rows: String = (0..4).map(|row| session.terminal.text(row)).collect();
    assert_eq!(rows, format!("pollux> X{long}"));
    assert!(session.written_bytes < 3000, "{}", session.written_bytes);
}

#[test]
fn too_long_a_line_is_refused_at_its_end() {
    let mut session = Session::new();
    let long = "x".repeat(LineEditor::LINE_BYTES_MAX);
    session.key(&long).key("yz");
    assert_eq!(session.terminal.bells, 2);
    assert_eq!(session.line("\x01\x04y"), format!("y{}", &long[1..]));
}

#[test]
fn a_program_can_type_without_waiting() {
    let mut session = Session::new();
    session.key("vm create web\r\nvm start web\r\nvm list --json\r\n");
    let lines: Vec<&Input> = session.inputs.iter().collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(*lines[2], Input::Line("vm list --json".into()));
}

#[test]
fn other_output_goes_between() {
    let mut session = Session::new();
    session.key("vm sta");
    let mut out = Vec::new();
    session.editor.hide(&mut out);
    out.extend_from_slice(b"web has stopped\r\n");
    session.editor.show(&mut out);
    session.terminal.take(&out);
    assert_eq!(session.terminal.text(0), "web has stopped");
    assert_eq!(session.terminal.text(1), "pollux> vm sta");
    assert_eq!(session.line("rt"), "vm start");
}

/// Keys that people and broken terminals press.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => "[ -~]{1,40}".prop_map(String::into_bytes),
        2 => any::<u8>().prop_filter("not a line end", |byte| !b"\r\n\x03".contains(byte)).prop_map(|byte| vec![byte]),
        3 => prop::sample::select(vec!["\x1b[A", "\x1b[B", "\x1b[C", "\x1b[D", "\x1bOH", "\x1bOF", "\x1b[3~", "\x1bb", "\x1bf"])
            .prop_map(|text| text.as_bytes().to_vec()),
        3 => prop::sample::select(vec![1_u8, 2, 4, 5, 6, 8, 9, 11, 14, 16, 21, 23, 25]).prop_map(|byte| vec![byte]),
        1 => Just(b"\r".to_vec()),
    ]
}

proptest! {
    #[test]
    fn the_terminal_always_shows_the_line(keys in prop::collection::vec(key(), 0..60)) {
        let mut session = Session::new();
        for key in keys {
            session.key(&key);
            let editor = &session.editor;
            let shown = session.terminal.rows[session.terminal.row].clone();
            let end = editor.line.len().min(editor.scrolled + editor.room());
            let wanted = format!("pollux> {}", &editor.line[editor.scrolled..end]);
            prop_assert_eq!(String::from_utf8(shown).unwrap(), wanted);
            prop_assert_eq!(session.terminal.column, 8 + editor.cursor - editor.scrolled);
            prop_assert!(editor.cursor <= editor.line.len() && session.terminal.column < COLUMNS);
        }
    }

    #[test]
    fn no_bytes_panic_or_reach_the_terminal_as_they_are(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut editor = LineEditor::new("> ");
        let mut terminal = Terminal::default();
        for byte in bytes {
            let mut out = Vec::new();
            editor.byte(byte, &NoNames, &mut out);
            terminal.take(&out);
        }
    }
}
