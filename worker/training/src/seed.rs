//! Seeds by hash and a shuffle whose result never changes with a library's version.
//!
//! Invariant: the words that name a purpose decide its stream; nothing else does.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// The generator for one purpose: `seed` of the run and what names the purpose.
pub(crate) fn stream(seed: u64, purpose: &[&str]) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    for word in purpose {
        hash.update((word.len() as u64).to_le_bytes());
        hash.update(word.as_bytes());
    }
    ChaCha8Rng::from_seed(hash.finalize().into())
}

/// A number below `bound` (> 0), by multiplication: the bias is below bound / 2⁶⁴.
fn below(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    ((u128::from(rng.next_u64()) * bound as u128) >> 64) as usize
}

/// Fisher and Yates, from the end.
pub(crate) fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(rng, i + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_a_constant() {
        let mut items: Vec<u32> = (0..12).collect();
        shuffle(&mut items, &mut stream(17, &["order", "long", "0"]));
        assert_eq!(items, [4, 10, 11, 6, 3, 0, 8, 9, 7, 2, 1, 5]);
        let mut other: Vec<u32> = (0..12).collect();
        shuffle(&mut other, &mut stream(17, &["order", "lon", "g0"]));
        assert_ne!(items, other);
    }
}
