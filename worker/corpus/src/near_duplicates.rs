//! Near-duplicates by MinHash and locality-sensitive hashing: 21 bands of 3 rows find pairs of
//! similarity 0.5 with probability 0.94 and 0.7 with 0.9998. The verdict depends on the order of
//! arrival alone: the first of a family stays.

use std::collections::HashMap;

use crate::shingles::{HASHES, Sketch};

const ROWS: usize = 3;
const BANDS: usize = HASHES / ROWS;

/// What a new text is to those that came before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It repeats the text with this number: it was not added.
    Duplicate(usize),
    /// It was added under `number`; `related` are earlier ones that share much with it.
    New {
        /// Its number, counted from 0 over the texts added.
        number: usize,
        /// Numbers of earlier texts above the link threshold.
        related: Vec<usize>,
    },
}

/// The texts seen so far.
#[derive(Debug)]
pub struct NearDuplicates {
    duplicate_at: f64,
    related_at: f64,
    sketches: Vec<Sketch>,
    buckets: HashMap<(u8, [u32; ROWS]), Vec<u32>>,
}

impl NearDuplicates {
    /// Texts with at least `duplicate_at` estimated similarity are duplicates, with at least
    /// `related_at` they are related.
    pub fn new(duplicate_at: f64, related_at: f64) -> NearDuplicates {
        NearDuplicates { duplicate_at, related_at, sketches: Vec::new(), buckets: HashMap::new() }
    }

    /// Compares a text with those before it and adds it when it is new.
    pub fn insert(&mut self, sketch: Sketch) -> Verdict {
        let keys: Vec<(u8, [u32; ROWS])> = (0..BANDS)
            .map(|band| {
                let mut rows = [0; ROWS];
                rows.copy_from_slice(&sketch.0[band * ROWS..(band + 1) * ROWS]);
                (band as u8, rows)
            })
            .collect();
        let mut candidates: Vec<u32> =
            keys.iter().filter_map(|key| self.buckets.get(key)).flatten().copied().collect();
        candidates.sort_unstable();
        candidates.dedup();
        let mut related = Vec::new();
        for candidate in candidates {
            let number = candidate as usize;
            let similarity = self.sketches[number].similarity(&sketch);
            if similarity >= self.duplicate_at {
                return Verdict::Duplicate(number);
            }
            if similarity >= self.related_at {
                related.push(number);
            }
        }
        let number = self.sketches.len();
        for key in keys {
            self.buckets.entry(key).or_default().push(number as u32);
        }
        self.sketches.push(sketch);
        Verdict::New { number, related }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shingles::sketch;

    #[test]
    fn first_stays_copies_go_cousins_are_linked() {
        let text = |salt: &str, words: std::ops::Range<usize>| -> String {
            words.map(|i| format!("{salt}{i} ")).collect()
        };
        let mut seen = NearDuplicates::new(0.7, 0.3);
        let new = |number, related: &[usize]| Verdict::New { number, related: related.to_vec() };
        assert_eq!(seen.insert(sketch(&text("a", 0..600))), new(0, &[]));
        assert_eq!(seen.insert(sketch(&text("b", 0..600))), new(1, &[]));
        // 20 changed words at the end of 600: still a copy.
        assert_eq!(seen.insert(sketch(&(text("a", 0..580) + &text("c", 0..20)))), Verdict::Duplicate(0));
        // Half and half: related to b (Jaccard about 0.5), not a copy.
        assert_eq!(seen.insert(sketch(&(text("b", 0..450) + &text("d", 0..150)))), new(2, &[1]));
    }
}
