//! Limits how many emulators run at once: a CI machine has two cores, and a third emulator would slow both others down
//! past their limits. The main type is [`Permit`]; who runs a [`crate::Program`] takes one for it.

use std::sync::{Condvar, Mutex, PoisonError};

/// The most emulators that run at the same time in one process.
pub const EMULATORS_MAX: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static RETURNED: Condvar = Condvar::new();

/// The right to run some emulators, given back when dropped.
#[derive(Debug)]
pub struct Permit(usize);

impl Permit {
    /// Waits until there is room for so many, which are [`EMULATORS_MAX`] at most.
    #[must_use]
    pub fn take(emulators: usize) -> Self {
        assert!(emulators <= EMULATORS_MAX, "there is never room for {emulators}");
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        while *running + emulators > EMULATORS_MAX {
            running = RETURNED.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += emulators;
        Self(emulators)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        RETURNED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_pair_waits_for_both_others() {
        let (first, second) = (Permit::take(1), Permit::take(1));
        let (sender, receiver) = mpsc::channel();
        let pair = thread::spawn(move || {
            let permit = Permit::take(2);
            sender.send(()).unwrap();
            drop(permit);
        });
        drop(first);
        assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err(), "a third emulator was let in");
        drop(second);
        receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        pair.join().unwrap();
    }
}
