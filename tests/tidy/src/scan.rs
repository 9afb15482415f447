//! Tells code from comments and literals in a Rust source, by the lexical rules of the Rust Reference ("Comments",
//! "Tokens"). The main type is [`Source`], which every textual rule takes.

/// A Rust source and two copies of it in which everything else is blank: every line keeps its number and width.
#[derive(Debug, Clone)]
pub struct Source {
    /// Path relative to the checkout.
    pub path: String,
    /// The lines without comments and without what is inside string and character literals.
    pub code: Vec<String>,
    /// The lines with nothing but comments.
    pub comments: Vec<String>,
}

/// What a character belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    Comment,
    Literal,
}

impl Source {
    /// Splits `text`.
    #[must_use]
    pub fn new(path: &str, text: &str) -> Self {
        let characters: Vec<char> = text.chars().collect();
        let parts = classify(&characters);
        let only = |wanted: Part| -> Vec<String> {
            let kept: String = characters
                .iter()
                .zip(&parts)
                .map(|(character, part)| if *part == wanted || *character == '\n' { *character } else { ' ' })
                .collect();
            kept.lines().map(str::to_owned).collect()
        };
        Self { path: path.to_owned(), code: only(Part::Code), comments: only(Part::Comment) }
    }

    /// The words (identifiers, keywords, numbers) of a line's code.
    pub fn words(line: &str) -> impl Iterator<Item = &str> {
        line.split(|character: char| !(character.is_alphanumeric() || character == '_')).filter(|word| !word.is_empty())
    }

    /// The path's file name without its ending.
    #[must_use]
    pub fn stem(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name.strip_suffix(".rs").unwrap_or(name)
    }
}

fn classify(text: &[char]) -> Vec<Part> {
    let mut parts = vec![Part::Code; text.len()];
    let mut at = 0;
    while at < text.len() {
        let (part, length) = token(text, at);
        let end = (at + length).min(text.len());
        parts[at..end].fill(part);
        at = end;
    }
    parts
}

/// The token at `at`: what it is and how many characters it has; a character of code stands alone.
fn token(text: &[char], at: usize) -> (Part, usize) {
    let rest = &text[at..];
    match rest {
        ['/', '/', ..] => (Part::Comment, rest.iter().position(|next| *next == '\n').unwrap_or(rest.len())),
        ['/', '*', ..] => (Part::Comment, block_comment(rest)),
        ['"', ..] => (Part::Literal, quoted(rest, '"')),
        ['\'', '\\', ..] => (Part::Literal, quoted(rest, '\'')),
        // 'a' is a character, 'a without the second quote a lifetime.
        ['\'', _, '\'', ..] => (Part::Literal, 3),
        [first, ..] if is_word(*first) => word(rest),
        _ => (Part::Code, 1),
    }
}

/// A whole word, so that no letter inside one is taken for the prefix of a raw string.
fn word(rest: &[char]) -> (Part, usize) {
    let length = rest.iter().position(|next| !is_word(*next)).unwrap_or(rest.len());
    let name: String = rest[..length].iter().collect();
    let hashes = rest[length..].iter().take_while(|next| **next == '#').count();
    let is_raw = matches!(name.as_str(), "r" | "br" | "cr") && rest.get(length + hashes) == Some(&'"');
    if is_raw { (Part::Literal, raw(rest, length, hashes)) } else { (Part::Code, length) }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Length of a block comment, which may hold others.
fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Length of a literal between two quotes in which a backslash escapes.
fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            character if character == quote => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// Length of a raw string: its prefix, hashes, quote, content, quote and as many hashes.
fn raw(rest: &[char], prefix: usize, hashes: usize) -> usize {
    let content = prefix + hashes + 1;
    let mut end = vec!['"'];
    end.resize(1 + hashes, '#');
    let found = rest[content..].windows(end.len()).position(|window| window == end);
    found.map_or(rest.len(), |position| content + position + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        Source::new("a.rs", text).code.join("\n")
    }

    #[test]
    fn comments_and_strings_are_not_code() {
        for text in [
            "// unsafe",
            "/* a /* unsafe */ unsafe */",
            "\"unsafe\"",
            "r#\"\" unsafe\"#",
            "b\"\\\" unsafe\"",
            "br\"unsafe\"",
        ] {
            assert!(!code(text).contains("unsafe"), "{text}: {}", code(text));
            assert!(code(&format!("{text}\nunsafe")).contains("unsafe"), "{text} does not end");
        }
    }

    #[test]
    fn lifetimes_are_code_and_characters_are_not() {
        assert_eq!(code("fn f<'a>(x: &'a u8) { '{' }"), "fn f<'a>(x: &'a u8) {     }");
        assert_eq!(code(r"'\'' { '\u{1f}'"), "     {         ");
    }

    #[test]
    fn a_word_that_ends_in_r_is_no_prefix() {
        assert!(code("for\"x\" y").contains('y'));
        assert!(!code("for\"x\" y").contains('x'));
    }

    #[test]
    fn comments_are_kept_apart_line_by_line() {
        let source = Source::new("a.rs", "let a = 1; // why\nlet b = \"// no\";\n");
        assert_eq!(source.comments[0].trim(), "// why");
        assert_eq!(source.comments[1].trim(), "");
    }
}
