//! Medians, ratios, and a small random number generator for orders and contents.

/// The middle value; the mean of the two middle ones of an even number. `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// `value / base` of the repetitions in which both were measured.
pub fn ratios(values: &[Option<f64>], bases: &[Option<f64>]) -> Vec<f64> {
    values
        .iter()
        .zip(bases)
        .filter_map(|(value, base)| Some((*value)? / (*base).filter(|base| *base > 0.0)?))
        .collect()
}

/// Their median.
pub fn median_ratio(values: &[Option<f64>], bases: &[Option<f64>]) -> Option<f64> {
    median(&ratios(values, bases))
}

/// Largest over smallest: how far the same work on the same file system varied.
pub fn spread(values: &[Option<f64>]) -> Option<f64> {
    let known = || values.iter().flatten().copied();
    let (most, least) = (
        known().reduce(f64::max)?,
        known().reduce(f64::min).filter(|least| *least > 0.0)?,
    );
    Some(most / least)
}

/// SplitMix64 (Steele, Lea and Flood, 2014): enough for shuffling and for bytes that do not compress.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    pub fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes()[..word.len()]);
        }
    }
}
