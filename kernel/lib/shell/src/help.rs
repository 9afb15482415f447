//! What `help` says.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use serde::Serialize;

use crate::{
    Reply,
    catalog::{CATALOG, Occurs, OptionSpec, Spec},
};

/// Some or all of the commands, explained.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Help {
    /// One, a group's, or all.
    pub commands: Vec<CommandHelp>,
}

/// A command, explained.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CommandHelp {
    /// The command without what it takes: "vm create".
    pub command: String,
    /// How it is typed, with what must be given.
    pub usage: String,
    /// What it does, in one short line.
    pub summary: String,
    /// What else there is to know; may be empty.
    pub details: String,
    /// Its options.
    pub options: Vec<OptionHelp>,
    /// Lines to try.
    pub examples: Vec<String>,
}

/// An option, explained.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct OptionHelp {
    /// How it is typed: "--memory SIZE".
    pub usage: String,
    /// What it does, in one short line.
    pub summary: String,
}

/// The reply to [`Command::Help`](crate::Command::Help): the commands that `topic` is the start of, all where it is
/// empty.
pub fn help(topic: &str) -> Reply {
    let topic: Vec<&str> = topic.split_whitespace().collect();
    let commands = CATALOG.iter().filter(|spec| spec.words.starts_with(&topic)).map(Spec::help).collect();
    Reply::Help(Help { commands })
}

impl Spec {
    fn help(&self) -> CommandHelp {
        CommandHelp {
            command: self.title(),
            usage: self.usage(),
            summary: self.summary.to_string(),
            details: self.details.to_string(),
            options: self.all_options().map(OptionSpec::help).collect(),
            examples: self.examples.iter().map(ToString::to_string).collect(),
        }
    }

    /// How it is typed, with what must be given.
    fn usage(&self) -> String {
        let mut usage = match self.words.split_last() {
            Some((own, group)) if self.default => format!("{} [{own}]", group.join(" ")),
            _ => self.title(),
        };
        match &self.operand {
            Some(operand) if operand.required => usage += &format!(" {}", operand.title),
            Some(operand) => usage += &format!(" [{}]", operand.title),
            None => {}
        }
        for option in self.options.iter().filter(|option| option.occurs == Occurs::Always) {
            usage += &format!(" {}", option.usage());
        }
        usage
    }
}

impl OptionSpec {
    /// How it is typed.
    pub(crate) fn usage(&self) -> String {
        match self.value {
            Some((title, _)) => format!("{} {title}", self.name),
            None => self.name.to_string(),
        }
    }

    fn help(&self) -> OptionHelp {
        OptionHelp { usage: self.usage(), summary: self.summary.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, parse};

    fn commands(topic: &str) -> Vec<CommandHelp> {
        match help(topic) {
            Reply::Help(help) => help.commands,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_topic_is_one_a_group_or_all() {
        assert_eq!(commands("").len(), CATALOG.len());
        assert_eq!(commands("vm").len(), 20);
        assert_eq!(commands("vm create").len(), 1);
        assert_eq!(commands("cpu profile").len(), 4);
        assert_eq!(commands("cpu profile show")[0].usage, "cpu profile show NAME");
        assert_eq!(commands("cpu profile list")[0].usage, "cpu profile [list]");
        assert_eq!(commands("v").len(), 0);
    }

    #[test]
    fn every_command_has_examples_that_parse_to_it() {
        for spec in CATALOG {
            assert!(!spec.examples.is_empty() && !spec.summary.is_empty(), "{}", spec.title());
            for example in spec.examples {
                let invocation = parse(example).unwrap_or_else(|error| panic!("{example}: {error}")).unwrap();
                assert!(example.starts_with(spec.words[0]), "{example}");
                if spec.words[0] != "help" {
                    assert!(!matches!(invocation.command, Command::Help { .. }), "{example}");
                }
            }
        }
    }

    #[test]
    fn usage_names_what_must_be_given() {
        assert_eq!(commands("vm create")[0].usage, "vm create NAME");
        assert_eq!(commands("disk list")[0].usage, "disk [list]");
        assert_eq!(commands("stat")[0].usage, "stat [NAME]");
        assert_eq!(commands("trace")[0].options.len(), 4);
    }
}
