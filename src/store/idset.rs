//! A set of row ids, small for the runs of ids that a store hands out and safe for any other.

use std::collections::HashMap;

/// Ids in blocks of 4096 bits: 512 bytes for 4096 neighbours, and no more than that for one crafted outlier.
#[derive(Default)]
pub(super) struct IdSet(HashMap<i64, Box<[u64; 64]>>);

impl IdSet {
    /// `true` if the id was not there.
    pub(super) fn insert(&mut self, id: i64) -> bool {
        let block = self.0.entry(id >> 12).or_insert_with(|| Box::new([0; 64]));
        let (word, bit) = Self::place(id);
        let new = block[word] & bit == 0;
        block[word] |= bit;
        new
    }

    pub(super) fn contains(&self, id: i64) -> bool {
        let (word, bit) = Self::place(id);
        self.0
            .get(&(id >> 12))
            .is_some_and(|block| block[word] & bit != 0)
    }

    /// All of them, the lowest first.
    pub(super) fn in_order(&self) -> Vec<i64> {
        let mut blocks: Vec<_> = self.0.iter().collect();
        blocks.sort_unstable_by_key(|(start, _)| **start);
        let mut ids = Vec::new();
        for (start, block) in blocks {
            for (at, word) in (0i64..).zip(block.iter()) {
                let bits = (0..64).filter(|bit| word & (1 << bit) != 0);
                ids.extend(bits.map(|bit| start << 12 | at << 6 | bit));
            }
        }
        ids
    }

    const fn place(id: i64) -> (usize, u64) {
        ((id as usize >> 6) & 63, 1 << (id & 63))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_hash_set(ids in prop::collection::vec(prop_oneof![any::<i64>(), -200..9000i64], 0..300)) {
            let (mut set, mut model) = (IdSet::default(), std::collections::HashSet::new());
            for id in &ids {
                prop_assert_eq!(set.insert(*id), model.insert(*id));
            }
            let mut sorted: Vec<i64> = model.iter().copied().collect();
            sorted.sort_unstable();
            prop_assert_eq!(set.in_order(), sorted);
            for id in ids.iter().flat_map(|id| [*id, id.wrapping_add(1), id.wrapping_sub(64)]) {
                prop_assert_eq!(set.contains(id), model.contains(&id));
            }
        }
    }
}
