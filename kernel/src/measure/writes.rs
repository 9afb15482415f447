//! How fast a guest writes its memory, and what it costs to know that: what `vm measure` started.
//!
//! The guest's writes are tracked for a second, as live migration does, with a look ten times; so this says beforehand
//! how a migration will go. The VM is held meanwhile: nobody else saves or moves it.

use super::{Measurement, Next, Outcome, submit};
use crate::host::Host;
use crate::vm::tracking;
use crate::vm::{Refusal, Running};
use alloc::string::ToString;
use alloc::sync::Arc;
use guestmem::PageSet;
use nested::Retired;
use shell::{Reply, Writes};

/// How many looks count, and how far apart they are. One goes before them, which finds pages too large to count.
const LOOKS: u64 = 10;
const PERIOD_NS: u64 = 100_000_000;
/// How soon it is asked again whether every vCPU has forgotten its translations.
const SOON_NS: u64 = 20_000;

/// One VM being measured.
struct WriteMeasurement {
    outcome: Arc<Outcome>,
    running: Arc<Running>,
    /// What one look finds, and what all of them found.
    found: PageSet,
    seen: PageSet,
    /// What is said in the end, as far as it is known.
    writes: Writes,
    /// When the looks that count began; `None` before that.
    since_ns: Option<u64>,
    look_at_ns: u64,
    /// How long all looks took.
    looking_ns: u64,
    /// It is over but for these tables.
    retired: Option<Retired>,
}

/// Begins to measure what a VM writes.
pub fn begin(host: &'static Host, running: Arc<Running>) -> Result<Arc<Outcome>, Refusal> {
    let name = running.vm.name().to_string();
    if !running.hold() {
        return Err((alloc::format!("{name} is being saved, moved or measured"), "wait for that".to_string()));
    }
    let begun = prepare(host, &running);
    let (found, seen) = begun.inspect_err(|_| running.let_go(host))?;
    let outcome: Arc<Outcome> = Arc::default();
    let noted_by = running.second_stage().noted_by();
    submit(WriteMeasurement {
        outcome: outcome.clone(),
        found,
        seen,
        writes: Writes { vm: name, noted_by, ..Writes::default() },
        since_ns: None,
        look_at_ns: host.clock.now_ns() + PERIOD_NS,
        looking_ns: 0,
        retired: None,
        running,
    });
    Ok(outcome)
}

fn prepare(host: &'static Host, running: &Arc<Running>) -> Result<(PageSet, PageSet), Refusal> {
    let set = || PageSet::new(running.machine.memory().pages_end()).ok_or_else(tracking::no_room);
    let sets = (set()?, set()?);
    tracking::start(host, running)?;
    Ok(sets)
}

impl Measurement for WriteMeasurement {
    fn poll(&mut self, host: &'static Host) -> Next {
        let now_ns = host.clock.now_ns();
        if !self.running.machine.invalidated() {
            return Next::At(now_ns + SOON_NS);
        }
        if let Some(retired) = self.retired.take() {
            self.end(host, retired);
            return Next::Over;
        }
        if self.writes.looks == LOOKS || self.running.is_over() || !self.outcome.is_wanted() {
            self.retired = Some(tracking::stop(host, &self.running));
            return Next::At(now_ns);
        }
        if now_ns >= self.look_at_ns {
            self.look(host, now_ns);
        }
        Next::At(self.look_at_ns)
    }
}

impl WriteMeasurement {
    fn look(&mut self, host: &'static Host, now_ns: u64) {
        self.found.clear();
        tracking::look(host, &self.running, &mut self.found);
        let looked_ns = host.clock.now_ns();
        self.look_at_ns = now_ns + PERIOD_NS;
        let Some(since_ns) = self.since_ns else {
            self.since_ns = Some(now_ns);
            return;
        };
        self.seen.merge(&self.found);
        self.looking_ns += looked_ns - now_ns;
        let writes = &mut self.writes;
        writes.looks += 1;
        writes.pages += self.found.count();
        writes.distinct_pages = self.seen.count();
        writes.time_ns = now_ns - since_ns;
        writes.look_ns = self.looking_ns / writes.looks;
    }

    fn end(&mut self, host: &Host, retired: Retired) {
        self.running.second_stage().give_back(retired);
        self.running.let_go(host);
        self.outcome.put(if self.writes.looks == LOOKS {
            Ok(Reply::Writes(self.writes.clone()))
        } else {
            Err((alloc::format!("{} ended", self.writes.vm), "measure while it runs".to_string()))
        });
    }
}
