//! Slots: the places of the dataset that are to be filled. How many there are, how long each is and
//! which shard it belongs to follow from the spec and the seed alone, before any call is made.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::seed::RunSeed;

/// Kind of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Instruction and raw documents in, an answer out.
    LongInput,
    /// An instruction in, a long document out.
    LongOutput,
}

impl Kind {
    /// The word in ids.
    pub fn id(self) -> &'static str {
        match self {
            Kind::LongInput => "long-input",
            Kind::LongOutput => "long-output",
        }
    }
}

/// One place of the dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// What belongs there.
    pub kind: Kind,
    /// Number among its kind, from 0.
    pub index: u64,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:06}", self.kind.id(), self.index)
    }
}

/// A share of the lengths of long-input samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LengthShare {
    /// Name in the spec.
    pub name: String,
    /// Shortest length in tokens.
    pub from: u64,
    /// Longest length; equal to `from`: exactly that.
    pub to: u64,
    /// Share of the tokens.
    pub weight: u32,
}

impl LengthShare {
    /// Mean length of the log-uniform distribution.
    fn mean(&self) -> f64 {
        let (from, to) = (self.from as f64, self.to as f64);
        if self.from == self.to { from } else { (to - from) / (to / from).ln() }
    }
}

/// The length of every long-input slot.
///
/// The number of slots of a share is exact (largest remainder of weight over mean length, since
/// weights are shares of tokens), so that a small set has the mix that was asked for; which slot
/// gets which, and the lengths within a range, are drawn.
pub fn lengths(shares: &[LengthShare], count: u64, seed: RunSeed) -> Vec<u64> {
    let wanted: Vec<f64> = shares.iter().map(|s| f64::from(s.weight) / s.mean()).collect();
    let total: f64 = wanted.iter().sum();
    let quota: Vec<f64> = wanted.iter().map(|w| w / total * count as f64).collect();
    let mut counts: Vec<u64> = quota.iter().map(|q| q.floor() as u64).collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|&a, &b| {
        let rest = |i: usize| quota[i] - quota[i].floor();
        rest(b).total_cmp(&rest(a)).then(a.cmp(&b))
    });
    let missing = count - counts.iter().sum::<u64>();
    for &i in order.iter().cycle().take(missing as usize) {
        counts[i] += 1;
    }
    let mut draw = seed.draw("lengths");
    let mut lengths = Vec::with_capacity(count as usize);
    for (share, n) in shares.iter().zip(counts) {
        for _ in 0..n {
            let ratio = (share.to as f64 / share.from as f64).powf(draw.unit());
            lengths.push(((share.from as f64 * ratio) as u64).clamp(share.from, share.to));
        }
    }
    draw.shuffle(&mut lengths);
    lengths
}

/// All slots in order, cut into shards of equal size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Plan {
    /// Long-input slots; they come first.
    pub long_input: u64,
    /// Long-output slots.
    pub long_output: u64,
    /// Slots in a shard.
    pub slots_per_shard: u64,
}

impl Plan {
    /// Shards are small against the whole, so that work can be shared, but no more than needed:
    /// each costs a manifest.
    pub fn new(long_input: u64, long_output: u64) -> Plan {
        let slots_per_shard = (long_input + long_output).div_ceil(256).clamp(1, 64);
        Plan { long_input, long_output, slots_per_shard }
    }

    /// Slots in all.
    pub fn slots(&self) -> u64 {
        self.long_input + self.long_output
    }

    /// Number of shards.
    pub fn shards(&self) -> u32 {
        self.slots().div_ceil(self.slots_per_shard) as u32
    }

    /// The slots of a shard.
    pub fn shard(&self, shard: u32) -> Vec<Slot> {
        let from = u64::from(shard) * self.slots_per_shard;
        self.range(from..(from + self.slots_per_shard).min(self.slots()))
    }

    /// All slots.
    pub fn all(&self) -> Vec<Slot> {
        self.range(0..self.slots())
    }

    fn range(&self, range: Range<u64>) -> Vec<Slot> {
        range
            .map(|n| match n.checked_sub(self.long_input) {
                None => Slot { kind: Kind::LongInput, index: n },
                Some(index) => Slot { kind: Kind::LongOutput, index },
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(name: &str, from: u64, to: u64, weight: u32) -> LengthShare {
        LengthShare { name: name.into(), from, to, weight }
    }

    #[test]
    fn weights_are_shares_of_tokens() {
        let shares = [share("exact", 16_384, 16_384, 1), share("mixed", 1_024, 16_384, 1)];
        let all = lengths(&shares, 1000, RunSeed(17));
        assert_eq!(all.len(), 1000);
        let exact: u64 = all.iter().filter(|&&l| l == 16_384).sum();
        let total: u64 = all.iter().sum();
        let part = exact as f64 / total as f64;
        assert!((0.47..0.53).contains(&part), "{part}");
        let mixed: Vec<u64> = all.iter().copied().filter(|&l| l != 16_384).collect();
        // Log-uniform: as many below the geometric mean as above.
        let below = mixed.iter().filter(|&&l| l < 4_096).count() as f64 / mixed.len() as f64;
        assert!((0.45..0.55).contains(&below), "{below}");
        assert_eq!(all, lengths(&shares, 1000, RunSeed(17)));
        assert_ne!(all, lengths(&shares, 1000, RunSeed(18)));
        assert_eq!(lengths(&shares[..1], 2, RunSeed(1)), [16_384, 16_384]);
    }

    #[test]
    fn every_slot_is_in_one_shard() {
        for (inputs, outputs) in [(0, 1), (2, 2), (1000, 77), (69_000, 10_000)] {
            let plan = Plan::new(inputs, outputs);
            let slots: Vec<Slot> = (0..plan.shards()).flat_map(|s| plan.shard(s)).collect();
            assert_eq!(slots, plan.all());
            assert_eq!(slots.iter().filter(|s| s.kind == Kind::LongInput).count() as u64, inputs);
            assert_eq!(slots.len() as u64, inputs + outputs);
        }
        assert_eq!(Plan::new(2, 2).shards(), 4);
    }
}
