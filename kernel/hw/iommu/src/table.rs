//! Little-endian fields of a firmware table, read within its bounds.

/// The integer of `N` bytes at `offset`, or `None` outside.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

pub fn u8_at(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    field(bytes, offset).map(u16::from_le_bytes)
}

pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    field(bytes, offset).map(u64::from_le_bytes)
}

/// The structures of a table from `offset` on, of which `length` says how long each is. Ends with `None` where one is
/// shorter than four bytes or reaches beyond the table.
pub fn structures(
    table: &[u8],
    offset: usize,
    length: fn(&[u8]) -> Option<usize>,
) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = table.get(offset..);
    core::iter::from_fn(move || {
        let bytes = rest.take()?;
        if bytes.is_empty() {
            return None;
        }
        let whole = length(bytes).filter(|&length| length >= 4).and_then(|length| bytes.split_at_checked(length));
        Some(whole.map(|(structure, after)| {
            rest = Some(after);
            structure
        }))
    })
}
