//! Limits how many emulators run at once: a CI machine has two cores, and a third emulator would slow both others down
//! past their limits. The main type is [`Permit`]; [`crate::Launch::spawn`] takes one and the emulator gives it back.

use std::sync::{Condvar, Mutex, PoisonError};

/// The most emulators that run at the same time in one process.
pub const EMULATORS_MAX: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static RETURNED: Condvar = Condvar::new();

/// The right to run one emulator, given back when dropped.
#[derive(Debug)]
pub struct Permit(());

impl Permit {
    /// Waits until fewer than [`EMULATORS_MAX`] emulators run.
    #[must_use]
    pub fn take() -> Self {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        while *running >= EMULATORS_MAX {
            running = RETURNED.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        *running += 1;
        Self(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        RETURNED.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn the_third_waits_for_the_first() {
        let (first, second) = (Permit::take(), Permit::take());
        let (sender, receiver) = mpsc::channel();
        let third = thread::spawn(move || {
            let permit = Permit::take();
            sender.send(()).unwrap();
            drop(permit);
        });
        assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err(), "a third emulator was let in");
        drop(first);
        receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        third.join().unwrap();
        drop(second);
    }
}
