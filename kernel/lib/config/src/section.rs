//! One table of the file, read key by key.
//!
//! [`Section`] refuses keys that it was not told of and values of another type than asked for, with the line. [`Lines`]
//! finds the line of an offset.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::{ops::Range, str::FromStr};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::{Error, Invalid, nearest};

/// The file's text, to tell lines by.
#[derive(Clone, Copy)]
pub(crate) struct Lines<'t>(&'t str);

impl<'t> Lines<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self(text)
    }

    /// An error at an offset into the text.
    pub(crate) fn error(self, offset: usize, cause: Invalid) -> Error {
        let before = self.0.bytes().take(offset).filter(|&byte| byte == b'\n').count();
        Error { line: u32::try_from(before).map_or(u32::MAX, |lines| lines.saturating_add(1)), cause }
    }
}

/// A table of the file.
pub(crate) struct Section<'t> {
    /// What to call it in messages.
    title: String,
    table: &'t DeTable<'t>,
    span: Range<usize>,
    lines: Lines<'t>,
}

impl<'t> Section<'t> {
    /// The table, once it is known to have no other keys than these.
    pub(crate) fn new(
        title: &str,
        table: &'t DeTable<'t>,
        span: Range<usize>,
        lines: Lines<'t>,
        keys: &[&'static str],
    ) -> Result<Self, Error> {
        let unknown = table.keys().filter(|key| !keys.contains(&key.get_ref().as_ref()));
        if let Some(key) = unknown.min_by_key(|key| key.span().start) {
            let remedy = match nearest(key.get_ref(), keys.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("{title} can have {}", keys.join(", ")),
            };
            return Err(lines.error(key.span().start, Invalid::new(format!("unknown key `{}`", key.get_ref()), remedy)));
        }
        Ok(Self { title: title.into(), table, span, lines })
    }

    /// An error about the table as a whole.
    pub(crate) fn error(&self, cause: Invalid) -> Error {
        self.lines.error(self.span.start, cause)
    }

    /// Whether a key is there.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// A value that must be there.
    pub(crate) fn required<T>(&self, key: &str, value: Option<T>, example: &str) -> Result<T, Error> {
        value.ok_or_else(|| {
            self.error(Invalid::new(format!("{} has no `{key}`", self.title), format!("add {key} = {example}")))
        })
    }

    /// The table under a key.
    pub(crate) fn table(&self, key: &str, keys: &[&'static str]) -> Result<Option<Section<'t>>, Error> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        self.as_table(&format!("[{key}]"), key, value, keys).map(Some)
    }

    /// The tables in the array under a key; none where the key is not there.
    pub(crate) fn tables(&self, key: &str, keys: &[&'static str]) -> Result<Vec<Section<'t>>, Error> {
        let Some(value) = self.table.get(key) else { return Ok(Vec::new()) };
        let title = format!("[[{key}]]");
        let remedy = format!("write {title} for each and its keys below");
        let items = value.get_ref().as_array().ok_or_else(|| self.wrong_type(key, value, "an array", &remedy))?;
        items.iter().map(|item| self.as_table(&title, key, item, keys)).collect()
    }

    fn as_table(
        &self,
        title: &str,
        key: &str,
        value: &'t Spanned<DeValue<'t>>,
        keys: &[&'static str],
    ) -> Result<Section<'t>, Error> {
        let remedy = format!("write {title} and its keys below");
        let table = value.get_ref().as_table().ok_or_else(|| self.wrong_type(key, value, "a table", &remedy))?;
        Section::new(title, table, value.span(), self.lines, keys)
    }

    /// The text under a key.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'t str>, Error> {
        self.table.get(key).map(|value| self.as_text(key, value)).transpose()
    }

    fn as_text(&self, key: &str, value: &'t Spanned<DeValue<'t>>) -> Result<&'t str, Error> {
        value.get_ref().as_str().ok_or_else(|| self.wrong_type(key, value, "text", "put it in double quotes"))
    }

    /// The text under a key, parsed.
    pub(crate) fn parsed<T: FromStr<Err = Invalid>>(&self, key: &str) -> Result<Option<T>, Error> {
        let text = self.text(key)?;
        text.map(|text| text.parse().map_err(|cause| self.error_at(key, cause))).transpose()
    }

    /// The texts in the array under a key; none where the key is not there.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<String>, Error> {
        let Some(value) = self.table.get(key) else { return Ok(Vec::new()) };
        let remedy = format!("write {key} = [\"one\", \"two\"]");
        let items = value.get_ref().as_array().ok_or_else(|| self.wrong_type(key, value, "an array", &remedy))?;
        items.iter().map(|item| self.as_text(key, item).map(String::from)).collect()
    }

    /// The integer under a key. One beyond `u64` reads as the largest, and a negative one as an error.
    pub(crate) fn integer(&self, key: &str) -> Result<Option<u64>, Error> {
        self.table.get(key).map(|value| self.as_integer(key, value)).transpose()
    }

    /// The integers in the array under a key; none where the key is not there.
    pub(crate) fn integers(&self, key: &str) -> Result<Vec<u64>, Error> {
        let Some(value) = self.table.get(key) else { return Ok(Vec::new()) };
        let remedy = format!("write {key} = [1, 2]");
        let items = value.get_ref().as_array().ok_or_else(|| self.wrong_type(key, value, "an array", &remedy))?;
        items.iter().map(|item| self.as_integer(key, item)).collect()
    }

    fn as_integer(&self, key: &str, value: &'t Spanned<DeValue<'t>>) -> Result<u64, Error> {
        let remedy = "write digits without quotes";
        let integer = value.get_ref().as_integer().ok_or_else(|| self.wrong_type(key, value, "a number", remedy))?;
        if integer.as_str().starts_with('-') {
            let cause = Invalid::new(format!("`{key}` is negative"), "write a number above 0");
            return Err(self.error_at(key, cause));
        }
        Ok(u64::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(u64::MAX))
    }

    /// Whether an integer is under a key.
    pub(crate) fn is_integer(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(|value| value.get_ref().is_integer())
    }

    /// The truth value under a key.
    pub(crate) fn truth(&self, key: &str) -> Result<Option<bool>, Error> {
        let Some(value) = self.table.get(key) else { return Ok(None) };
        let remedy = "write true or false without quotes";
        value.get_ref().as_bool().map(Some).ok_or_else(|| self.wrong_type(key, value, "true or false", remedy))
    }

    /// An error about the value under a key.
    pub(crate) fn error_at(&self, key: &str, cause: Invalid) -> Error {
        let at = self.table.get(key).map_or(self.span.start, |value| value.span().start);
        self.lines.error(at, cause)
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str, remedy: &str) -> Error {
        let message = format!("`{key}` must be {wanted}, not {}", value.get_ref().type_str());
        self.lines.error(value.span().start, Invalid::new(message, remedy.to_string()))
    }
}
