//! CPUs that have nothing to do help the one that serves with the frames of its sessions.
//!
//! [`CREW`] is what sessions know. Whoever helps takes one frame after the other for as long as no guest wants its CPU;
//! what nobody comes to in time, the session's own CPU does.

use crate::host;
use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicUsize, Ordering};
use cpu::percpu;
use peer::Work;
use spin::Mutex;

/// Frames that are known here at most: more are not begun at a time by the few sessions that there are.
const FRAMES_MAX: usize = 32;

/// All of them.
pub static CREW: Crew = Crew { frames: Mutex::new(VecDeque::new()), helping: AtomicUsize::new(0) };

/// See the module.
pub struct Crew {
    /// Frames that nobody had begun with when they were shown.
    frames: Mutex<VecDeque<Weak<Work>>>,
    /// CPUs that help now.
    helping: AtomicUsize,
}

impl peer::Crew for Crew {
    fn offer(&self, work: &Arc<Work>) -> bool {
        let cpus = &host::get().cpus;
        let idle = cpus.claim_idle();
        if idle.is_none() && self.helping.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut frames = self.frames.lock();
        while frames.len() >= FRAMES_MAX || frames.front().is_some_and(|frame| frame.strong_count() == 0) {
            frames.pop_front();
        }
        frames.push_back(Arc::downgrade(work));
        drop(frames);
        if let Some(idle) = idle {
            cpus.kick(percpu::current().index(), idle);
        }
        true
    }
}

impl Crew {
    /// Does a frame on this CPU, which has nothing else to do; says whether there was one.
    pub fn help(&self) -> bool {
        if !cpu::fpu::is_enabled() {
            return false;
        }
        self.helping.fetch_add(1, Ordering::Relaxed);
        let helped = core::iter::from_fn(|| self.frames.lock().pop_front())
            .any(|frame| frame.upgrade().is_some_and(|work| work.help()));
        self.helping.fetch_sub(1, Ordering::Relaxed);
        helped
    }
}
