//! The shell: any keys, and every line that they make.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shell::{Input, LineEditor, NoNames, parse};

/// What one key may print: a line is redrawn, a completion lists its choices.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

fuzz_target!(|data: &[u8]| {
    let mut editor = LineEditor::new("pollux> ");
    let mut out = Vec::new();
    editor.show(&mut out);
    for byte in data {
        out.clear();
        if let Some(Input::Line(line)) = editor.byte(*byte, &NoNames, &mut out) {
            assert!(line.len() <= LineEditor::LINE_BYTES_MAX);
            check(&line);
        }
        assert!(out.len() < OUTPUT_BYTES_MAX, "one key prints {} bytes", out.len());
    }
    if let Ok(text) = std::str::from_utf8(data) {
        check(text);
    }
});

fn check(line: &str) {
    if let Err(error) = parse(line) {
        assert!(!error.to_string().is_empty());
    }
}
