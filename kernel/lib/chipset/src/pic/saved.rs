//! The saved form of the interrupt controllers. The levels of their inputs are the board's.

use super::{Next, Pic, PicPair};
use minicbor::{Decode, Encode};
use state::Invalid;

/// Both controllers.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[n(0)]
    master: SavedPic,
    #[n(1)]
    slave: SavedPic,
}

#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
struct SavedPic {
    #[n(0)]
    vector: u8,
    #[n(1)]
    requests: u8,
    #[n(2)]
    mask: u8,
    #[n(3)]
    in_service: u8,
    #[n(4)]
    level: u8,
    #[n(5)]
    first: u8,
    /// The initialisation word that comes next: 2 to 4, or 0 in operation.
    #[n(6)]
    next: u8,
    #[n(7)]
    single: bool,
    #[n(8)]
    wants_icw4: bool,
    #[n(9)]
    auto_eoi: bool,
    #[n(10)]
    rotate_on_auto_eoi: bool,
    #[n(11)]
    special_fully_nested: bool,
    #[n(12)]
    special_mask: bool,
    #[n(13)]
    read_in_service: bool,
    #[n(14)]
    poll: bool,
}

impl PicPair {
    /// What restores it, together with the levels of its inputs.
    pub fn save(&self) -> Saved {
        Saved { master: self.master.save(), slave: self.slave.save() }
    }

    /// A pair that goes on where the saved one was. `lines` are the levels of its 16 inputs.
    ///
    /// # Errors
    /// Where no pair can have been there.
    pub fn restore(saved: &Saved, lines: u16) -> Result<Self, Invalid> {
        let [master_lines, slave_lines] = lines.to_le_bytes();
        let mut pair = Self::new();
        pair.master = pair.master.restored(&saved.master, master_lines)?;
        pair.slave = pair.slave.restored(&saved.slave, slave_lines)?;
        Ok(pair)
    }
}

impl Pic {
    fn save(&self) -> SavedPic {
        SavedPic {
            vector: self.vector,
            requests: self.requests,
            mask: self.mask,
            in_service: self.in_service,
            level: self.level,
            first: self.first,
            next: match self.next {
                Next::Mask => 0,
                Next::Icw2 => 2,
                Next::Icw3 => 3,
                Next::Icw4 => 4,
            },
            single: self.single,
            wants_icw4: self.wants_icw4,
            auto_eoi: self.auto_eoi,
            rotate_on_auto_eoi: self.rotate_on_auto_eoi,
            special_fully_nested: self.special_fully_nested,
            special_mask: self.special_mask,
            read_in_service: self.read_in_service,
            poll: self.poll,
        }
    }

    fn restored(&self, saved: &SavedPic, lines: u8) -> Result<Self, Invalid> {
        const WHAT: &str = "the interrupt controllers";
        let next = match saved.next {
            0 => Next::Mask,
            2 => Next::Icw2,
            3 => Next::Icw3,
            4 => Next::Icw4,
            _ => return Err(Invalid(WHAT)),
        };
        let possible = saved.vector & 7 == 0 && saved.first < 8 && saved.level & !self.level_writable == 0;
        Invalid::unless(possible, WHAT)?;
        Ok(Self {
            vector: saved.vector,
            lines,
            requests: saved.requests,
            mask: saved.mask,
            in_service: saved.in_service,
            level: saved.level,
            level_writable: self.level_writable,
            first: saved.first,
            next,
            single: saved.single,
            wants_icw4: saved.wants_icw4,
            auto_eoi: saved.auto_eoi,
            rotate_on_auto_eoi: saved.rotate_on_auto_eoi,
            special_fully_nested: saved.special_fully_nested,
            special_mask: saved.special_mask,
            read_in_service: saved.read_in_service,
            poll: saved.poll,
        })
    }
}
