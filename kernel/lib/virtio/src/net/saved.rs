//! The saved form of the network device: what its driver set by commands.

use super::filter::{Filter, TABLE_MAX, Table};
use super::{F_GUEST_ANNOUNCE, GUEST_OFFLOADS, Mac, Net, STATUS_ANNOUNCE, STATUS_LINK_UP};
use alloc::vec::Vec;
use minicbor::{Decode, Encode};
use state::Invalid;

/// Address, link, filter and offloads; what the driver settled on is the function's. Counters begin anew.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Saved {
    #[cbor(n(0), with = "minicbor::bytes")]
    mac: Mac,
    #[n(1)]
    status: u16,
    #[n(2)]
    promiscuous: bool,
    #[n(3)]
    all_multicast: bool,
    #[n(4)]
    unicast: SavedTable,
    #[n(5)]
    multicast: SavedTable,
    #[n(6)]
    guest_offloads: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
struct SavedTable {
    #[n(0)]
    addresses: Vec<[u8; 6]>,
    #[n(1)]
    overflow: bool,
}

impl Net {
    /// What restores it, beside its function.
    pub fn save(&self) -> Saved {
        let table = |table: &Table| SavedTable { addresses: table.addresses.clone(), overflow: table.overflow };
        Saved {
            mac: self.mac,
            status: self.status,
            promiscuous: self.filter.promiscuous,
            all_multicast: self.filter.all_multicast,
            unicast: table(&self.filter.unicast),
            multicast: table(&self.filter.multicast),
            guest_offloads: self.guest_offloads,
        }
    }

    /// Takes it over; the function was restored before, so that the driver's features are known.
    ///
    /// # Errors
    /// Where no driver can have brought this about.
    pub fn restore(&mut self, saved: &Saved) -> Result<(), Invalid> {
        let announces = saved.status & STATUS_ANNOUNCE == 0 || self.has(F_GUEST_ANNOUNCE);
        let status = saved.status & !(STATUS_LINK_UP | STATUS_ANNOUNCE) == 0 && announces;
        let offloads = saved.guest_offloads & !(self.features & GUEST_OFFLOADS) == 0;
        Invalid::unless(status && offloads, "its status or offloads")?;
        let table = |saved: &SavedTable| {
            Invalid::unless(saved.addresses.len() <= TABLE_MAX, "its address tables")?;
            Ok(Table { addresses: saved.addresses.clone(), overflow: saved.overflow })
        };
        self.filter = Filter {
            promiscuous: saved.promiscuous,
            all_multicast: saved.all_multicast,
            unicast: table(&saved.unicast)?,
            multicast: table(&saved.multicast)?,
        };
        self.mac = saved.mac;
        self.status = saved.status;
        self.guest_offloads = saved.guest_offloads;
        Ok(())
    }
}
