//! Which tiles of attention have anything to see, from the positions in the views.
//!
//! Invariant: the only rule is `first_key[i] ≤ k_pos[j] ≤ q_pos[i]`; `u32::MAX` as a key's
//! position hides it from all.

use super::simd::{LANES, multiversion};

const HIDDEN: u32 = u32::MAX;

/// Extremes of a run of keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyTile {
    pub(crate) first: usize,
    pub(crate) count: usize,
    min: u32,
    max: u32,
    any_hidden: bool,
}

/// Extremes of a run of queries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryTile {
    pub(crate) first: usize,
    pub(crate) count: usize,
    min_pos: u32,
    max_pos: u32,
    min_first: u32,
    max_first: u32,
}

/// The keys of a tile that a tile of queries may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// Every query sees every key.
    pub(crate) all: bool,
}

#[inline(always)]
fn extremes_generic<const FMA: bool>(positions: &[u32]) -> (u32, u32, bool) {
    let (mut min, mut max, mut any_hidden) = (HIDDEN, 0, false);
    for p in positions {
        min = min.min(*p);
        max = max.max(if *p == HIDDEN { 0 } else { *p });
        any_hidden |= *p == HIDDEN;
    }
    (min, max, any_hidden)
}
multiversion! {
    /// The least and the greatest position that is not hidden, and whether one is.
    fn extremes(positions: &[u32]) -> (u32, u32, bool) = extremes_generic
}

#[inline(always)]
fn hide_generic<const FMA: bool>(low: u32, high: u32, k_pos: &[u32], scores: &mut [f32]) -> bool {
    let mut any = false;
    for (score, p) in scores.iter_mut().zip(k_pos) {
        let seen = low <= *p && *p <= high;
        any |= seen;
        *score = if seen { *score } else { f32::NEG_INFINITY };
    }
    any
}
multiversion! {
    /// Sets to −∞ the scores of keys outside `low ..= high`; false when all are.
    fn hide_outside(low: u32, high: u32, k_pos: &[u32], scores: &mut [f32]) -> bool = hide_generic
}

/// Positions of an operation.
#[derive(Clone, Copy)]
pub(crate) struct Positions<'a> {
    pub(crate) q_pos: &'a [u32],
    pub(crate) first_key: &'a [u32],
    pub(crate) k_pos: &'a [u32],
}

impl Positions<'_> {
    pub(crate) fn key_tiles(&self, size: usize) -> Vec<KeyTile> {
        let tile = |(i, keys): (usize, &[u32])| {
            let (min, max, any_hidden) = extremes(keys);
            KeyTile { first: i * size, count: keys.len(), min, max, any_hidden }
        };
        self.k_pos.chunks(size).enumerate().map(tile).collect()
    }

    pub(crate) fn query_tiles(&self, size: usize) -> Vec<QueryTile> {
        let tile = |first: usize| {
            let count = size.min(self.q_pos.len() - first);
            let mut t =
                QueryTile { first, count, min_pos: u32::MAX, max_pos: 0, min_first: u32::MAX, max_first: 0 };
            for i in first..first + count {
                let (pos, key) = (self.q_pos[i], self.first_key[i]);
                t.min_pos = t.min_pos.min(pos);
                t.max_pos = t.max_pos.max(pos);
                t.min_first = t.min_first.min(key);
                t.max_first = t.max_first.max(key);
            }
            t
        };
        (0..self.q_pos.len()).step_by(size).map(tile).collect()
    }

    /// What of a key tile some query of a query tile sees, at multiples of a vector from the tile's
    /// start; None: nothing. On the diagonal of a causal mask this leaves out half a tile.
    pub(crate) fn window(&self, queries: &QueryTile, keys: &KeyTile) -> Option<Window> {
        // No key at all is told by min > max.
        if keys.min > keys.max || keys.min > queries.max_pos || keys.max < queries.min_first {
            return None;
        }
        let whole = Window { first: keys.first, count: keys.count, all: false };
        if !keys.any_hidden && keys.min >= queries.max_first && keys.max <= queries.min_pos {
            return Some(Window { all: true, ..whole });
        }
        let visible = |j: &usize| {
            let p = self.k_pos[keys.first + j];
            p != HIDDEN && queries.min_first <= p && p <= queries.max_pos
        };
        let low = (0..keys.count).find(visible)? / LANES * LANES;
        let high = (0..keys.count).rfind(visible)? + 1;
        let count = (high.next_multiple_of(LANES)).min(keys.count) - low;
        Some(Window { first: keys.first + low, count, ..whole })
    }

    /// Sets to −∞ what query `i` does not see in a row of scores over the keys from `first` on;
    /// false when it sees nothing.
    pub(crate) fn hide(&self, i: usize, first: usize, scores: &mut [f32]) -> bool {
        let (low, high) = (self.first_key[i], self.q_pos[i].min(HIDDEN - 1));
        hide_outside(low, high, &self.k_pos[first..first + scores.len()], scores)
    }
}
