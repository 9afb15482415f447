//! A life that runs before all of its memory is here: what is not, is in nobody's reach until it has come.
//!
//! [`start`] before the life runs, [`store`] for each page that comes, [`stop`] once none is awaited. Where all of it comes,
//! and by whole frames, [`start_all`] and [`show`] take their places. What waits for a page and tries again is `machine`'s to
//! know. CPU 0 alone calls this.

use super::{Running, tracking};
use crate::host::Host;
use addr::{Gpa, Hpa, LARGE_PAGE_BYTES, PAGE_BYTES};
use alloc::string::ToString;
use alloc::sync::Arc;
use guestmem::{Outside, PageSet};
use nested::{PageSize, Retired};

/// Takes pages away that are on their way here, or says in one line why that cannot be.
pub fn start(running: &Running, pages: &PageSet) -> Result<(), alloc::string::String> {
    let mut second_stage = running.second_stage();
    let unmapped = pages.iter().try_for_each(|page| second_stage.unmap(Gpa::new(page * PAGE_BYTES)));
    let no_room = || "there is no memory to keep track of pages that follow".to_string();
    unmapped.map_err(|_| no_room())?;
    running.machine.memory().start_waiting(pages).map_err(|_| no_room())
}

/// Takes all of its memory away, or says in one line why that cannot be.
pub fn start_all(running: &Running) -> Result<(), alloc::string::String> {
    let no_room = || "there is no memory to keep track of frames that follow".to_string();
    let memory = running.machine.memory();
    let pages = memory.all_pages().map_err(|_| no_room())?;
    let mut second_stage = running.second_stage();
    let is_away = memory.all_frames().all(|(gpa, _)| second_stage.unmap_large(gpa));
    drop(second_stage);
    let waits = memory.start_waiting(&pages);
    if is_away && waits.is_ok() { Ok(()) } else { Err(no_room()) }
}

/// Puts a frame whose content has come in everybody's reach; says whether somebody waits for it.
pub fn show(running: &Running, gpa: Gpa, frame: Hpa) -> bool {
    let mapped = running.second_stage().map(gpa, frame, PageSize::Large);
    mapped.expect("its table is there since it was taken away");
    running.machine.memory().arrived(gpa.as_u64() / PAGE_BYTES, LARGE_PAGE_BYTES / PAGE_BYTES)
}

/// Puts a page that came, or zeroes, in everybody's reach; says whether somebody waits for it.
pub fn store(running: &Running, page: u64, content: Option<&[u8; PAGE_BYTES as usize]>) -> Result<bool, Outside> {
    let (memory, gpa) = (running.machine.memory(), Gpa::new(page * PAGE_BYTES));
    let is_wanted = memory.put(page, content)?;
    let frame = memory.touch(gpa).ok_or(Outside { at: gpa })?;
    let hpa = frame.wrapping_add(gpa.offset_in(LARGE_PAGE_BYTES));
    let mapped = running.second_stage().map(gpa, hpa, PageSize::Small);
    mapped.expect("its table is there since it was taken away");
    Ok(is_wanted)
}

/// Everything is here: pages become large again. Gives the tables that nobody walks any more once every vCPU has forgotten
/// its translations.
pub fn stop(host: &'static Host, running: &Arc<Running>) -> Retired {
    running.machine.memory().stop_waiting();
    tracking::stop(host, running)
}
