//! A line taken apart into words, and a word made fit to be part of a line.

use alloc::{format, string::String, vec::Vec};

/// A line's words.
#[derive(Debug, Default)]
pub(crate) struct Words {
    /// In order, without their quotes.
    pub(crate) words: Vec<Word>,
    /// What the line still owes at its end: the quote that closes, or a character behind a backslash.
    pub(crate) open: Option<char>,
    /// Whether the line's end also ends the last word, or there is none.
    pub(crate) ended: bool,
}

/// A word of a line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Word {
    /// What it says.
    pub(crate) text: String,
    /// The offset into the line where it starts, quote included.
    pub(crate) start: usize,
    /// Whether its first character is quoted, so that it is no option whatever it looks like.
    pub(crate) quoted: bool,
}

impl Word {
    /// Whether it is written as an option.
    pub(crate) fn is_option(&self) -> bool {
        !self.quoted && self.text.starts_with("--")
    }
}

/// Names in a row, the first of many.
pub fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 3;
    match names.len() {
        0..=SHOWN => names.join(", "),
        all => format!("{} and {} more", names[..SHOWN].join(", "), all - SHOWN),
    }
}

/// Takes a line apart at blanks. `"…"` keeps blanks, `'…'` keeps everything, a backslash outside of `'…'` keeps the
/// character behind it.
pub(crate) fn split(line: &str) -> Words {
    let mut split = Words { ended: true, ..Words::default() };
    let mut chars = line.char_indices();
    while let Some((at, char)) = chars.next() {
        match (split.open, char) {
            (Some('\''), '\'') | (Some('"'), '"') => split.open = None,
            (Some('\''), _) => split.put(char),
            (None, ' ' | '\t') => split.ended = true,
            (_, '\\') => {
                split.begin(at, true);
                match chars.next() {
                    Some((_, escaped)) => split.put(escaped),
                    None => split.open = split.open.or(Some('\\')),
                }
            }
            (None, '\'' | '"') => {
                split.begin(at, true);
                split.open = Some(char);
            }
            (Some(_), _) => split.put(char),
            (None, _) => {
                split.begin(at, false);
                split.put(char);
            }
        }
    }
    split
}

impl Words {
    /// Begins a word unless one is under way.
    fn begin(&mut self, start: usize, quoted: bool) {
        if self.ended {
            self.words.push(Word { text: String::new(), start, quoted });
            self.ended = false;
        }
    }

    fn put(&mut self, char: char) {
        if let Some(word) = self.words.last_mut() {
            word.text.push(char);
        }
    }
}

/// The text as it is written in a line to be one word: as it is, or in double quotes.
pub(crate) fn quote(text: &str) -> String {
    let plain = |char: char| char.is_alphanumeric() || "._/:=,+@%-".contains(char);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into();
    }
    let mut quoted = String::from("\"");
    for char in text.chars() {
        if matches!(char, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(char);
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(line: &str) -> Vec<String> {
        split(line).words.into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn splits_at_blanks_outside_of_quotes() {
        assert_eq!(texts("  vm \t list "), ["vm", "list"]);
        assert_eq!(texts(r#"a "b c" 'd "e' f\ g"#), ["a", "b c", "d \"e", "f g"]);
        assert_eq!(texts(r#"--cmdline="root=/dev/vda1 ro" x"#), ["--cmdline=root=/dev/vda1 ro", "x"]);
        assert_eq!(texts(r#""a\"b\\" '\'"#), ["a\"b\\", "\\"]);
        assert_eq!(texts(r#""" ''"#), ["", ""]);
        assert_eq!(texts("ä 'ö ü'"), ["ä", "ö ü"]);
        assert!(texts(" \t").is_empty());
    }

    #[test]
    fn knows_what_is_unfinished() {
        for (line, open, ended) in [
            ("", None, true),
            ("a", None, false),
            ("a ", None, true),
            ("a \"b ", Some('"'), false),
            ("a 'b", Some('\''), false),
            ("a\\", Some('\\'), false),
            ("\"a\\", Some('"'), false),
            ("\\", Some('\\'), false),
        ] {
            let split = split(line);
            assert_eq!((split.open, split.ended), (open, ended), "{line}");
        }
    }

    #[test]
    fn a_quoted_word_is_no_option() {
        let words = split("--a \"--b\" 'x'--c").words;
        assert_eq!(words.iter().map(Word::is_option).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(words.iter().map(|word| word.start).collect::<Vec<_>>(), [0, 4, 10]);
    }

    #[test]
    fn what_was_quoted_splits_into_itself() {
        for text in ["", "web", "my disk", "a\"b", "a\\b", "it's", "é", "a\tb", "#"] {
            assert_eq!(texts(&quote(text)), [text]);
        }
        assert_eq!(quote("web-root"), "web-root");
    }
}
