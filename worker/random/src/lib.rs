//! Seeded choices. The words that name a purpose decide its stream, and the draws are our own
//! arithmetic on ChaCha's stream: values never change with a library's version.
#![cfg_attr(test, allow(clippy::unwrap_used))]

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// A stream of random choices.
#[derive(Debug)]
pub struct Draw(ChaCha8Rng);

impl Draw {
    /// The stream for one purpose, seeded by the sha256 of `prefix` (of one length for all streams
    /// that are told apart by what follows) and of each part behind its length.
    #[must_use]
    pub fn new(prefix: &[u8], parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(prefix);
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(ChaCha8Rng::from_seed(hasher.finalize().into()))
    }

    /// An independent stream, for work that is done beside others: its values do not depend on
    /// how much the others draw.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(&[], &[&self.bits().to_le_bytes()])
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in `0..n`, by multiplication: the bias is below n / 2⁶⁴. 0 for an empty range.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of the items, by weight; the first when all weights are 0.
    pub fn pick<'a, T>(&mut self, items: &'a [T], weight: impl Fn(&T) -> u32) -> Option<&'a T> {
        let total: usize = items.iter().map(|item| weight(item) as usize).sum();
        let mut at = self.below(total);
        for item in items {
            let w = weight(item) as usize;
            if at < w {
                return Some(item);
            }
            at -= w;
        }
        items.first()
    }

    /// Puts items into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        shuffle(items, |n| self.below(n));
    }
}

/// Fisher and Yates, from the end; `below(n)` draws from `0..n`.
pub fn shuffle<T>(items: &mut [T], mut below: impl FnMut(usize) -> usize) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(i + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A changed value here means that datasets and row plans change.
    #[test]
    fn streams_are_constants_and_apart() {
        let seed = 17u64.to_le_bytes();
        assert_eq!(Draw::new(&[], &[&seed, b"instruct"]).bits(), 17_379_698_121_458_692_482);
        let order = |words: [&str; 3]| {
            let mut items: Vec<u32> = (0..12).collect();
            Draw::new(&seed, &words.map(str::as_bytes)).shuffle(&mut items);
            items
        };
        assert_eq!(order(["order", "long", "0"]), [4, 10, 11, 6, 3, 0, 8, 9, 7, 2, 1, 5]);
        assert_ne!(order(["order", "lon", "g0"]), order(["order", "long", "0"]));
    }

    #[test]
    fn weights_and_ranges_are_kept() {
        let mut draw = Draw::new(&[], &[b"x"]);
        let mut counts = [0; 3];
        for _ in 0..3000 {
            counts[*draw.pick(&[0usize, 1, 2], |i| [1, 0, 2][*i]).unwrap()] += 1;
        }
        assert!(counts[1] == 0 && (900..1100).contains(&counts[0]), "{counts:?}");
        assert!((0..1000).all(|_| (0.0..1.0).contains(&draw.unit()) && draw.below(7) < 7));
        assert_eq!((draw.below(0), draw.pick(&[] as &[u8], |_| 1)), (0, None));
        let mut items: Vec<u32> = (0..50).collect();
        draw.shuffle(&mut items);
        let mut sorted = items.clone();
        sorted.sort_unstable();
        assert!(items != sorted && sorted == (0..50).collect::<Vec<_>>());
        assert_ne!(draw.fork().bits(), draw.bits());
    }
}
