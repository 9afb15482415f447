//! Which pages of a life's memory are written: by its guest, by the host, by devices.
//!
//! [`start`], then [`look`] again and again, then [`stop`]. What a look found counts, and may be read, once
//! [`machine::Machine::invalidated`] says that every vCPU has forgotten its translations. CPU 0 alone calls this.

use super::{Refusal, Running};
use crate::cpu_loop::InputHost;
use crate::host::Host;
use alloc::string::ToString;
use alloc::sync::Arc;
use guestmem::PageSet;
use nested::Retired;

/// The CPU that serves.
const CPU: usize = 0;

/// What is said where memory for the marks ran out.
pub fn no_room() -> Refusal {
    ("there is no memory to keep track of its pages".to_string(), "stop another VM".to_string())
}

/// Begins to note which pages change.
pub fn start(host: &'static Host, running: &Arc<Running>) -> Result<(), Refusal> {
    running.machine.start_tracking().map_err(|_| no_room())?;
    let tracks = running.second_stage().start_tracking();
    if tracks.is_err() {
        running.machine.memory().stop_tracking();
        return Err(no_room());
    }
    running.machine.invalidate_all(&mut InputHost::new(host, CPU, running));
    Ok(())
}

/// Adds what was written since the last look to `written`, a set of this guest's pages.
pub fn look(host: &'static Host, running: &Arc<Running>, written: &mut PageSet) {
    let machine = &running.machine;
    // What was logged and not reported yet comes with the next look; with the last, all threads stand here.
    running.with_threads(|threads| threads.iter_mut().for_each(|thread| machine.note_written(thread)));
    machine.memory().harvest(written);
    running.second_stage().harvest(written);
    machine.invalidate_all(&mut InputHost::new(host, CPU, running));
}

/// Notes no more; gives the tables that nobody walks any more once every vCPU has forgotten its translations.
pub fn stop(host: &'static Host, running: &Arc<Running>) -> Retired {
    running.machine.memory().stop_tracking();
    let retired = running.second_stage().stop_tracking();
    running.machine.invalidate_all(&mut InputHost::new(host, CPU, running));
    retired
}
