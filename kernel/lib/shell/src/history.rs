//! The lines that were typed before.

use alloc::{collections::VecDeque, string::String};

/// How many lines are kept.
const LINES_MAX: usize = 100;

/// The last lines, and where among them the operator looks.
#[derive(Default)]
pub(crate) struct History {
    lines: VecDeque<String>,
    /// The line that is shown; none where it is the one being typed.
    shown: Option<usize>,
    /// What was being typed before the operator looked back.
    draft: String,
}

impl History {
    /// Keeps a line unless it is blank or the same as the last, and looks at the present again.
    pub(crate) fn push(&mut self, line: &str) {
        self.shown = None;
        if line.trim().is_empty() || self.lines.back().is_some_and(|last| last == line) {
            return;
        }
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line.into());
    }

    /// Looks at the present again.
    pub(crate) fn leave(&mut self) {
        self.shown = None;
    }

    /// The line before the one that is shown. `current` is what is being typed, kept for the way back.
    pub(crate) fn older(&mut self, current: &str) -> Option<&str> {
        let at = self.shown.unwrap_or(self.lines.len()).checked_sub(1)?;
        if self.shown.is_none() {
            self.draft = current.into();
        }
        self.shown = Some(at);
        self.lines.get(at).map(String::as_str)
    }

    /// The line after the one that is shown, in the end the one that was being typed.
    pub(crate) fn newer(&mut self) -> Option<&str> {
        let at = self.shown? + 1;
        self.shown = (at < self.lines.len()).then_some(at);
        Some(self.lines.get(at).unwrap_or(&self.draft))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_back_and_forth() {
        let mut history = History::default();
        assert_eq!(history.older("x"), None);
        assert_eq!(history.newer(), None);
        for line in ["one", "two", "two", "  ", "three"] {
            history.push(line);
        }
        assert_eq!(history.older("dra"), Some("three"));
        assert_eq!(history.older("three"), Some("two"));
        assert_eq!(history.older("two"), Some("one"));
        assert_eq!(history.older("one"), None);
        assert_eq!(history.newer(), Some("two"));
        assert_eq!(history.newer(), Some("three"));
        assert_eq!(history.newer(), Some("dra"));
        assert_eq!(history.newer(), None);
    }

    #[test]
    fn keeps_the_last_hundred() {
        let mut history = History::default();
        for line in 0..250 {
            history.push(&line.to_string());
        }
        let mut seen = Vec::new();
        while let Some(line) = history.older("") {
            seen.push(line.to_string());
        }
        assert_eq!((seen.len(), seen[0].as_str(), seen[99].as_str()), (100, "249", "150"));
        history.leave();
        assert_eq!(history.older(""), Some("249"));
    }
}
