//! Runs test programs side by side, as many as have room: most wait for one emulator, which leaves a core idle. The main
//! function is [`run`], which `test` and `demo` use.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use e2e::{Artifacts, EMULATORS_MAX, Permit, Program};

use crate::report::Report;

/// Runs the programs, begun in this order, and records each as it ends.
pub fn run<'a>(report: &mut Report, programs: impl Iterator<Item = &'a Program> + Send, artifacts: &Artifacts) {
    let (report, programs) = (Mutex::new(report), Mutex::new(programs));
    thread::scope(|scope| {
        for _ in 0..EMULATORS_MAX {
            scope.spawn(|| {
                while let Some((program, _permit)) = next(&programs) {
                    let started = Instant::now();
                    let result = (program.run)(artifacts);
                    let seconds = started.elapsed().as_secs_f64();
                    report.lock().unwrap_or_else(PoisonError::into_inner).program(program.name, seconds, result);
                }
            });
        }
    });
}

/// The next program, once there is room for it. Those behind it wait as well, so that one that needs much room gets it.
fn next<'a>(programs: &Mutex<impl Iterator<Item = &'a Program>>) -> Option<(&'a Program, Permit)> {
    let mut programs = programs.lock().unwrap_or_else(PoisonError::into_inner);
    let program = programs.next()?;
    Some((program, Permit::take(program.emulators)))
}
