//! Randomness. Every choice comes from a generator seeded by hash from (run seed, step, slot, try),
//! and the draws are our own arithmetic on ChaCha's stream: values never change with a library.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use crate::slots::Slot;

/// The seed of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunSeed(pub u64);

impl RunSeed {
    /// A generator for something that belongs to the run as a whole.
    pub fn draw(self, step: &str) -> Draw {
        Draw::new(&[&self.0.to_le_bytes(), step.as_bytes()])
    }

    /// A generator for one step of one try at one slot.
    pub fn draw_for(self, step: &str, slot: Slot, attempt: u32) -> Draw {
        Draw::new(&[
            &self.0.to_le_bytes(),
            step.as_bytes(),
            slot.kind.id().as_bytes(),
            &slot.index.to_le_bytes(),
            &attempt.to_le_bytes(),
        ])
    }
}

/// A stream of random choices.
#[derive(Debug)]
pub struct Draw(ChaCha8Rng);

impl Draw {
    fn new(parts: &[&[u8]]) -> Draw {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Draw(ChaCha8Rng::from_seed(hasher.finalize().into()))
    }

    /// An independent stream, for work that is done beside others: its values do not depend on
    /// how much the others draw.
    pub fn fork(&mut self) -> Draw {
        Draw::new(&[&self.bits().to_le_bytes()])
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in `0..n`; 0 for an empty range.
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

    /// Fisher–Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Kind;

    #[test]
    fn streams_are_stable_and_apart() {
        let slot = Slot { kind: Kind::LongInput, index: 3 };
        let first = |seed: u64, step: &str, attempt| RunSeed(seed).draw_for(step, slot, attempt).bits();
        // A changed value here means that every dataset changes.
        assert_eq!(first(17, "instruct", 0), GOLDEN);
        let all = [
            first(17, "instruct", 0),
            first(18, "instruct", 0),
            first(17, "retrieve", 0),
            first(17, "instruct", 1),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
        let mut draw = RunSeed(1).draw("x");
        let mut counts = [0; 3];
        for _ in 0..3000 {
            counts[*draw.pick(&[0usize, 1, 2], |i| [1, 0, 2][*i]).unwrap()] += 1;
        }
        assert!(counts[1] == 0 && (900..1100).contains(&counts[0]), "{counts:?}");
        let mut items: Vec<u32> = (0..50).collect();
        draw.shuffle(&mut items);
        let mut sorted = items.clone();
        sorted.sort_unstable();
        assert!(items != sorted && sorted == (0..50).collect::<Vec<_>>());
    }
    const GOLDEN: u64 = 4_237_657_452_784_142_309;
}
