//! [`Places`]: which rows of a chunk have a value, and the times of a chunk's rows.
//!
//! Changes when the form of postings changes. The ledger's numbers are cut into chunks of
//! [`CHUNK`]; a place is what is left of a number within its chunk. Values in, values out.

use super::varint;

/// Bits of a number that say the place.
const PLACE_BITS: u32 = 13;
/// Numbers in a chunk: its bitmap is 1 KiB.
pub(super) const CHUNK: i64 = 1 << PLACE_BITS;
const WORDS: usize = 1 << (PLACE_BITS - 6);
const BITMAP_BYTES: usize = WORDS * 8;

/// The chunk that a number of the ledger is in.
pub(super) const fn chunk_of(seq: i64) -> i64 {
    seq >> PLACE_BITS
}

/// A number's place in its chunk.
pub(super) const fn place_of(seq: i64) -> u16 {
    (seq & (CHUNK - 1)) as u16
}

/// The number at a place of a chunk.
pub(super) fn seq_of(chunk: i64, place: u16) -> i64 {
    (chunk << PLACE_BITS) | i64::from(place)
}

/// A set of places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places(Box<[u64; WORDS]>);

impl Places {
    /// None.
    pub(super) fn none() -> Self {
        Self(Box::new([0; WORDS]))
    }

    /// Those listed.
    pub(super) fn of(list: impl IntoIterator<Item = u16>) -> Self {
        let mut places = Self::none();
        list.into_iter().for_each(|place| places.insert(place));
        places
    }

    /// Adds one; one beyond the chunk is left out.
    pub(super) fn insert(&mut self, place: u16) {
        if let Some(word) = self.0.get_mut(usize::from(place >> 6)) {
            *word |= 1 << (place & 63);
        }
    }

    /// Keeps those that are in `other`, too.
    pub(super) fn and(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(mine, theirs)| *mine &= theirs);
    }

    /// Adds those of `other`.
    pub(super) fn or(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(mine, theirs)| *mine |= theirs);
    }

    /// Keeps those before `end`.
    pub(super) fn before(&mut self, end: u16) {
        let (whole, rest) = (usize::from(end >> 6), end & 63);
        for (n, word) in self.0.iter_mut().enumerate() {
            if n == whole {
                *word &= (1 << rest) - 1;
            } else if n > whole {
                *word = 0;
            }
        }
    }

    /// Whether this one is among them.
    pub(super) fn has(&self, place: u16) -> bool {
        self.0.get(usize::from(place >> 6)).is_some_and(|word| word >> (place & 63) & 1 == 1)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// All, the lowest first.
    pub(super) fn ascending(&self) -> impl DoubleEndedIterator<Item = u16> + '_ {
        const FIRSTS: [u16; WORDS] = firsts();
        FIRSTS.into_iter().zip(self.0.iter()).filter(|(_, word)| **word != 0).flat_map(
            |(first, word)| {
                (0..64_u16).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first | bit)
            },
        )
    }

    /// As stored by [`encode`]; `None` when it is not that.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut places = Self::none();
        if bytes.len() == BITMAP_BYTES {
            let (words, _) = bytes.as_chunks::<8>();
            places.0.iter_mut().zip(words).for_each(|(word, bytes)| {
                *word = u64::from_le_bytes(*bytes);
            });
            return Some(places);
        }
        let (list, rest) = bytes.as_chunks::<2>();
        if !rest.is_empty() || bytes.len() > BITMAP_BYTES {
            return None;
        }
        list.iter().for_each(|place| places.insert(u16::from_le_bytes(*place)));
        Some(places)
    }
}

/// The first place of each word of a bitmap.
#[expect(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "at compile time")]
const fn firsts() -> [u16; WORDS] {
    let mut firsts = [0; WORDS];
    let mut n = 0;
    while n < WORDS {
        firsts[n] = (n as u16) << 6;
        n += 1;
    }
    firsts
}

/// A list of places, each once: two bytes each, or the chunk's bitmap where that is smaller.
pub(super) fn encode(list: &[u16]) -> Vec<u8> {
    if list.len() * 2 < BITMAP_BYTES {
        return list.iter().flat_map(|place| place.to_le_bytes()).collect();
    }
    Places::of(list.iter().copied()).0.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Times in the order of their rows: neighbours differ little.
pub(super) fn encode_times(times: &[i64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(times.len() * 2);
    let mut before = 0_i64;
    for at in times {
        varint::push_signed(&mut bytes, at.wrapping_sub(before));
        before = *at;
    }
    bytes
}

/// The counterpart of [`encode_times`]; `None` when it is not that.
pub(super) fn decode_times(mut bytes: &[u8]) -> Option<Vec<i64>> {
    let mut times = Vec::new();
    let mut before = 0_i64;
    while !bytes.is_empty() {
        before = before.wrapping_add(varint::take_signed(&mut bytes)?);
        times.push(before);
    }
    Some(times)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn list() -> impl Strategy<Value = BTreeSet<u16>> {
        let places = 0..1_u16 << PLACE_BITS;
        prop_oneof![
            proptest::collection::btree_set(places.clone(), 0..20),
            proptest::collection::btree_set(places, 400..900),
        ]
    }

    proptest! {
        #[test]
        fn sets_do_as_sets_do(a in list(), b in list(), end in 0..1_u16 << PLACE_BITS) {
            let (all_a, all_b) = (Vec::from_iter(a.clone()), Vec::from_iter(b.clone()));
            let stored = encode(&all_a);
            prop_assert!(stored.len() <= BITMAP_BYTES);
            let one = Places::decode(&stored).unwrap();
            let two = Places::decode(&encode(&all_b)).unwrap();
            prop_assert_eq!(one.ascending().collect::<Vec<_>>(), all_a);
            prop_assert_eq!(one.is_empty(), a.is_empty());
            let (mut and, mut or, mut before) = (one.clone(), one.clone(), one);
            and.and(&two);
            prop_assert!(and.ascending().eq(a.intersection(&b).copied()));
            or.or(&two);
            prop_assert!(or.ascending().eq(a.union(&b).copied()));
            before.before(end);
            prop_assert!(before.ascending().eq(a.range(..end).copied()));
        }

        #[test]
        fn times_survive(times: Vec<i64>) {
            prop_assert_eq!(decode_times(&encode_times(&times)), Some(times));
        }

        #[test]
        fn nothing_stored_breaks_the_reader(bytes: Vec<u8>) {
            let _ = (Places::decode(&bytes), decode_times(&bytes));
        }

        #[test]
        fn numbers_are_chunk_and_place(seq in 0..i64::MAX) {
            prop_assert_eq!(seq_of(chunk_of(seq), place_of(seq)), seq);
        }
    }
}
