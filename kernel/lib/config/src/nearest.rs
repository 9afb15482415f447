//! What a mistyped word was meant to be.

use alloc::vec::Vec;

/// Longer words are not compared: nobody mistypes them by two letters.
const WORD_BYTES_MAX: usize = 40;

/// The candidate that `word` most likely was meant to be, if one is near enough: at most one slip (a letter too many,
/// missing, wrong, or two swapped) for every three letters, and at least one allowed. The first of equally near ones.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let slips_max = (word.len() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (slips(word.as_bytes(), candidate.as_bytes()), candidate))
        .filter(|(slips, candidate)| *slips <= slips_max && *slips < candidate.len())
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

/// The optimal string alignment distance, in ASCII case-insensitive bytes.
fn slips(word: &[u8], candidate: &[u8]) -> usize {
    if word.len() > WORD_BYTES_MAX || candidate.len() > WORD_BYTES_MAX {
        return usize::MAX;
    }
    let same = |i: usize, j: usize| word[i].eq_ignore_ascii_case(&candidate[j]);
    // Three rows of the table: for the word's first i-1, i and i+1 letters.
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=candidate.len()).collect();
    for i in 0..word.len() {
        let mut next = Vec::with_capacity(candidate.len() + 1);
        next.push(i + 1);
        for j in 0..candidate.len() {
            let mut least = (row[j] + usize::from(!same(i, j))).min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && same(i, j - 1) && same(i - 1, j) {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = core::mem::replace(&mut row, next);
    }
    row[candidate.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_slips() {
        for (word, candidate, count) in [
            ("", "", 0),
            ("abc", "", 3),
            ("start", "start", 0),
            ("strat", "start", 1),
            ("stat", "start", 1),
            ("startt", "start", 1),
            ("stort", "start", 1),
            ("START", "start", 0),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(slips(word.as_bytes(), candidate.as_bytes()), count, "{word} {candidate}");
            assert_eq!(slips(candidate.as_bytes(), word.as_bytes()), count, "{candidate} {word}");
        }
    }

    #[test]
    fn finds_the_near_and_leaves_the_far() {
        let words = ["start", "stop", "kill", "vm"];
        assert_eq!(nearest("strat", words), Some("start"));
        assert_eq!(nearest("stpo", words), Some("stop"));
        assert_eq!(nearest("vn", words), Some("vm"));
        assert_eq!(nearest("x", words), None);
        assert_eq!(nearest("xyzzy", words), None);
        assert_eq!(nearest(&"s".repeat(100_000), words), None);
    }
}
