//! The console device (5.3) with its one port: bytes out of the guest, bytes into it.
//!
//! [`Console`] has no state of its own beside the queues. What does not fit into the guest's buffers stays with the
//! owner, who offers it again when queue 0 is kicked.

use crate::chain::{gather, scatter, total_bytes};
use crate::{Device, Function, Signal};
use alloc::vec::Vec;
use guestmem::GuestMemory;

/// The queue with the driver's buffers for input: a kick on it means that there is room again.
pub const QUEUE_INPUT: u16 = 0;
/// The queue with the driver's output.
pub const QUEUE_OUTPUT: u16 = 1;

const QUEUE_SIZE: u16 = 128;
/// Output taken in one call; of a single longer chain the rest is lost.
const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// The console device.
#[derive(Clone, Default, Debug)]
pub struct Console;

impl Console {
    /// An idle device.
    pub fn new() -> Self {
        Self
    }
}

impl Device for Console {
    const TYPE: u16 = 3;
    /// Simple communications controller, other.
    const CLASS: u32 = 0x07_8000;
    /// Columns, rows, ports, emergency write (5.3.4): all zero without their features.
    const CONFIG_BYTES: u32 = 12;

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        0
    }

    fn set_driver_features(&mut self, _features: u64) {}

    fn config_read(&self, _offset: u32, _into: &mut [u8]) {}

    fn reset(&mut self) {}
}

impl Function<Console> {
    /// Appends what the guest wrote to `out`, at most 128 KiB a call; after more, [`Signal::Kicked`] says so.
    pub fn take_output(&mut self, memory: &GuestMemory, out: &mut Vec<u8>, signals: &mut Vec<Signal>) {
        let (queue, start) = (usize::from(QUEUE_OUTPUT), out.len());
        // Empty chains add nothing to `out`: they are counted instead.
        let mut chains = 0;
        while let Some(head) = self.transport.pop_chain(memory, queue, &mut self.chain) {
            let bytes = total_bytes(&self.chain.readable).min(OUTPUT_BYTES_MAX as u64) as usize;
            let at = out.len();
            out.resize(at + bytes, 0);
            if gather(memory, self.chain.readable.iter().copied(), &mut out[at..]).is_err() {
                out.truncate(at);
                self.transport.fail();
                break;
            }
            self.transport.push_used(memory, queue, head, 0);
            chains += 1;
            if chains == QUEUE_SIZE || out.len() - start >= OUTPUT_BYTES_MAX {
                self.transport.leave_unfinished(queue);
                break;
            }
        }
        self.transport.notify(memory, queue, signals);
    }

    /// Gives the guest input and returns how many bytes it had room for; a kick on queue 0 says that there is more.
    pub fn input(&mut self, memory: &GuestMemory, bytes: &[u8], signals: &mut Vec<Signal>) -> usize {
        let (queue, mut done) = (usize::from(QUEUE_INPUT), 0);
        while done < bytes.len() {
            let Some(head) = self.transport.pop_chain(memory, queue, &mut self.chain) else { break };
            match scatter(memory, self.chain.writable.iter().copied(), &bytes[done..]) {
                Ok(written) if written > 0 => {
                    self.transport.push_used(memory, queue, head, written as u32);
                    done += written;
                }
                // A buffer that is no memory or has no room.
                _ => {
                    self.transport.fail();
                    break;
                }
            }
        }
        self.transport.notify(memory, queue, signals);
        done
    }
}

#[cfg(test)]
mod tests;
