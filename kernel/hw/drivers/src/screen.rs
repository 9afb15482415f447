//! Text on the screen that the boot loader left: VGA's text mode, or a framebuffer of 32 bits a pixel. For the log, and for
//! a dying host; nobody types there.
//!
//! The main type is [`Screen`]. It only writes, since reading a framebuffer is slow: at the end of the screen it goes on
//! at the top and keeps a blank line ahead of itself, or it stops.
#![expect(unsafe_code, reason = "the screen is reached through raw pointers")]

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use virtio_drivers::Hal;

const WEIGHT: FontWeight = FontWeight::Regular;
const HEIGHT: RasterHeight = RasterHeight::Size16;
const CELL_WIDTH: u32 = get_raster_width(WEIGHT, HEIGHT) as u32;
const CELL_HEIGHT: u32 = HEIGHT.val() as u32;
/// Light grey on black, in VGA's attribute.
const ATTRIBUTE: u16 = 0x0700;
/// No screen is wider or higher, in pixels.
const SIDE_MAX: u32 = 16 << 10;

/// What a screen is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Cells of a character and an attribute.
    Text,
    /// Pixels of four bytes, three of which are colours, in whatever order: text is grey.
    Pixels,
}

/// Where a screen is, as the boot loader says.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its physical address.
    pub address: u64,
    /// Bytes from one line of cells or pixels to the next.
    pub pitch_bytes: u32,
    /// Cells or pixels in a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// What it is made of.
    pub kind: Kind,
}

/// A screen with a place where writing goes on.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    layout: Layout,
    columns: u32,
    rows: u32,
    column: u32,
    row: u32,
    stops: bool,
}

impl Screen {
    /// The screen at a place, mapped; `None` where there cannot be one.
    pub fn new<H: Hal>(layout: Layout) -> Option<Self> {
        let bytes = layout.pitch_bytes as usize * layout.height as usize;
        let screen = Self::at(layout)?;
        // SAFETY: the boot loader says that this is video memory.
        let start = unsafe { H::mmio_phys_to_virt(layout.address, bytes) };
        Some(Self { layout: Layout { address: start.as_ptr() as u64, ..layout }, ..screen })
    }

    fn at(layout: Layout) -> Option<Self> {
        let Layout { address, pitch_bytes, width, height, kind } = layout;
        let (columns, rows, unit_bytes) = match kind {
            Kind::Text => (width, height, 2),
            Kind::Pixels => (width / CELL_WIDTH, height / CELL_HEIGHT, 4),
        };
        let is_sane = width <= SIDE_MAX && height <= SIDE_MAX && pitch_bytes >= width * unit_bytes;
        let is_aligned = address.is_multiple_of(4) && pitch_bytes.is_multiple_of(unit_bytes);
        if address == 0
            || address >= 1 << 47
            || !is_sane
            || pitch_bytes > 8 * SIDE_MAX
            || !is_aligned
            || columns == 0
            || rows < 3
        {
            return None;
        }
        Some(Self { layout, columns, rows, column: 0, row: 0, stops: false })
    }

    /// Blanks all of it; writing begins at the top.
    pub fn clear(&mut self) {
        (0..self.rows).for_each(|row| self.blank(row));
        (self.row, self.column) = (0, 0);
    }

    /// From now on what finds no room is not shown, instead of going on at the top.
    pub fn stop_at_end(&mut self) {
        self.stops = true;
    }

    /// Writes text; what is no printable ASCII becomes "?".
    pub fn write(&mut self, text: &str) {
        for character in text.chars() {
            if character == '\n' || self.column == self.columns {
                self.end_line();
            }
            if character != '\n' && self.row < self.rows {
                self.draw(self.column, self.row, if matches!(character, ' '..='~') { character } else { '?' });
                self.column += 1;
            }
        }
    }

    fn end_line(&mut self) {
        self.column = 0;
        self.row = (self.row + 1).min(self.rows);
        if self.stops {
            return;
        }
        self.row %= self.rows;
        self.blank(self.row);
        self.blank((self.row + 1) % self.rows);
    }

    fn blank(&mut self, row: u32) {
        (0..self.columns).for_each(|column| self.draw(column, row, ' '));
    }

    fn draw(&mut self, column: u32, row: u32, character: char) {
        assert!(column < self.columns && row < self.rows, "inside the screen");
        if self.layout.kind == Kind::Text {
            let cell = self.place(row, column, 2) as *mut u16;
            // SAFETY: `place` gives an aligned address inside the screen, which nothing else writes but a dying host.
            return unsafe { cell.write_volatile(ATTRIBUTE | character as u16) };
        }
        let Some(raster) = get_raster(character, WEIGHT, HEIGHT) else { return };
        for (line, pixels) in (row * CELL_HEIGHT..).zip(raster.rows()) {
            for (at, &light) in (column * CELL_WIDTH..).zip(pixels) {
                let pixel = self.place(line, at, 4) as *mut u32;
                // SAFETY: as above.
                unsafe { pixel.write_volatile(u32::from(light) * 0x01_0101) };
            }
        }
    }

    fn place(&self, line: u32, at: u32, unit_bytes: u32) -> u64 {
        self.layout.address + u64::from(line) * u64::from(self.layout.pitch_bytes) + u64::from(at * unit_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use alloc::vec;
    use alloc::vec::Vec;

    fn screen(memory: &mut [u32], pitch_bytes: u32, width: u32, height: u32, kind: Kind) -> Screen {
        let address = memory.as_mut_ptr() as u64;
        Screen::at(Layout { address, pitch_bytes, width, height, kind }).unwrap()
    }

    fn lines(memory: &[u32]) -> Vec<String> {
        let bytes: Vec<u8> = memory.iter().flat_map(|word| word.to_le_bytes()).step_by(2).collect();
        bytes.chunks(10).map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    #[test]
    fn text_wraps_and_goes_on_at_the_top() {
        let mut memory = vec![0; 20];
        let mut screen = screen(&mut memory, 20, 10, 4, Kind::Text);
        screen.clear();
        screen.write("0123456789ab\ncd\u{e9}\n");
        assert_eq!(lines(&memory), ["          ", "ab        ", "cd?       ", "          "]);
        screen.write("ef\ngh");
        assert_eq!(lines(&memory), ["gh        ", "          ", "cd?       ", "ef        "]);
    }

    #[test]
    fn last_words_stop_at_the_end() {
        let mut memory = vec![0; 20];
        let mut screen = screen(&mut memory, 20, 10, 4, Kind::Text);
        screen.clear();
        screen.stop_at_end();
        screen.write("a\nb\nc\nd\ne\nf");
        assert_eq!(lines(&memory), ["a         ", "b         ", "c         ", "d         "]);
    }

    #[test]
    fn glyphs_stay_in_their_cells() {
        let (width, height) = (3 * CELL_WIDTH + 5, 3 * CELL_HEIGHT + 3);
        let mut memory = vec![0xdead_beef; (width * height) as usize];
        let mut screen = screen(&mut memory, width * 4, width, height, Kind::Pixels);
        screen.clear();
        screen.write(" H\n");
        let lit = |x: u32, y: u32| memory[(y * width + x) as usize] & 0xff_ffff;
        let cell = |column: u32, row: u32| {
            let places = (0..CELL_HEIGHT).flat_map(|y| (0..CELL_WIDTH).map(move |x| (x, y)));
            places.filter(|(x, y)| lit(column * CELL_WIDTH + x, row * CELL_HEIGHT + y) != 0).count()
        };
        assert!(cell(1, 0) > 10);
        assert_eq!((cell(0, 0), cell(2, 0), cell(0, 1)), (0, 0, 0));
        assert_eq!(memory[width as usize - 1], 0xdead_beef);
        assert_eq!(*memory.last().unwrap(), 0xdead_beef);
    }

    #[test]
    fn impossible_screens_are_refused() {
        let good = Layout { address: 0x8000_0000, pitch_bytes: 4096, width: 1024, height: 768, kind: Kind::Pixels };
        assert!(Screen::at(good).is_some());
        let bad = [
            Layout { address: 0, ..good },
            Layout { address: u64::MAX - 3, ..good },
            Layout { address: 0x8000_0001, ..good },
            Layout { pitch_bytes: 4092, ..good },
            Layout { pitch_bytes: u32::MAX, ..good },
            Layout { width: u32::MAX, ..good },
            Layout { height: u32::MAX, ..good },
            Layout { width: 1, ..good },
            Layout { height: CELL_HEIGHT, ..good },
        ];
        bad.into_iter().for_each(|layout| assert!(Screen::at(layout).is_none(), "{layout:?}"));
    }
}
