//! Saved machines from anybody: an image's header and stream, and the board, a firmware's devices and the local APIC in
//! one, which then go on.
#![no_main]

use addr::{Gpa, LARGE_PAGE_BYTES};
use chipset::saved::{Board, Flash, LocalApic};
use chipset::{Chipset, Clock, Lapic};
use firmware::fw_cfg::{self, DATA_PORT, DMA_HIGH_PORT, FwCfg};
use guestmem::heap::guest_memory;
use libfuzzer_sys::fuzz_target;
use state::image::{Contents, Frame, Header};
use state::{Kind, Reader};

const BOARD: Kind = Kind { number: 1, name: "board", version: 1 };
const LAPIC: Kind = Kind { number: 2, name: "local APIC", version: 1 };
/// The flash's size; what follows in its memory is nobody's.
const FLASH_BYTES: usize = 3 * 4096;

fuzz_target!(|data: &[u8]| {
    // Most inputs would fail the checksum alone: the bodies are read without the stream, too.
    if let Ok(mut reader) = Reader::parse(data) {
        let _ = reader.take::<Board>(BOARD, 0).map(|saved| saved.map(board));
        let _ = reader.take::<LocalApic>(LAPIC, 0).map(|saved| saved.map(lapic));
        let _ = reader.finish();
    }
    if let Some(block) = data.first_chunk() {
        let _ = Header::parse(block, 1 << 30);
    }
    let _ = Contents::parse(data, 1 << 30);
    let _ = minicbor::decode::<Vec<Frame>>(data)
        .map(|frames| frames.iter().map(|frame| frame.runs().count()).sum::<usize>());
    let _ = minicbor::decode(data).map(board);
    let _ = minicbor::decode(data).map(lapic);
    let _ = minicbor::decode(data).map(flash);
    let _ = minicbor::decode(data).map(items);
});

fn board(saved: Board) {
    let Ok(mut board) = Chipset::new(0, 1 << 30).restore(&saved) else { return };
    assert_eq!(board.save(), saved_again(&saved, &board), "what is restored is what was saved");
    let mut effects = Vec::new();
    for ns in [0, 1, 1 << 40, 1 << 61] {
        let clock = Clock { ns, tsc: ns };
        for port in [0x3f8, 0x3fa, 0x20, 0x40, 0x42, 0x61, 0x64, 0x71, 0x600, 0x608] {
            board.port_read(port, 1, clock, &mut effects);
        }
        board.advance(clock, &mut effects);
    }
}

/// What a board saves that lacks nothing; what it lacked came from reset.
fn saved_again(saved: &Board, board: &Chipset) -> Board {
    let reset = board.save();
    Board {
        uart: saved.uart.clone().or(reset.uart),
        pics: saved.pics.clone().or(reset.pics),
        pit: saved.pit.clone().or(reset.pit),
        rtc: saved.rtc.clone().or(reset.rtc),
        keyboard: saved.keyboard.clone().or(reset.keyboard),
        ioapic: saved.ioapic.clone().or(reset.ioapic),
        power: saved.power.clone().or(reset.power),
        hotplug: saved.hotplug.clone().filter(|hotplug| *hotplug != Default::default()),
        ..*saved
    }
}

fn lapic(saved: LocalApic) {
    let Ok(mut lapic) = Lapic::restore(0, true, 2_000_000, &saved) else { return };
    assert_eq!(lapic.save(), saved, "what is restored is what was saved");
    for ns in [0, 1, 1 << 40, 1 << 61] {
        let clock = Clock { ns, tsc: ns };
        lapic.advance(clock);
        let _ = (lapic.pending(), lapic.deadline_ns(clock), lapic.read_msr(0x839, clock));
    }
}

fn flash(saved: Flash) {
    let cells = guest_memory(LARGE_PAGE_BYTES);
    let mut chip = chipset::Flash::new(cells, FLASH_BYTES);
    let before = chip.save();
    if chip.restore(&saved).is_err() {
        return assert_eq!(chip.save(), before, "nothing has changed");
    }
    assert!(!chip.has_written(), "what is restored is not written");
    for (at, value) in [(0, 0x33), (1, 0xd0), (4095, 0xff), (FLASH_BYTES as u64, 0x10)] {
        chip.read(at, 4);
        chip.write(at, 1, value);
    }
    assert_eq!(chip.cells().load(Gpa::new(FLASH_BYTES as u64), 8), Ok(0), "behind the chip");
}

fn items(saved: fw_cfg::Saved) {
    let Ok(mut device) = FwCfg::restore(&saved) else { return };
    assert_eq!(device.save(), saved, "what is restored is what was saved");
    let memory = guest_memory(LARGE_PAGE_BYTES);
    device.port_read(DATA_PORT, 1);
    device.port_write(DMA_HIGH_PORT, 4, 0);
    device.port_write(DMA_HIGH_PORT + 4, 4, 0);
    device.transfer(&memory);
}
