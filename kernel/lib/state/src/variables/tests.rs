use super::*;

/// Four blocks are enough.
const BYTES: usize = 4 * BLOCK_BYTES;
const SECTOR_BYTES: usize = 512;

/// Bytes, and where they go.
type Piece = (usize, Vec<u8>);

/// A partition, and what the flash holds.
struct Disk {
    bytes: Vec<u8>,
    flash: Vec<u8>,
}

impl Disk {
    fn new() -> Self {
        Self { bytes: vec![0; STORE_BYTES], flash: vec![0xff; BYTES] }
    }

    fn read(&self) -> Result<Found, Unusable> {
        Store::read(self.bytes.split_at(COPY_BYTES).into(), BYTES)
    }

    /// What is to be written where, in the order in which the disk may do it.
    fn pieces(&self, store: &Store) -> Option<(Write, Vec<Piece>)> {
        let mut write = store.next()?;
        let blocks = self.flash[write.content()].to_vec();
        let header = store.seal(&mut write, &blocks).to_vec();
        let pieces = vec![(write.blocks_at(), blocks), (write.header_at(), header)];
        Some((write, pieces))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn write(&mut self, store: &mut Store) {
        let (write, pieces) = self.pieces(store).expect("there is something to write");
        pieces.iter().for_each(|(at, bytes)| self.put(*at, bytes));
        store.written(write);
    }

    fn change(&mut self, store: &mut Store, at: usize, byte: u8) {
        self.flash[at] = byte;
        store.note(at..at + 1);
    }
}

#[test]
fn what_was_written_is_there_and_copies_take_turns() {
    let mut disk = Disk::new();
    let Found { mut store, content, damaged } = disk.read().unwrap();
    assert_eq!((content, damaged), (None, [false; 2]));
    for turn in 0..5 {
        disk.change(&mut store, usize::from(turn) * 3000, turn);
        let write = store.next().unwrap();
        assert_eq!(write.header_at(), usize::from(turn % 2) * COPY_BYTES);
        disk.write(&mut store);
        assert!(store.next().is_none(), "the disk has it all");
        let found = disk.read().unwrap();
        assert_eq!(found.content.as_ref(), Some(&disk.flash));
        assert!(found.store.next().is_none());
    }
    // A change is written over the one before the last, and both are in it.
    disk.change(&mut store, 3 * BLOCK_BYTES, 1);
    assert_eq!(store.next().unwrap().content(), 2 * BLOCK_BYTES..4 * BLOCK_BYTES);
}

#[test]
fn a_store_that_was_read_goes_on_where_it_was() {
    let mut disk = Disk::new();
    let mut store = disk.read().unwrap().store;
    disk.write(&mut store);
    disk.change(&mut store, 5000, 5);
    disk.write(&mut store);
    let mut store = disk.read().unwrap().store;
    disk.change(&mut store, 0, 6);
    let write = store.next().unwrap();
    assert_eq!((write.header_at(), write.content()), (0, 0..2 * BLOCK_BYTES), "the older copy lacks both");
    disk.write(&mut store);
    assert_eq!(disk.read().unwrap().content.as_ref(), Some(&disk.flash));
}

#[test]
fn what_was_saved_is_written_where_it_differs() {
    let mut disk = Disk::new();
    let mut store = disk.read().unwrap().store;
    for byte in [1, 2] {
        disk.change(&mut store, 0, byte);
        disk.write(&mut store);
    }
    let Found { mut store, content, .. } = disk.read().unwrap();
    store.note_differences(&content.unwrap(), &disk.flash);
    assert!(store.next().is_none(), "it is what is there");
    disk.flash[3 * BLOCK_BYTES + 1] ^= 1;
    let Found { mut store, content, .. } = disk.read().unwrap();
    store.note_differences(&content.unwrap(), &disk.flash);
    disk.write(&mut store);
    assert_eq!(disk.read().unwrap().content.as_ref(), Some(&disk.flash));
}

/// The power fails after each number of sectors, blocks first or header first: what was there, or what was to be.
#[test]
fn a_write_cut_short_costs_that_write_alone() {
    let mut disk = Disk::new();
    let mut store = disk.read().unwrap().store;
    for turn in 0..3 {
        disk.change(&mut store, 0, turn);
        disk.write(&mut store);
    }
    let before = disk.flash.clone();
    for (at, byte) in [(100, 7), (BLOCK_BYTES * 3 + 4095, 8)] {
        disk.change(&mut store, at, byte);
    }
    let (_, mut pieces) = disk.pieces(&store).unwrap();
    let was = disk.bytes.clone();
    for _ in 0..2 {
        let sectors: Vec<(usize, &[u8])> = pieces
            .iter()
            .flat_map(|(at, bytes)| {
                bytes.chunks(SECTOR_BYTES).enumerate().map(move |(sector, bytes)| (at + sector * SECTOR_BYTES, bytes))
            })
            .collect();
        for cut in 0..=sectors.len() {
            let mut torn = Disk { bytes: was.clone(), flash: Vec::new() };
            sectors[..cut].iter().for_each(|(at, bytes)| torn.put(*at, bytes));
            let found = torn.read().unwrap();
            let content = found.content.unwrap();
            assert!(content == before || content == disk.flash, "after {cut} sectors");
            if cut == sectors.len() {
                assert!(content == disk.flash, "all of it is there");
            }
        }
        pieces.reverse();
    }
}

#[test]
fn damage_is_told_and_the_other_copy_serves() {
    let mut disk = Disk::new();
    let mut store = disk.read().unwrap().store;
    disk.write(&mut store);
    let first = disk.flash.clone();
    disk.change(&mut store, 9, 9);
    disk.write(&mut store);
    disk.bytes[COPY_BYTES + BLOCK_BYTES + 77] ^= 1;
    let Found { mut store, content, damaged } = disk.read().unwrap();
    assert_eq!((content, damaged), (Some(first), [false, true]));
    // The damaged one is written next, all of it, since nothing of it is to be trusted.
    disk.change(&mut store, 9, 10);
    assert_eq!(store.next().unwrap().content(), 0..BYTES);
    disk.write(&mut store);
    assert_eq!(disk.read().unwrap().content.as_ref(), Some(&disk.flash));
    disk.bytes[20] ^= 1;
    disk.bytes[COPY_BYTES + CHECKSUM_AT] ^= 1;
    let Found { store, content, damaged } = disk.read().unwrap();
    assert_eq!((content, damaged), (None, [true; 2]));
    assert_eq!(store.next().unwrap().content(), 0..BYTES);
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let mut disk = Disk::new();
    disk.bytes[510] = 0x55;
    assert_eq!(disk.read().unwrap_err(), Unusable::Foreign);
    let mut disk = Disk::new();
    disk.bytes[COPY_BYTES + 3] = 1;
    assert_eq!(disk.read().unwrap_err(), Unusable::Foreign);
    let mut disk = Disk::new();
    let mut store = disk.read().unwrap().store;
    disk.write(&mut store);
    let copies = disk.bytes.split_at(COPY_BYTES);
    assert_eq!(Store::read(copies.into(), BYTES / 2).unwrap_err(), Unusable::Size(BYTES));
    // A newer form, its checksum right.
    disk.bytes[8] = 2;
    let checksum = CHECKSUM.checksum(&disk.bytes[..CHECKSUM_AT]);
    disk.put(CHECKSUM_AT, &checksum.to_le_bytes());
    assert_eq!(disk.read().unwrap_err(), Unusable::Version(2));
}

#[test]
fn hostile_headers_are_damage() {
    for (at, bytes) in [(12, [0xff; 4]), (12, [1, 0, 0, 0]), (12, [0; 4]), (12, [0, 0, 0x10, 0]), (20, [0xff; 4])] {
        let mut disk = Disk::new();
        let mut store = disk.read().unwrap().store;
        disk.write(&mut store);
        disk.put(at, &bytes);
        let checksum = CHECKSUM.checksum(&disk.bytes[..CHECKSUM_AT]);
        disk.put(CHECKSUM_AT, &checksum.to_le_bytes());
        let found = disk.read().unwrap();
        assert_eq!((found.content, found.damaged), (None, [true, false]), "{at} {bytes:?}");
    }
    assert_eq!(Store::read([&[], &[]], BYTES).unwrap_err(), Unusable::Foreign, "nothing was read");
    let mut disk = Disk::new();
    let mut store = disk.read().unwrap().store;
    disk.write(&mut store);
    let found = Store::read([&disk.bytes[..2 * BLOCK_BYTES], &disk.bytes[COPY_BYTES..]], BYTES).unwrap();
    assert_eq!(found.damaged, [true, false], "less was read than its header says");
}

/// What the first version wrote: whoever changes this test loses variables that were kept.
#[test]
fn the_header_stays() {
    let header = encode(0x1234, &[1, 2, 0xaabb_ccdd]);
    assert_eq!(header[..32], *b"PLXUEFIV\x01\0\0\0\0\x30\0\0\x34\x12\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(header[32..44], [1, 0, 0, 0, 2, 0, 0, 0, 0xdd, 0xcc, 0xbb, 0xaa]);
    assert!(header[44..CHECKSUM_AT].iter().all(|&byte| byte == 0));
    assert_eq!(header[CHECKSUM_AT..], CHECKSUM.checksum(&header[..CHECKSUM_AT]).to_le_bytes());
}
