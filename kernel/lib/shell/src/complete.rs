//! What a word that is being typed can become.
//!
//! [`complete()`] looks at the line before the cursor: commands and options come from the catalog, the names of what
//! exists from the caller's [`Names`].

use alloc::{string::String, vec::Vec};

use crate::{
    catalog::{Occurs, Spec, Value, first_words, next_words},
    parse::{find, leading},
    words::{self, Word},
};

/// What exists, by name.
pub trait Names {
    /// The names of all things of a kind.
    fn names(&self, kind: NameKind) -> Vec<String>;
}

/// A kind of thing that has a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameKind {
    /// A virtual machine.
    Vm,
    /// A virtual disk.
    Disk,
    /// A disk of the host.
    HostDisk,
    /// A boot module.
    Module,
}

/// Nothing exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NoNames;

impl Names for NoNames {
    fn names(&self, _kind: NameKind) -> Vec<String> {
        Vec::new()
    }
}

/// What a word can become.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    /// The offset into the line where the word starts.
    pub(crate) start: usize,
    /// As much of it as was typed, without quotes.
    pub(crate) typed: String,
    /// What it can become, without quotes; all start with what was typed.
    pub(crate) candidates: Vec<String>,
}

/// What the last word of `line` can become, or the one that would come next.
pub(crate) fn complete(line: &str, names: &dyn Names) -> Completion {
    let mut split = words::split(line);
    let partial = if split.ended { None } else { split.words.pop() };
    let partial = partial.unwrap_or_else(|| Word { start: line.len(), ..Word::default() });
    let mut candidates = candidates(&split.words, &partial, names);
    // Only what the editor can show and the operator can type.
    candidates.retain(|text| text.starts_with(&partial.text) && text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
    Completion { start: partial.start, typed: partial.text, candidates }
}

fn candidates(before: &[Word], partial: &Word, names: &dyn Names) -> Vec<String> {
    let typed = leading(before);
    if before.is_empty() {
        return first_words().map(String::from).collect();
    }
    if typed.len() == before.len() && !partial.is_option() {
        let choices: Vec<String> = next_words(&typed).map(String::from).collect();
        if !choices.is_empty() {
            return choices;
        }
    }
    match find(before) {
        Ok((spec, rest)) => arguments(spec, rest, partial, names),
        Err(_) => Vec::new(),
    }
}

/// What can follow a command and some of its arguments.
fn arguments(spec: &'static Spec, before: &[Word], partial: &Word, names: &dyn Names) -> Vec<String> {
    let value_wanted = before.last().filter(|word| word.is_option()).and_then(|word| spec.option(&word.text)?.value);
    if let Some((_, value)) = value_wanted.filter(|(_, value)| *value != Value::Nic) {
        return existing(value, before, names);
    }
    let operand = spec.operand.as_ref().filter(|operand| operands(spec, before) < operand.words_max);
    let mut found = operand.map_or_else(Vec::new, |operand| existing(operand.value, before, names));
    if partial.is_option() || operand.is_none_or(|operand| !operand.required) || found.is_empty() {
        let given = |name: &str| before.iter().any(|word| word.is_option() && word.text == name);
        let options = spec.all_options().filter(|option| option.occurs == Occurs::Often || !given(option.name));
        found.extend(options.map(|option| String::from(option.name)));
    }
    found
}

/// How many of the words are operands: neither options nor their values.
fn operands(spec: &Spec, words: &[Word]) -> usize {
    let takes_value = |word: &Word| {
        let value = spec.option(&word.text).and_then(|option| option.value);
        word.is_option() && value.is_some_and(|(_, value)| value != Value::Nic)
    };
    let is_operand = |(at, word): &(usize, &Word)| {
        let before = at.checked_sub(1).and_then(|at| words.get(at));
        !word.is_option() && !word.text.starts_with("mac=") && !before.is_some_and(takes_value)
    };
    words.iter().enumerate().filter(is_operand).count()
}

fn existing(value: Value, before: &[Word], names: &dyn Names) -> Vec<String> {
    match value {
        Value::Topic => match before {
            [] => first_words().map(String::from).collect(),
            _ => next_words(&leading(before)).map(String::from).collect(),
        },
        Value::Vm => names.names(NameKind::Vm),
        Value::Disk => names.names(NameKind::Disk),
        Value::HostDisk => names.names(NameKind::HostDisk),
        Value::Module => names.names(NameKind::Module),
        Value::Free | Value::Nic => Vec::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two VMs, three disks, two modules.
    pub(crate) struct SomeNames;

    impl Names for SomeNames {
        fn names(&self, kind: NameKind) -> Vec<String> {
            let names: &[&str] = match kind {
                NameKind::Vm => &["web", "web-2"],
                NameKind::Disk => &["web-root", "my disk", "pärt", "es\x1bc"],
                NameKind::HostDisk => &["disk0", "disk1"],
                NameKind::Module => &["vmlinuz", "initrd.img"],
            };
            names.iter().map(|&name| name.into()).collect()
        }
    }

    fn found(line: &str) -> Vec<String> {
        complete(line, &SomeNames).candidates
    }

    #[test]
    fn commands_and_their_second_words() {
        assert_eq!(found("h"), ["help", "host"]);
        assert_eq!(found("  vm c"), ["create", "console"]);
        assert_eq!(found("vm s"), ["show", "start", "stop", "set", "save"]);
        assert_eq!(found("disk "), ["list", "show", "measure"]);
        assert_eq!(found("disk --"), ["--json"]);
        assert_eq!(found("").len(), first_words().count());
        assert_eq!(found("cpu "), ["profile"]);
        assert_eq!(found("cpu profile "), ["list", "show", "derive", "remove"]);
        assert_eq!(found("cpu profile list "), ["--json"]);
        assert!(found("vm strat w").is_empty());
        assert!(found("xyz ").is_empty());
    }

    #[test]
    fn names_of_what_exists() {
        assert_eq!(found("vm start w"), ["web", "web-2"]);
        assert_eq!(found("vm start web --"), ["--json"]);
        assert_eq!(found("disk show "), ["web-root", "my disk"]);
        assert_eq!(found("disk show \"my d"), ["my disk"]);
        assert_eq!(found("disk measure "), ["disk0", "disk1"]);
        assert_eq!(found("vm create x --kernel "), ["vmlinuz", "initrd.img"]);
        assert_eq!(found("vm create x --disk w"), ["web-root"]);
        assert_eq!(found("stat "), ["web", "web-2", "--json"]);
        assert_eq!(found("trace --vm web-"), ["web-2"]);
        assert!(found("trace --cpu ").is_empty());
    }

    #[test]
    fn options_that_can_still_be_given() {
        let all = [
            "--kernel",
            "--initrd",
            "--module",
            "--cmdline",
            "--memory",
            "--reserved",
            "--vcpus",
            "--weight",
            "--cpu-limit",
            "--iops",
            "--disk-rate",
            "--net-rate",
            "--receive-rate",
            "--pin",
            "--disk",
            "--cdrom",
            "--nic",
            "--cpu-profile",
            "--debug-exit",
            "--debug-console",
            "--start",
            "--json",
        ];
        assert_eq!(found("vm create x "), all);
        assert_eq!(found("vm create "), all);
        assert_eq!(found("vm create x --me"), ["--memory"]);
        assert_eq!(
            found("vm create x --disk web-root --nic mac=02:00:00:00:00:01 --memory 1G --kernel vmlinuz --di"),
            ["--disk-rate", "--disk"]
        );
        assert!(found("vm create x --memory 1G --me").is_empty());
        assert_eq!(found("vm create --nic x --n"), ["--net-rate", "--nic"]);
    }

    #[test]
    fn topics_of_help() {
        assert_eq!(found("help v"), ["vm"]);
        assert_eq!(found("help vm cr"), ["create"]);
        assert_eq!(found("help cpu profile d"), ["derive"]);
    }

    #[test]
    fn knows_where_the_word_starts() {
        let completion = complete("disk show \"my d", &SomeNames);
        assert_eq!((completion.start, completion.typed.as_str()), (10, "my d"));
        assert_eq!(complete("vm ", &SomeNames).start, 3);
    }
}
