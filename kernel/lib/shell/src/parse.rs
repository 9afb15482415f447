//! From a line to a command.
//!
//! [`parse()`] finds the command in the catalog, sorts the words behind it into [`Arguments`] and lets the catalog's
//! entry build the [`Command`]. Whatever does not fit becomes a [`ParseError`] with the remedy.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt;

use config::{Invalid, Name, nearest};

use crate::{
    Command, Invocation,
    catalog::{CATALOG, Occurs, OptionSpec, Spec, Value, first_words, next_words},
    words::{self, Word},
};

/// Why a line is no command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParseError {
    /// What is wrong, without a full stop.
    pub message: String,
    /// What to type instead.
    pub remedy: String,
}

impl ParseError {
    pub(crate) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.message, self.remedy)
    }
}

impl core::error::Error for ParseError {}

impl From<Invalid> for ParseError {
    fn from(invalid: Invalid) -> Self {
        Self { message: invalid.message, remedy: invalid.remedy }
    }
}

/// Parses a line: none where it is blank or a comment, which starts with `#`.
///
/// # Errors
/// What is wrong with the first thing that is, and the remedy.
pub fn parse(line: &str) -> Result<Option<Invocation>, ParseError> {
    let split = words::split(line);
    match split.open {
        Some('\\') => return Err(ParseError::new("the line ends with a backslash", "type what it stands before")),
        Some(quote) => return Err(ParseError::new(format!("a {quote} is not closed"), format!("add {quote}"))),
        None => {}
    }
    if split.words.first().is_none_or(|word| !word.quoted && word.text.starts_with('#')) {
        return Ok(None);
    }
    let (spec, rest) = find(&split.words)?;
    if rest.iter().any(|word| word.is_option() && word.text == "--help") {
        return Ok(Some(Invocation { command: Command::Help { topic: spec.title() }, json: false }));
    }
    let arguments = Arguments::sort(spec, rest)?;
    arguments.check()?;
    let command = (spec.build)(&arguments)?;
    Ok(Some(Invocation { command, json: arguments.has("--json") }))
}

/// The command that a line starts with, and the words behind it.
pub(crate) fn find(words: &[Word]) -> Result<(&'static Spec, &[Word]), ParseError> {
    if words.is_empty() {
        return Err(ParseError::new("no command", "type `help`"));
    }
    let typed = leading(words);
    for spec in CATALOG {
        let (_, group) = spec.words.split_last().unwrap_or((&"", &[]));
        if typed.starts_with(spec.words) {
            return Ok((spec, &words[spec.words.len()..]));
        }
        if spec.default && typed == group {
            return Ok((spec, &words[group.len()..]));
        }
    }
    Err(unknown(&typed))
}

/// The words before the first option.
pub(crate) fn leading(words: &[Word]) -> Vec<&str> {
    words.iter().take_while(|word| !word.is_option()).map(text).collect()
}

/// Why these words are no command, of which the last known group's next one is wrong or missing.
fn unknown(typed: &[&str]) -> ParseError {
    let is_group = |depth: &usize| *depth > 0 && next_words(&typed[..*depth]).next().is_some();
    let depth = (0..=typed.len()).rev().find(is_group).unwrap_or(0);
    let (group, choices) = (typed[..depth].join(" "), next_words(&typed[..depth]).collect::<Vec<_>>());
    match typed.get(depth) {
        first if depth == 0 => {
            let first = first.copied().unwrap_or_default();
            ParseError::new(format!("unknown command `{first}`"), meant(first))
        }
        None => ParseError::new(
            format!("`{group}` needs one more word"),
            format!("one of {}, such as `{group} {}`", choices.join(", "), choices[choices.len().min(2) - 1]),
        ),
        Some(next) => {
            let remedy = match nearest(next, choices.iter().copied()) {
                Some(near) => format!("did you mean `{group} {near}`?"),
                None => format!("`{group}` goes with {}", choices.join(", ")),
            };
            ParseError::new(format!("unknown command `{group} {next}`"), remedy)
        }
    }
}

/// What an unknown first word may have been meant for: a first word, or a second one whose group was forgotten.
fn meant(word: &str) -> String {
    let forgotten = CATALOG.iter().find(|spec| spec.words.get(1) == Some(&word));
    match (forgotten, nearest(word, first_words())) {
        (Some(spec), _) => format!("did you mean `{}`?", spec.title()),
        (None, Some(near)) => format!("did you mean `{near}`?"),
        (None, None) => "`help` lists the commands".into(),
    }
}

/// What was given to a command.
pub(crate) struct Arguments<'w> {
    spec: &'static Spec,
    operands: Vec<&'w str>,
    options: Vec<(&'static OptionSpec, Option<&'w str>)>,
}

impl<'w> Arguments<'w> {
    /// Sorts words into operands and options.
    fn sort(spec: &'static Spec, words: &'w [Word]) -> Result<Self, ParseError> {
        let mut arguments = Self { spec, operands: Vec::new(), options: Vec::new() };
        let mut rest = words.iter().peekable();
        while let Some(word) = rest.next() {
            if !word.is_option() {
                arguments.add_operand(&word.text)?;
                continue;
            }
            let (name, attached) = match word.text.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word.text.as_str(), None),
            };
            let option = spec.option(name).ok_or_else(|| unknown_option(spec, name))?;
            let value = match (option.value, attached) {
                (None, Some(_)) => {
                    return Err(ParseError::new(format!("{name} takes no value"), format!("write {name} alone")));
                }
                (None, None) => None,
                (Some(_), Some(value)) => Some(value),
                (Some((_, Value::Nic)), None) => rest.next_if(|next| next.text.starts_with("mac=")).map(text),
                (Some(_), None) => rest.next_if(|next| !next.is_option()).map(text),
            };
            arguments.add_option(option, value)?;
        }
        Ok(arguments)
    }

    fn add_operand(&mut self, text: &'w str) -> Result<(), ParseError> {
        if self.operands.len() < self.spec.operand.as_ref().map_or(0, |operand| operand.words_max) {
            self.operands.push(text);
            return Ok(());
        }
        let title = self.spec.title();
        let remedy = match &self.spec.operand {
            _ if text.starts_with("mac=") => "write it right behind --nic".into(),
            Some(operand) => format!("`{title}` takes one {}; quote it where it contains blanks", operand.title),
            None => format!("`{title}` takes only options; `help {title}` lists them"),
        };
        Err(ParseError::new(format!("`{text}` is one word too many"), remedy))
    }

    fn add_option(&mut self, option: &'static OptionSpec, value: Option<&'w str>) -> Result<(), ParseError> {
        let name = option.name;
        match (option.value, value) {
            (Some((title, kind)), None) if kind != Value::Nic => {
                return Err(ParseError::new(format!("{name} needs a value"), format!("write {name} {title}")));
            }
            (Some((_, Value::Nic)), Some(value)) if !value.starts_with("mac=") => {
                let remedy = format!("write {name} alone or {name} mac=02:00:00:00:00:07");
                return Err(ParseError::new(format!("{name} cannot have `{value}`"), remedy));
            }
            _ => {}
        }
        if option.occurs != Occurs::Often && self.has(name) {
            return Err(ParseError::new(format!("{name} is given twice"), "give it once"));
        }
        self.options.push((option, value));
        Ok(())
    }

    /// Whether everything is there that must be.
    fn check(&self) -> Result<(), ParseError> {
        let operand = self.spec.operand.as_ref().filter(|operand| operand.required && self.operands.is_empty());
        let option = self.spec.options.iter().find(|option| option.occurs == Occurs::Always && !self.has(option.name));
        let missing = match (operand, option) {
            (Some(operand), _) => operand.title.to_string(),
            (None, Some(option)) => option.usage(),
            (None, None) => return Ok(()),
        };
        let example = self.spec.examples.last().copied().unwrap_or_default();
        let message = format!("`{}` needs {missing}", self.spec.title());
        Err(ParseError::new(message, format!("for example `{example}`")))
    }

    /// Whether an option was given.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(option, _)| option.name == name)
    }

    /// The value of an option that can be given once.
    pub(crate) fn value(&self, name: &str) -> Option<&'w str> {
        self.values(name).next().flatten()
    }

    /// The values of an option, each time that it was given.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = Option<&'w str>> {
        self.options.iter().filter(move |(option, _)| option.name == name).map(|(_, value)| *value)
    }

    /// The name of a boot module.
    pub(crate) fn module(&self, name: &str) -> Result<Option<String>, ParseError> {
        match self.value(name) {
            Some("") => Err(ParseError::new(format!("{name} names nothing"), "`modules` lists the boot modules")),
            value => Ok(value.map(String::from)),
        }
    }

    /// The operand, which [`check`](Self::check) has seen where it must be.
    pub(crate) fn operand(&self) -> Result<&'w str, ParseError> {
        match self.operands.first() {
            None | Some(&"") => Err(ParseError::new("a name is empty", format!("type `help {}`", self.spec.title()))),
            Some(operand) => Ok(operand),
        }
    }

    /// The operands where there must be several; `title` says which.
    pub(crate) fn operands<const COUNT: usize>(&self, title: &str) -> Result<[&'w str; COUNT], ParseError> {
        self.operands.as_slice().try_into().map_err(|_| {
            let command = self.spec.title();
            ParseError::new(format!("`{command}` needs {title}"), format!("type `help {command}`"))
        })
    }

    /// The operands behind the first.
    pub(crate) fn more_operands(&self) -> &[&'w str] {
        self.operands.get(1..).unwrap_or_default()
    }

    /// The operand as the name of a VM.
    pub(crate) fn name(&self) -> Result<Name, ParseError> {
        Ok(self.operand()?.parse()?)
    }

    /// The same where it can be left out.
    pub(crate) fn optional_name(&self) -> Result<Option<Name>, ParseError> {
        if self.operands.is_empty() { Ok(None) } else { self.name().map(Some) }
    }

    /// The operand as a command or group; empty where it was left out.
    pub(crate) fn topic(&self) -> Result<String, ParseError> {
        let known = CATALOG.iter().any(|spec| spec.words.starts_with(&self.operands));
        match (known, self.operands.as_slice()) {
            (true, _) | (_, []) => Ok(self.operands.join(" ")),
            (false, typed) => Err(unknown(typed)),
        }
    }
}

fn text(word: &Word) -> &str {
    &word.text
}

fn unknown_option(spec: &Spec, name: &str) -> ParseError {
    let names: Vec<&str> = spec.all_options().map(|option| option.name).collect();
    let remedy = match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("`{}` takes {}", spec.title(), names.join(", ")),
    };
    ParseError::new(format!("unknown option {name}"), remedy)
}

/// A decimal number from `min` to `max`; `what` says what it should have been: "a number of lines".
pub(crate) fn number(text: &str, min: u64, max: u64, what: &str) -> Result<u64, ParseError> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| ParseError::new(format!("`{text}` is not {what}"), format!("give {min} to {max}")))
}

#[cfg(test)]
mod tests;
