//! A whole machine on a made-up processor and host: what a guest does goes in as exits, what it sees comes back.

mod absent;
mod balloon;
mod baseline;
mod bench;
mod clock;
mod console;
mod cpuid;
mod debug;
mod driver;
mod ends;
mod firmware;
mod hostile;
mod hotplug;
mod inputs;
mod interrupts;
mod meter;
mod mock;
mod msr;
mod network;
mod ports;
mod saved;
mod smp;
mod start;
mod storage;
mod traps;
mod vectors;
