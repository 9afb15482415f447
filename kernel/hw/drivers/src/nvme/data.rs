//! How a transfer's memory is described to the controller: physical region pages (NVM Express Base Specification 2.0,
//! section 4.1.1) or a scatter-gather list (section 4.1.2), both straight from the transfer's runs.
//!
//! The main function is [`describe`]; [`super::lane`] lends it a page where a list or a copy is needed.

use super::command::Data;
use super::identify::{PAGE_BYTES, Sgl};
use block::HostRun;

const PAGE: u64 = PAGE_BYTES as u64;
/// Entries of a list of physical region pages that fills a page, and so pages of a transfer at most but one.
pub(super) const PRP_ENTRIES: usize = PAGE_BYTES as usize / 8;
/// Descriptors of a scatter-gather list that fills a page.
pub(super) const SGL_DESCRIPTORS: usize = PAGE_BYTES as usize / 16;

/// SGL descriptor types (figure 92), in the last byte of a descriptor.
const DATA_BLOCK: u64 = 0;
const LAST_SEGMENT: u64 = 3 << 60;

/// How a transfer is described.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Plan {
    /// By the command alone.
    Direct(Data),
    /// By a list of addresses in a page of its own, after the first address.
    PrpList(u64),
    /// By a list of descriptors in a page of its own.
    SglList,
    /// It breaks the rules of the controller's lists: it is copied through a page of its own.
    Copy,
}

/// Decides how runs are described: by what needs no list, else by the shorter list.
pub(super) fn describe(runs: &[HostRun], sgl: Sgl) -> Plan {
    let is_paged = is_paged(runs);
    let mut addresses = page_addresses(runs);
    if is_paged && let (Some(first), second, None) = (addresses.next(), addresses.next(), addresses.next()) {
        return Plan::Direct(Data::Prp(first, second.unwrap_or(0)));
    }
    let is_listable = match sgl {
        Sgl::None => false,
        Sgl::Bytes => true,
        Sgl::Words => runs.iter().all(|run| run.start.is_aligned(4) && run.bytes.is_multiple_of(4)),
    };
    let is_listable = is_listable && runs.len() <= SGL_DESCRIPTORS;
    let pages = page_addresses(runs).count();
    match runs {
        [run] if is_listable => Plan::Direct(Data::Sgl(descriptor(run))),
        // A descriptor is as long as two addresses.
        [first, ..] if is_paged && pages <= PRP_ENTRIES + 1 && (!is_listable || pages < 2 * runs.len()) => {
            Plan::PrpList(first.start.as_u64())
        }
        _ if is_listable => Plan::SglList,
        _ => Plan::Copy,
    }
}

/// Whether pages describe the runs: the first starts on a multiple of 4, and they meet at page boundaries only.
fn is_paged(runs: &[HostRun]) -> bool {
    let starts = runs.first().is_some_and(|run| run.start.as_u64().is_multiple_of(4));
    let meets = |pair: &[HostRun]| {
        let end = pair[0].start.as_u64().wrapping_add(pair[0].bytes.into());
        end.is_multiple_of(PAGE) && pair[1].start.as_u64().is_multiple_of(PAGE)
    };
    starts && runs.windows(2).all(meets)
}

/// The address of each run's first byte and of every further page that it reaches into.
pub(super) fn page_addresses(runs: &[HostRun]) -> impl Iterator<Item = u64> {
    runs.iter().flat_map(|run| {
        let start = run.start.as_u64();
        let pages = (start % PAGE + u64::from(run.bytes)).div_ceil(PAGE);
        let page = start - start % PAGE;
        (0..pages).map(move |index| if index == 0 { start } else { page.wrapping_add(index * PAGE) })
    })
}

/// The data block descriptor of a run.
pub(super) fn descriptor(run: &HostRun) -> [u64; 2] {
    [run.start.as_u64(), u64::from(run.bytes) | DATA_BLOCK]
}

/// The descriptor of a list of so many descriptors, all there are.
pub(super) fn segment(at: u64, descriptors: usize) -> [u64; 2] {
    [at, (16 * descriptors as u64) | LAST_SEGMENT]
}

#[cfg(test)]
mod tests {
    use super::*;
    use addr::Hpa;

    fn run(start: u64, bytes: u32) -> HostRun {
        HostRun { start: Hpa::new(start), bytes }
    }

    #[test]
    fn what_two_entries_hold_needs_no_list() {
        let direct = |runs: &[HostRun]| describe(runs, Sgl::Bytes);
        assert_eq!(direct(&[run(0x1200, 512)]), Plan::Direct(Data::Prp(0x1200, 0)));
        assert_eq!(direct(&[run(0x1200, 0x1000)]), Plan::Direct(Data::Prp(0x1200, 0x2000)));
        assert_eq!(direct(&[run(0x1e00, 0x200), run(0x9000, 0x200)]), Plan::Direct(Data::Prp(0x1e00, 0x9000)));
    }

    #[test]
    fn long_transfers_take_the_list_that_there_is() {
        let runs = [run(0x1e00, 0x200), run(0x4000, 0x2000), run(0x9000, 0x200)];
        assert_eq!(describe(&runs, Sgl::None), Plan::PrpList(0x1e00));
        assert_eq!(page_addresses(&runs).collect::<Vec<_>>(), [0x1e00, 0x4000, 0x5000, 0x9000]);
        assert_eq!(describe(&runs, Sgl::Words), Plan::PrpList(0x1e00));
        assert_eq!(describe(&[runs[0], run(0x4000, 0x9000)], Sgl::Words), Plan::SglList);
        assert_eq!(describe(&runs[1..2], Sgl::None), Plan::Direct(Data::Prp(0x4000, 0x5000)));
        assert_eq!(describe(&[run(0x4000, 0x9000)], Sgl::Bytes), Plan::Direct(Data::Sgl([0x4000, 0x9000])));
        assert_eq!(describe(&[run(0xe00, 2 << 20)], Sgl::None), Plan::PrpList(0xe00));
        assert_eq!(describe(&[run(0xe00, (2 << 20) + 4096)], Sgl::None), Plan::Copy);
    }

    #[test]
    fn what_breaks_the_rules_is_copied() {
        let gap = [run(0x1000, 0x100), run(0x3000, 0x100)];
        let odd = [run(0x1001, 0x200)];
        assert_eq!((describe(&gap, Sgl::None), describe(&gap, Sgl::Words)), (Plan::Copy, Plan::SglList));
        assert_eq!((describe(&odd, Sgl::None), describe(&odd, Sgl::Words)), (Plan::Copy, Plan::Copy));
        assert_eq!(describe(&odd, Sgl::Bytes), Plan::Direct(Data::Sgl([0x1001, 0x200])));
        assert_eq!(segment(0x7000, 3), [0x7000, 0x3000_0000_0000_0030]);
        let many = vec![run(0x1001, 1); 512];
        assert_eq!(describe(&many, Sgl::Bytes), Plan::Copy);
    }
}
