//! What a guest is shown of AMX: its tiles, in leaves that few processors have. The main type is [`Tiles`].
//!
//! SDM volume 1, chapter 18; volume 2, CPUID, leaves 0Dh, 1Dh and 1Eh. Of palettes the first is shown, and of what tiles are
//! multiplied by what every processor with AMX has; leaf 7.1, which names more, is not shown. Linux that sees AMX without
//! IA32_XFD, which every processor has with it, does not start.

use super::saved::{leaf, words};
use super::{CpuProfile, Leaf};

/// TILECFG and TILEDATA, as bits of XCR0, which allows both or neither.
pub(super) const COMPONENTS: u32 = 1 << TILECFG | 1 << TILEDATA;
const TILECFG: usize = 17;
const TILEDATA: usize = 18;
/// Leaf 7 EDX: AMX-BF16, AMX-TILE, AMX-INT8.
pub(super) const FEATURES_7_EDX: u32 = 1 << 22 | TILE | 1 << 25;
const TILE: u32 = 1 << 24;
/// Leaf 0Dh, subleaf 1, EAX: IA32_XFD; subleaves of components, ECX: it has a bit there.
pub(super) const XFD: u32 = 1 << 4;
const IS_IN_XFD: u32 = 1 << 2;

/// The leaves of palettes and of TMUL, the last that is shown.
pub(super) const PALETTES: u32 = 0x1d;
pub(super) const MULTIPLIER: u32 = 0x1e;

/// What a processor with AMX says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tiles {
    /// Subleaves of leaf 0Dh.
    config: Leaf,
    data: Leaf,
    /// The first palette.
    palette: Leaf,
    multiplier: Leaf,
}

impl Tiles {
    /// Those of a host, if it has all that belongs to them.
    pub fn of(host: &impl Fn(u32, u32) -> Leaf) -> Option<Self> {
        let has_all =
            host(7, 0).edx & TILE != 0 && host(0xd, 0).eax & COMPONENTS == COMPONENTS && host(0xd, 1).eax & XFD != 0;
        let palette = host(PALETTES, 1);
        let has_palette = host(PALETTES, 0).eax != 0 && palette != Leaf::default();
        (has_all && has_palette).then(|| Self {
            config: host(0xd, TILECFG as u32),
            data: host(0xd, TILEDATA as u32),
            palette,
            multiplier: Leaf { ebx: host(MULTIPLIER, 0).ebx, ..Leaf::default() },
        })
    }

    /// The components of XCR0, with their numbers.
    pub fn components(&self) -> [(usize, Leaf); 2] {
        [(TILECFG, self.config), (TILEDATA, self.data)]
    }

    /// Their saved form.
    pub fn save(&self) -> [[u32; 4]; 4] {
        [self.config, self.data, self.palette, self.multiplier].map(words)
    }

    /// From that.
    pub fn restore(saved: [[u32; 4]; 4]) -> Self {
        let [config, data, palette, multiplier] = saved.map(leaf);
        Self { config, data, palette, multiplier }
    }
}

impl CpuProfile {
    /// The bits of IA32_XFD and IA32_XFD_ERR that a guest may set; without any it has neither.
    pub fn xfd_bits(&self) -> u64 {
        if self.xsave[1].eax & XFD == 0 {
            return 0;
        }
        self.components()
            .fold(0, |bits, (index, component)| bits | if component.ecx & IS_IN_XFD != 0 { 1 << index } else { 0 })
    }

    /// A subleaf of the leaves of palettes and of TMUL.
    pub(super) fn leaf_of_tiles(&self, leaf: u32, subleaf: u32) -> Leaf {
        match (self.tiles, leaf, subleaf) {
            // The number of the last palette.
            (Some(_), PALETTES, 0) => Leaf { eax: 1, ..Leaf::default() },
            (Some(tiles), PALETTES, 1) => tiles.palette,
            (Some(tiles), MULTIPLIER, 0) => tiles.multiplier,
            _ => Leaf::default(),
        }
    }

    /// Takes away what is of no use without tiles, or else tiles where a guest is not offered them.
    pub(super) fn close_tiles(&mut self) {
        let has_all = self.basic[7].edx & TILE != 0
            && self.xsave[0].eax & COMPONENTS == COMPONENTS
            && self.xsave[1].eax & XFD != 0;
        if self.tiles.is_none() || !has_all {
            self.tiles = None;
            self.xsave[0].eax &= !COMPONENTS;
            self.xsave[1].eax &= !XFD;
            self.basic[7].edx &= !FEATURES_7_EDX;
        }
    }
}
