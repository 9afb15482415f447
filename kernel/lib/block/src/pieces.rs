//! Cuts a long transfer into pieces that a disk takes.
//!
//! The main type is [`Cursor`], which remembers how far cutting has got; [`crate::Datastore`] keeps one a request.

use crate::{Geometry, HostRun, Op, SECTOR_BYTES};
use alloc::vec::Vec;

/// How far into a transfer's runs the pieces cut so far reach.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Cursor {
    run: usize,
    /// Bytes of `run` already used.
    offset_bytes: u32,
}

impl Cursor {
    /// Fills `piece` with the next runs, as many whole blocks as the disk takes at once and at most `sectors`; returns
    /// how many sectors they hold, or `None` where even one block is in more runs than the disk takes. A block that the
    /// disk's rules for runs do not admit is a piece of its own.
    pub(crate) fn cut(
        &mut self,
        runs: &[HostRun],
        sectors: u32,
        geometry: &Geometry,
        piece: &mut Vec<HostRun>,
    ) -> Option<u32> {
        let block_bytes = u64::from(geometry.sectors_per_block()) * u64::from(SECTOR_BYTES);
        let most_bytes = (u64::from(sectors) * u64::from(SECTOR_BYTES)).min(u64::from(geometry.max_transfer_bytes));
        let start = *self;
        let mut bytes = self.gather(runs, most_bytes, Rules::of(geometry), piece);
        if bytes < block_bytes && Rules::of(geometry).are_any() {
            *self = start;
            bytes = self.gather(runs, most_bytes.min(block_bytes), Rules::NONE, piece);
        }
        let excess_bytes = bytes % block_bytes;
        self.put_back(runs, excess_bytes);
        shorten(piece, excess_bytes);
        let sectors = u32::try_from((bytes - excess_bytes) / u64::from(SECTOR_BYTES)).ok()?;
        (sectors > 0).then_some(sectors)
    }

    /// Moves runs into `piece` as far as the rules go and up to `most_bytes`; returns the bytes moved.
    fn gather(&mut self, runs: &[HostRun], most_bytes: u64, rules: Rules, piece: &mut Vec<HostRun>) -> u64 {
        piece.clear();
        let mut bytes = 0;
        while let Some(run) = runs.get(self.run)
            && bytes < most_bytes
            && piece.len() < rules.max_runs
        {
            let left_bytes = run.bytes - self.offset_bytes;
            let room_bytes = u32::try_from(most_bytes - bytes).unwrap_or(u32::MAX);
            let taken_bytes = left_bytes.min(rules.max_run_bytes).min(room_bytes);
            let next = HostRun { start: run.start.wrapping_add(self.offset_bytes.into()), bytes: taken_bytes };
            if !rules.admit(piece.last(), &next) {
                break;
            }
            piece.push(next);
            bytes += u64::from(taken_bytes);
            self.advance(left_bytes, taken_bytes);
        }
        bytes
    }

    fn advance(&mut self, left_bytes: u32, taken_bytes: u32) {
        if taken_bytes == left_bytes {
            self.run += 1;
            self.offset_bytes = 0;
        } else {
            self.offset_bytes += taken_bytes;
        }
    }

    /// Moves back by `bytes`, which [`Cursor::gather`] has just passed.
    fn put_back(&mut self, runs: &[HostRun], mut bytes: u64) {
        while bytes > u64::from(self.offset_bytes) {
            bytes -= u64::from(self.offset_bytes);
            self.run -= 1;
            self.offset_bytes = runs[self.run].bytes;
        }
        // No larger than `offset_bytes`, so it fits.
        self.offset_bytes -= bytes as u32;
    }
}

/// What a disk asks of the runs of one transfer.
#[derive(Clone, Copy)]
struct Rules {
    alignment_bytes: u64,
    boundary_bytes: u64,
    max_runs: usize,
    max_run_bytes: u32,
}

impl Rules {
    const NONE: Self = Self { alignment_bytes: 1, boundary_bytes: 1, max_runs: usize::MAX, max_run_bytes: u32::MAX };

    fn of(geometry: &Geometry) -> Self {
        Self {
            alignment_bytes: geometry.run_alignment_bytes.max(1).into(),
            boundary_bytes: geometry.run_boundary_bytes.max(1).into(),
            max_runs: geometry.max_runs.into(),
            max_run_bytes: geometry.max_run_bytes,
        }
    }

    /// Whether any is about where runs lie: only then does the disk copy what breaks them.
    fn are_any(self) -> bool {
        self.alignment_bytes > 1 || self.boundary_bytes > 1
    }

    /// Whether `next` may follow `last`, or come first.
    fn admit(self, last: Option<&HostRun>, next: &HostRun) -> bool {
        let (start, end) = edges(next);
        let is_aligned = start.is_multiple_of(self.alignment_bytes) && end.is_multiple_of(self.alignment_bytes);
        let meets = last.is_none_or(|last| {
            edges(last).1.is_multiple_of(self.boundary_bytes) && start.is_multiple_of(self.boundary_bytes)
        });
        is_aligned && meets
    }
}

impl Geometry {
    /// Whether runs may be one transfer's, as far as their number, their lengths and where they lie go.
    pub fn admits_runs(&self, runs: &[HostRun]) -> bool {
        let rules = Rules::of(self);
        let last = (0..runs.len()).map(|index| index.checked_sub(1).map(|last| &runs[last]));
        runs.len() <= rules.max_runs
            && last.zip(runs).all(|(last, run)| run.bytes <= rules.max_run_bytes && rules.admit(last, run))
    }
}

/// A run's first byte and the one past its end, as far as alignment goes.
fn edges(run: &HostRun) -> (u64, u64) {
    (run.start.as_u64(), run.start.as_u64().wrapping_add(run.bytes.into()))
}

/// Takes `bytes` off the end of `piece`.
fn shorten(piece: &mut Vec<HostRun>, mut bytes: u64) {
    while let Some(last) = piece.last_mut()
        && bytes > 0
    {
        if u64::from(last.bytes) > bytes {
            // Smaller than a run's length, so it fits.
            last.bytes -= bytes as u32;
            return;
        }
        bytes -= u64::from(last.bytes);
        piece.pop();
    }
}

/// The most sectors of one piece of an operation that moves no data: whole blocks, at least one.
pub(crate) fn dataless_sectors(op: Op, sectors: u32, geometry: &Geometry) -> u32 {
    let most_sectors = match op {
        Op::Discard => geometry.max_discard_sectors,
        Op::WriteZeroes => geometry.max_write_zeroes_sectors,
        Op::Read | Op::Write | Op::WriteThrough | Op::Flush => sectors,
    };
    let block_sectors = geometry.sectors_per_block();
    sectors.min((most_sectors / block_sectors).max(1).saturating_mul(block_sectors))
}

/// Copies runs into `into` (replacing what is there), dropping empty ones and joining neighbours; returns their bytes.
pub(crate) fn join_runs(runs: &[HostRun], into: &mut Vec<HostRun>) -> u64 {
    into.clear();
    let mut bytes = 0_u64;
    for run in runs.iter().filter(|run| run.bytes > 0) {
        bytes += u64::from(run.bytes);
        if let Some(last) = into.last_mut()
            && last.start.checked_add(last.bytes.into()) == Some(run.start)
            && let Some(joined_bytes) = last.bytes.checked_add(run.bytes)
        {
            last.bytes = joined_bytes;
        } else {
            into.push(*run);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::geometry;
    use addr::Hpa;
    use proptest::prelude::*;

    fn run(start: u64, bytes: u32) -> HostRun {
        HostRun { start: Hpa::new(start), bytes }
    }

    #[test]
    fn neighbours_are_joined_and_empty_runs_dropped() {
        let mut joined = Vec::new();
        let runs = [run(0x1000, 0x1000), run(0x9000, 0), run(0x2000, 0x200), run(0x5000, 0x200)];
        assert_eq!(join_runs(&runs, &mut joined), 0x1400);
        assert_eq!(joined, [run(0x1000, 0x1200), run(0x5000, 0x200)]);
    }

    #[test]
    fn joining_never_wraps() {
        let mut joined = Vec::new();
        let runs = [run(0, u32::MAX), run(u64::from(u32::MAX), 1), run(u64::MAX, 5), run(4, 4)];
        join_runs(&runs, &mut joined);
        assert_eq!(joined, runs);
    }

    #[test]
    fn a_block_in_too_many_runs_is_refused() {
        let geometry = Geometry { max_runs: 3, ..geometry() };
        let runs: Vec<_> = (0..4).map(|index| run(index * 0x1000, 128)).collect();
        assert_eq!(Cursor::default().cut(&runs, 1, &geometry, &mut Vec::new()), None);
    }

    #[test]
    fn a_piece_ends_where_pages_do_not_meet() {
        let geometry = Geometry { run_boundary_bytes: 4096, run_alignment_bytes: 4, ..geometry() };
        let runs = [run(0x1200, 0xe00), run(0x5000, 0x1000), run(0x9000, 0x600), run(0xb000, 0x400)];
        let (mut cursor, mut piece) = (Cursor::default(), Vec::new());
        assert_eq!(cursor.cut(&runs, 18, &geometry, &mut piece), Some(18));
        assert_eq!(piece, runs[..3]);
        assert_eq!(cursor.cut(&runs, 2, &geometry, &mut piece), Some(2));
        assert_eq!(piece, runs[3..]);
    }

    #[test]
    fn a_block_that_breaks_the_rules_goes_alone() {
        let geometry = Geometry { run_boundary_bytes: 4096, run_alignment_bytes: 4, max_runs: 2, ..geometry() };
        let runs = [run(0x1001, 512), run(0x2000, 100), run(0x3000, 100), run(0x4000, 312), run(0x5000, 0x1000)];
        let (mut cursor, mut piece) = (Cursor::default(), Vec::new());
        assert_eq!(cursor.cut(&runs, 10, &geometry, &mut piece), Some(1));
        assert_eq!(piece, runs[..1]);
        assert_eq!(cursor.cut(&runs, 9, &geometry, &mut piece), Some(1));
        assert_eq!(piece, runs[1..4]);
        assert_eq!(cursor.cut(&runs, 8, &geometry, &mut piece), Some(8));
        assert_eq!(piece, runs[4..]);
    }

    #[test]
    fn dataless_pieces_are_whole_blocks() {
        let geometry = Geometry { logical_block_bytes: 4096, max_discard_sectors: 100, ..geometry() };
        assert_eq!(dataless_sectors(Op::Discard, 1000, &geometry), 96);
        assert_eq!(dataless_sectors(Op::Discard, 8, &geometry), 8);
        let geometry = Geometry { max_write_zeroes_sectors: 0, ..geometry };
        assert_eq!(dataless_sectors(Op::WriteZeroes, 64, &geometry), 8);
    }

    proptest! {
        #[test]
        fn pieces_cover_the_transfer_in_order(
            lengths in prop::collection::vec(1_u32..3000, 1..40),
            max_runs in 1_u16..8,
            max_run_bytes in 1_u32..4096,
            max_blocks in 1_u32..8,
            block_shift in 0_u32..3,
            alignment_shift in 0_u32..3,
            boundary_shift in 0_u32..13,
        ) {
            let block_bytes = SECTOR_BYTES << block_shift;
            let geometry = Geometry {
                logical_block_bytes: block_bytes,
                run_alignment_bytes: 1 << alignment_shift,
                run_boundary_bytes: 1 << boundary_shift,
                max_runs,
                max_run_bytes,
                max_transfer_bytes: max_blocks * block_bytes,
                ..geometry()
            };
            let mut lengths = lengths;
            let short_bytes = lengths.iter().sum::<u32>() % block_bytes;
            lengths.push(block_bytes - short_bytes);
            let runs: Vec<_> = lengths.iter().zip(1_u64..).map(|(bytes, at)| run(at << 20, *bytes)).collect();
            let flat = |runs: &[HostRun]| -> Vec<u64> {
                runs.iter().flat_map(|run| (0..u64::from(run.bytes)).map(|at| run.start.as_u64() + at)).collect()
            };
            let whole = flat(&runs);
            let mut left_sectors = lengths.iter().sum::<u32>() / SECTOR_BYTES;
            let (mut cursor, mut piece, mut seen) = (Cursor::default(), Vec::new(), Vec::new());
            while left_sectors > 0 {
                let Some(sectors) = cursor.cut(&runs, left_sectors, &geometry, &mut piece) else {
                    // Refused only where a block really does not fit into the allowed runs.
                    prop_assert!(usize::from(max_runs) < 60);
                    return Ok(());
                };
                let is_single = Rules::of(&geometry).are_any() && sectors * SECTOR_BYTES == block_bytes;
                prop_assert!(geometry.admits_runs(&piece) || is_single);
                prop_assert!(piece.iter().all(|run| run.bytes > 0));
                prop_assert!(sectors * SECTOR_BYTES <= geometry.max_transfer_bytes);
                prop_assert_eq!(sectors % geometry.sectors_per_block(), 0);
                prop_assert_eq!(piece.iter().map(|run| run.bytes).sum::<u32>(), sectors * SECTOR_BYTES);
                seen.extend(flat(&piece));
                left_sectors -= sectors;
            }
            prop_assert_eq!(seen, whole);
        }
    }
}
