//! Seeded simulation: real machines, real migrations and real sessions on hosts, links and a clock that are made up.
//!
//! [`run`] plays one seed: a guest that writes memory with a running hash moves between three [`host::Host`]s of a
//! [`world::World`] while links are cut and slow, bytes change, hosts die and operators cancel. Whoever runs the guest is
//! checked against the one [`guest::Truth`] at every step of it: a second owner, a lost page, a step backwards or a
//! missing byte of its console ends the run with a message. The same seed always plays the same.
#![forbid(unsafe_code)]

mod guest;
mod host;
mod incoming;
mod outgoing;
mod random;
mod stream;
mod world;

pub use world::{Tally, run};
