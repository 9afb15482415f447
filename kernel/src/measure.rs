//! What is measured for an operator, in steps that block nobody: a disk's reads, a guest's writes.
//!
//! [`Measurements`] is what the services poll; `disk` and `writes` begin what it holds. A measurement ends early where
//! nobody waits for its [`Outcome`].

pub mod disk;
pub mod writes;

use crate::host::Host;
use crate::services;
use crate::vm::Refusal;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use shell::Reply;
use spin::Mutex;

/// Measurements that were begun and that the services have not seen yet.
static BEGUN: Mutex<Vec<Box<dyn Measurement>>> = Mutex::new(Vec::new());

/// The measurements under way.
#[derive(Default)]
pub struct Measurements(Vec<Box<dyn Measurement>>);

/// What came of a measurement, or of another question that takes its time.
#[derive(Default)]
pub struct Outcome(Mutex<Option<Result<Reply, Refusal>>>);

/// Something being measured.
trait Measurement: Send {
    /// Goes on.
    fn poll(&mut self, host: &'static Host) -> Next;
}

/// What a measurement waits for.
enum Next {
    /// To be called again at this moment.
    At(u64),
    /// A transfer, whose end calls the services.
    Transfer,
    /// Nothing more: it is over.
    Over,
}

fn submit(measurement: impl Measurement + 'static) {
    BEGUN.lock().push(Box::new(measurement));
    services::note_begun();
}

impl Outcome {
    /// Takes it, once it is there.
    pub fn take(&self) -> Option<Result<Reply, Refusal>> {
        self.0.lock().take()
    }

    /// Says what came of it.
    pub fn put(&self, result: Result<Reply, Refusal>) {
        *self.0.lock() = Some(result);
    }

    /// Whether anybody but the measurement has it.
    fn is_wanted(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1
    }
}

impl Measurements {
    /// Goes on with every measurement; returns when to look again where no transfer says so.
    pub fn poll(&mut self, host: &'static Host) -> Option<u64> {
        self.0.append(&mut BEGUN.lock());
        let mut due_ns: Option<u64> = None;
        self.0.retain_mut(|measurement| {
            match measurement.poll(host) {
                Next::At(ns) => due_ns = Some(due_ns.map_or(ns, |other| other.min(ns))),
                Next::Transfer => {}
                Next::Over => return false,
            }
            true
        });
        due_ns
    }
}
