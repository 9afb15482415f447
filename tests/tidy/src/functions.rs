//! The rule on functions' length: a reader must see a whole function at once.

use crate::Violation;
use crate::scan::Source;

/// The most lines of a function, from `fn` to its last brace.
pub const FUNCTION_LINES_MAX: usize = 70;

/// Functions that are too long. Braces inside comments and literals do not count, nor do bodiless declarations.
#[must_use]
pub fn too_long(source: &Source) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, line) in source.code.iter().enumerate() {
        let Some(column) = function(line) else { continue };
        let lines = length(&source.code[index..], column);
        if lines > FUNCTION_LINES_MAX {
            let what = format!("a function of {lines} lines: split it, {FUNCTION_LINES_MAX} are the most");
            violations.push(Violation::new(&source.path, index + 1, what));
        }
    }
    violations
}

/// Column of the `fn` of a named function.
fn function(line: &str) -> Option<usize> {
    let boundary =
        |character: Option<char>| character.is_none_or(|character| !(character.is_alphanumeric() || character == '_'));
    let starts = line.match_indices("fn ").find(|(column, _)| boundary(line[..*column].chars().next_back()))?;
    let name = line[starts.0 + 3..].trim_start().chars().next()?;
    (name.is_alphabetic() || name == '_').then_some(starts.0)
}

/// Lines from the first one, at `column`, to the brace that closes the body; 1 for a declaration without one.
fn length(lines: &[String], column: usize) -> usize {
    let mut braces = 0_usize;
    // A semicolon inside an array type such as `[u8; 4]` does not end a declaration.
    let mut brackets = 0_usize;
    for (index, line) in lines.iter().enumerate() {
        let from = if index == 0 { column } else { 0 };
        for character in line[from..].chars() {
            match character {
                '[' | '(' if braces == 0 => brackets += 1,
                ']' | ')' if braces == 0 => brackets = brackets.saturating_sub(1),
                ';' if braces == 0 && brackets == 0 => return 1,
                '{' => braces += 1,
                '}' => braces = braces.saturating_sub(1),
                _ => continue,
            }
            if character == '}' && braces == 0 {
                return index + 1;
            }
        }
    }
    lines.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function_of(lines: usize) -> String {
        format!("impl A {{\n    pub fn long(a: [u8; 4]) {{\n{}    }}\n}}\n", "        a();\n".repeat(lines - 2))
    }

    #[test]
    fn the_limit_is_exact() {
        assert!(too_long(&Source::new("a.rs", &function_of(FUNCTION_LINES_MAX))).is_empty());
        let violations = too_long(&Source::new("a.rs", &function_of(FUNCTION_LINES_MAX + 1)));
        assert_eq!(violations.len(), 1);
        assert_eq!(violations[0].line, 2);
    }

    #[test]
    fn braces_in_strings_do_not_hide_a_long_function() {
        let text = function_of(90).replacen("a();", "a(\"}}}}\");", 1);
        assert_eq!(too_long(&Source::new("a.rs", &text)).len(), 1);
    }

    #[test]
    fn declarations_and_function_types_are_no_functions() {
        let text =
            format!("trait T {{\n    fn f(&self, a: [u8; 2]);\n{}}}\ntype F = fn (u8);\n", "    // more\n".repeat(100));
        assert!(too_long(&Source::new("a.rs", &text)).is_empty());
    }
}
