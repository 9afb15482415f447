//! The record of what just happened, kept without formatting anything: a ring of typed entries for each CPU, and
//! counters of exits by kind.
//!
//! [`Ring`] is what a CPU's loop pushes [`Event`]s into and what the shell's `trace` and the panic's epitaph read;
//! [`Counters`] is what `stat` reads. Neither knows where its storage lives, what time it is, or what a kind of exit
//! is called: their owner does.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod counters;
mod event;
mod ring;

pub use counters::{Counter, Counters};
pub use event::{Direction, Entry, Event, RunState};
pub use ring::Ring;
