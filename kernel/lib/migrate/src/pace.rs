//! How fast pages leave: batches filled from a [`Source`], what they cost, and whether compression pays.
//!
//! [`Pace`] measures, it does not guess: what a page takes to send decides when the guest stops, and a page is compressed
//! as long as the time that saves on the link is more than the time that it takes.

use crate::delta::Copies;
use crate::pages::{self, BATCH_PAGES_MAX, PAGE, RECORD_BYTES_MAX};
use crate::source::{Phase, Source};
use crate::wire::{MESSAGE_BYTES_MAX, PAGES_KIND};
use addr::{Gpa, PAGE_BYTES};
use alloc::boxed::Box;
use alloc::vec::Vec;
use guestmem::{GuestMemory, Outside, PageSet};

/// How long pages are counted for one measurement.
const WINDOW_NS: u64 = 20_000_000;
/// So many pages of zeroes cost about as much as one of data.
const ZEROES_A_PAGE: u64 = 16;
/// While compression does not pay, every so many pages one is tried.
const TRIAL_PAGES: u64 = 64;

/// A page that was never used.
static ZEROES: [u8; PAGE] = [0; PAGE];

/// What was sent.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Pages that were only a marker.
    pub zero: u64,
    /// Pages sent as they were.
    pub raw: u64,
    /// Pages compressed.
    pub lz4: u64,
    /// Pages of which only what changed was sent.
    pub delta: u64,
    /// Bytes of all batches.
    pub bytes: u64,
}

/// The speed of one migration.
pub struct Pace {
    counts: Counts,
    /// What a page of data takes to send, smoothed; 0 before the first measurement.
    page_ns: u64,
    bytes_per_s: u64,
    window: Option<Window>,
    /// What compressing a page took and left, smoothed.
    packing_ns: u64,
    packed_bytes: u64,
    untried: u64,
    /// Pages that the guest wrote to since the move began: most will be written again.
    written: PageSet,
    /// Those of them that were sent, as they were then. None before the first look.
    copies: Copies,
    page: Box<[u8; PAGE]>,
    packed: Vec<u8>,
}

/// A measurement under way.
#[derive(Clone, Copy)]
struct Window {
    start_ns: u64,
    before: Counts,
    packing_ns: u64,
}

impl Pace {
    /// Nothing is known yet: compression is tried.
    pub fn new() -> Self {
        Self {
            counts: Counts::default(),
            page_ns: 0,
            bytes_per_s: 0,
            window: None,
            packing_ns: 0,
            packed_bytes: 0,
            untried: 0,
            written: PageSet::default(),
            copies: Copies::none(),
            page: Box::new([0; PAGE]),
            packed: alloc::vec![0; pages::packed_bytes_max()],
        }
    }

    /// What was sent so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What a page takes to send.
    pub fn page_ns(&self) -> u64 {
        self.page_ns
    }

    /// Bytes a second, as last measured.
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    /// A look is done: this was written since the last.
    pub fn looked(&mut self, source: &Source, written: &PageSet) {
        if self.written.end() == 0
            && let Some(none) = PageSet::new(written.end())
        {
            self.written = none;
            self.copies = Copies::new(source.pages());
        }
        if self.written.end() == written.end() {
            self.written.merge(written);
        }
    }

    /// Appends a message with the next pages to `out`, and nothing where there is none to send. `now` is the clock.
    pub fn fill(
        &mut self,
        source: &mut Source,
        memory: &GuestMemory,
        now: &dyn Fn() -> u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Outside> {
        self.fill_at_most(BATCH_PAGES_MAX, source, memory, now, out)
    }

    /// The same with so many pages at most.
    pub fn fill_at_most(
        &mut self,
        pages_max: usize,
        source: &mut Source,
        memory: &GuestMemory,
        now: &dyn Fn() -> u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Outside> {
        if source.phase() == Phase::Serving {
            // The target's old pages are gone.
            self.copies = Copies::none();
        }
        let start = out.len();
        let window = *self.window.get_or_insert_with(|| Window { start_ns: now(), before: self.counts, packing_ns: 0 });
        let mut packing_ns = window.packing_ns;
        let mut last_zero = None;
        for _ in 0..pages_max.min(BATCH_PAGES_MAX) {
            if out.len() - start + RECORD_BYTES_MAX > MESSAGE_BYTES_MAX {
                break;
            }
            let Some(page) = source.take_page() else { break };
            if out.len() == start {
                out.push(PAGES_KIND);
            }
            if memory.is_zero_page(page)? {
                last_zero = Some(pages::encode_zero(out, page, last_zero));
                self.counts.zero += 1;
                self.copies.sent(page, &ZEROES, false);
                continue;
            }
            memory.read(Gpa::new(page * PAGE_BYTES), &mut *self.page)?;
            if let Some(copy) = self.copies.of(page)
                && pages::encode_delta(out, page, copy, &self.page)
            {
                self.counts.delta += 1;
            } else {
                packing_ns += self.encode(page, now, out);
                self.copies.sent(page, &self.page, self.written.contains(page));
            }
        }
        self.counts.bytes += (out.len() - start) as u64;
        self.window = Some(Window { packing_ns, ..window });
        self.measure(now());
        source.advance();
        Ok(())
    }

    /// Appends a page of data; gives the time that compression took.
    fn encode(&mut self, page: u64, now: &dyn Fn() -> u64, out: &mut Vec<u8>) -> u64 {
        self.untried += 1;
        if !self.compression_pays() && self.untried < TRIAL_PAGES {
            self.counts.raw += 1;
            pages::encode_raw(out, page, &self.page);
            return 0;
        }
        self.untried = 0;
        let (start_ns, before) = (now(), out.len());
        if pages::encode_lz4(out, page, &self.page, &mut self.packed) {
            self.counts.lz4 += 1;
        } else {
            self.counts.raw += 1;
            pages::encode_raw(out, page, &self.page);
        }
        let took_ns = now().saturating_sub(start_ns);
        self.packing_ns = smooth(self.packing_ns, took_ns);
        self.packed_bytes = smooth(self.packed_bytes, (out.len() - before) as u64);
        took_ns
    }

    fn compression_pays(&self) -> bool {
        let saved_bytes = (RECORD_BYTES_MAX as u64).saturating_sub(self.packed_bytes);
        self.bytes_per_s == 0 || saved_bytes * 1_000_000_000 / self.bytes_per_s > self.packing_ns
    }

    fn measure(&mut self, now_ns: u64) {
        let Some(window) = self.window else { return };
        let elapsed_ns = now_ns.saturating_sub(window.start_ns);
        if elapsed_ns < WINDOW_NS {
            return;
        }
        let (before, after) = (window.before, self.counts);
        let (data, delta) = (after.raw + after.lz4 - before.raw - before.lz4, after.delta - before.delta);
        let pages = data + delta + (after.zero - before.zero) / ZEROES_A_PAGE;
        let bytes = after.bytes - before.bytes;
        if let Some(page_ns) = elapsed_ns.checked_div(pages) {
            self.page_ns = smooth(self.page_ns, page_ns);
        }
        // What the link takes: the time in which pages were compressed is not its own.
        let link_ns = elapsed_ns.saturating_sub(window.packing_ns).max(1);
        // Deltas fill no link.
        if data > delta {
            self.bytes_per_s = smooth(self.bytes_per_s, bytes.saturating_mul(1_000_000_000) / link_ns);
        }
        self.window = Some(Window { start_ns: now_ns, before: after, packing_ns: 0 });
    }

    /// The next fill comes after a pause that was not the link's.
    pub fn interrupt(&mut self) {
        self.window = None;
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}

/// The mean of what was known and what is new; the first is taken as it is.
fn smooth(known: u64, new: u64) -> u64 {
    if known == 0 { new } else { (known + new) / 2 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Id, Settings};
    use guestmem::heap::guest_memory;
    use std::cell::Cell;

    fn source(memory: &GuestMemory) -> Source {
        let mut source = Source::new(Id::default(), Settings::default(), memory.all_pages().unwrap(), 0).unwrap();
        source.accepted();
        source
    }

    #[test]
    fn a_batch_fits_a_message_and_zero_pages_cost_a_marker() {
        let memory = guest_memory(addr::LARGE_PAGE_BYTES);
        for page in 0..100 {
            memory.write(Gpa::new(page * 4096), &[page as u8 + 1; 64]).unwrap();
        }
        let (mut source, mut pace) = (source(&memory), Pace::new());
        let mut batches = 0;
        while source.wants_pages() {
            let mut out = Vec::new();
            pace.fill(&mut source, &memory, &|| 0, &mut out).unwrap();
            assert!(out.len() <= MESSAGE_BYTES_MAX && out[0] == PAGES_KIND);
            batches += 1;
        }
        let Counts { zero, raw, lz4, delta, bytes } = pace.counts();
        assert_eq!((zero, raw + lz4, delta), (412, 100, 0));
        assert!(batches >= 1 && bytes < 100 * 4096);
    }

    #[test]
    fn memory_that_was_never_used_is_markers_and_stays_unused() {
        struct Nothing;
        impl guestmem::Supply for Nothing {
            fn supply(&self, _number: usize, _at_once: bool) -> Option<addr::Hpa> {
                None
            }
        }
        let heap = std::sync::Arc::new(guestmem::heap::Heap::new(addr::LARGE_PAGE_BYTES));
        let mut memory = GuestMemory::new(heap).with_supply(std::sync::Arc::new(Nothing));
        memory.add_unused_slot(Gpa::new(0), 1);
        let (mut source, mut pace) = (source(&memory), Pace::new());
        pace.page.fill(7);
        let mut out = Vec::new();
        pace.fill(&mut source, &memory, &|| 0, &mut out).unwrap();
        assert_eq!((pace.counts().zero, out.len()), (512, 1 + pages::HEADER_BYTES));
        assert_eq!(memory.absent_bytes(), addr::LARGE_PAGE_BYTES);
    }

    #[test]
    fn a_page_that_is_written_again_is_sent_as_what_changed() {
        let memory = guest_memory(addr::LARGE_PAGE_BYTES);
        let mut written = PageSet::new(memory.pages_end()).unwrap();
        written.insert(20, 8);
        let (mut source, mut pace) = (source(&memory), Pace::new());
        let mut round = |fill: u8| {
            (18..28).for_each(|page| memory.write(Gpa::new(page * 4096 + 77), &[fill]).unwrap());
            let (before, number) = (pace.counts(), source.round());
            while source.round() == number {
                pace.fill(&mut source, &memory, &|| 0, &mut Vec::new()).unwrap();
                pace.looked(&source, &written);
                // Nothing fits the downtime: there is another round.
                source.looked(&written, u64::MAX, 0, 0);
            }
            let after = pace.counts();
            (after.raw + after.lz4 - before.raw - before.lz4, after.delta - before.delta)
        };
        // The first batch is all of it; a page is kept once it is known to be written.
        assert_eq!([round(1), round(2), round(3)], [(10, 0), (8, 0), (0, 8)]);
    }

    #[test]
    fn compression_stops_where_the_link_is_faster() {
        let mut pace = Pace::new();
        assert!(pace.compression_pays(), "it is tried first");
        (pace.packing_ns, pace.packed_bytes) = (20_000, 1000);
        // A page saves 3,104 bytes: 31 us at 100 MB/s, 3 us at 1 GB/s.
        pace.bytes_per_s = 100_000_000;
        assert!(pace.compression_pays());
        pace.bytes_per_s = 1_000_000_000;
        assert!(!pace.compression_pays());
    }

    #[test]
    fn a_page_costs_what_a_window_says() {
        let memory = guest_memory(addr::LARGE_PAGE_BYTES);
        for page in 0..512 {
            memory.write(Gpa::new(page * 4096), &[1]).unwrap();
        }
        let ns = Cell::new(0);
        let (mut source, mut pace) = (source(&memory), Pace::new());
        while source.wants_pages() {
            pace.fill(&mut source, &memory, &|| ns.get(), &mut Vec::new()).unwrap();
            ns.set(ns.get() + 512 * 1000 * 1000);
        }
        pace.measure(ns.get());
        assert_eq!(pace.page_ns(), 1_000_000);
    }
}
