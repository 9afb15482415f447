//! What the tests of this crate share: a disk in memory and small values.

use crate::gpt::{Guid, Partition};
use crate::{Disk, Geometry, HostRun, Op, Outcome, SubmitError, Transfer};
use alloc::collections::VecDeque;
use std::sync::{Arc, Mutex};

pub(crate) fn geometry() -> Geometry {
    Geometry {
        sectors: 1 << 20,
        logical_block_bytes: 512,
        physical_block_bytes: 4096,
        read_only: false,
        flush: true,
        write_through: true,
        discard: true,
        write_zeroes: true,
        max_discard_sectors: 1 << 16,
        max_write_zeroes_sectors: 1 << 16,
        run_alignment_bytes: 1,
        run_boundary_bytes: 1,
        max_runs: 16,
        max_run_bytes: u32::MAX,
        max_transfer_bytes: u32::MAX,
        queue_depth: 16,
        serial: String::new(),
        name: String::new(),
    }
}

pub(crate) fn partition(number: u32, name: &str, first_sector: u64, sectors: u64) -> Partition {
    Partition {
        number,
        name: name.into(),
        first_sector,
        sectors,
        type_guid: Guid([1; 16]),
        unique_guid: Guid([number as u8; 16]),
        read_only: false,
    }
}

/// A transfer as the disk saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub token: u64,
    pub op: Op,
    pub sector: u64,
    pub sectors: u32,
    pub runs: Vec<HostRun>,
}

/// What a [`MemoryDisk`] was told and what it is to answer.
#[derive(Default)]
pub(crate) struct Script {
    pub room: usize,
    pub refuse: bool,
    pub seen: Vec<Seen>,
    pub kicks: usize,
    pub completions: VecDeque<(u64, Outcome)>,
}

impl Script {
    /// Completes the oldest transfer that the disk has.
    pub fn complete(&mut self, outcome: Outcome) -> Seen {
        let seen = self.seen.remove(0);
        self.completions.push_back((seen.token, outcome));
        seen
    }
}

/// A disk that does as its script says.
pub(crate) struct MemoryDisk {
    geometry: Geometry,
    script: Arc<Mutex<Script>>,
}

impl MemoryDisk {
    pub fn new(sectors: u64) -> (Self, Arc<Mutex<Script>>) {
        Self::with(Geometry { sectors, ..geometry() })
    }

    pub fn with(geometry: Geometry) -> (Self, Arc<Mutex<Script>>) {
        let script = Arc::new(Mutex::new(Script { room: usize::MAX, ..Script::default() }));
        (Self { geometry, script: script.clone() }, script)
    }
}

impl Disk for MemoryDisk {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&mut self, transfer: &Transfer<'_>) -> Result<(), SubmitError> {
        let mut script = self.script.lock().unwrap();
        if script.refuse {
            return Err(SubmitError::Refused);
        }
        if script.seen.len() >= script.room {
            return Err(SubmitError::Full);
        }
        script.seen.push(Seen {
            token: transfer.id,
            op: transfer.op,
            sector: transfer.sector,
            sectors: transfer.sectors,
            runs: transfer.runs.to_vec(),
        });
        Ok(())
    }

    fn kick(&mut self) {
        self.script.lock().unwrap().kicks += 1;
    }

    fn completed(&mut self) -> Option<(u64, Outcome)> {
        self.script.lock().unwrap().completions.pop_front()
    }

    fn acknowledge_interrupt(&mut self) {}

    fn has_interrupt(&self) -> bool {
        false
    }
}

#[test]
fn the_last_look_before_dma() {
    let geometry = Geometry {
        sectors: 100,
        flush: false,
        write_through: false,
        discard: false,
        max_write_zeroes_sectors: 8,
        max_runs: 2,
        max_run_bytes: 4096,
        max_transfer_bytes: 6144,
        ..geometry()
    };
    let run = |start: u64, bytes: u32| HostRun { start: addr::Hpa::new(start), bytes };
    fn transfer(op: Op, runs: &[HostRun]) -> Transfer<'_> {
        let bytes: u32 = runs.iter().map(|run| run.bytes).sum();
        Transfer { id: 0, op, sector: 77, sectors: bytes / 512, runs }
    }
    let read_only = Geometry { read_only: true, ..geometry.clone() };
    let block = [run(0x1000, 512)];
    let read = transfer(Op::Read, &block);
    assert!(geometry.allows(&read) && read_only.allows(&read));
    assert!(!geometry.allows(&Transfer { sector: 100, ..read }));
    assert!(!geometry.allows(&Transfer { sector: u64::MAX, ..read }));
    assert!(!geometry.allows(&Transfer { sectors: 2, ..read }));
    assert!(!geometry.allows(&Transfer { sectors: 0, runs: &[], ..read }));
    assert!(!geometry.allows(&transfer(Op::Read, &[run(0, 512), run(0, 512), run(0, 512)])));
    assert!(!geometry.allows(&transfer(Op::Read, &[run(0, 4608)])));
    assert!(geometry.allows(&transfer(Op::Read, &[run(0, 4096), run(0, 2048)])));
    assert!(!geometry.allows(&transfer(Op::Read, &[run(0, 4096), run(0, 2560)])));
    assert!(!geometry.allows(&transfer(Op::Flush, &[])));
    let dataless = |op, sectors| Transfer { op, sectors, runs: &[], ..read };
    assert!(!geometry.allows(&dataless(Op::Discard, 1)));
    assert!(geometry.allows(&dataless(Op::WriteZeroes, 8)));
    assert!(!geometry.allows(&dataless(Op::WriteZeroes, 9)));
    assert!(!geometry.allows(&dataless(Op::WriteZeroes, 0)));
    assert!(!read_only.allows(&dataless(Op::WriteZeroes, 1)));
    assert!(!read_only.allows(&Transfer { op: Op::Write, ..read }));
    let through = Transfer { op: Op::WriteThrough, ..read };
    assert!(!geometry.allows(&through));
    let writes_through = Geometry { write_through: true, ..geometry.clone() };
    assert!(writes_through.allows(&through) && !writes_through.allows(&dataless(Op::WriteThrough, 1)));
    assert!(!Geometry { write_through: true, ..read_only.clone() }.allows(&through));
    let odd = [run(0x1001, 512)];
    let even = Geometry { run_alignment_bytes: 2, ..geometry.clone() };
    assert!(geometry.allows(&transfer(Op::Read, &odd)));
    // A block that breaks the rules is the driver's to copy, more of them are not.
    assert!(even.allows(&transfer(Op::Read, &odd)));
    assert!(!even.allows(&transfer(Op::Read, &[run(0x1001, 1024)])));
    let large_blocks = Geometry { logical_block_bytes: 1024, ..geometry };
    assert!(!large_blocks.allows(&Transfer { sector: 76, ..read }));
    assert!(large_blocks.allows(&Transfer { sector: 76, ..transfer(Op::Read, &[run(0, 1024)]) }));
}
