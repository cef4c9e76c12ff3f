//! Which tiles of attention have anything to see, from the positions in the views.
//!
//! Invariant: the only rule is `first_key[i] ≤ k_pos[j] ≤ q_pos[i]`; `u32::MAX` as a key's
//! position hides it from all.

use super::arena::Mat;
use super::simd::LANES;

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

/// Positions of an operation.
#[derive(Clone, Copy)]
pub(crate) struct Positions<'a> {
    pub(crate) q_pos: Mat<'a, u32>,
    pub(crate) first_key: Mat<'a, u32>,
    pub(crate) k_pos: Mat<'a, u32>,
}

impl Positions<'_> {
    pub(crate) fn key_tiles(&self, size: usize) -> Vec<KeyTile> {
        let tile = |first: usize| {
            let count = size.min(self.k_pos.rows - first);
            let (mut min, mut max, mut any_hidden) = (HIDDEN, 0, false);
            for j in first..first + count {
                match self.k_pos.row(j)[0] {
                    HIDDEN => any_hidden = true,
                    p => {
                        min = min.min(p);
                        max = max.max(p);
                    }
                }
            }
            KeyTile { first, count, min, max, any_hidden }
        };
        (0..self.k_pos.rows).step_by(size).map(tile).collect()
    }

    pub(crate) fn query_tiles(&self, size: usize) -> Vec<QueryTile> {
        let tile = |first: usize| {
            let count = size.min(self.q_pos.rows - first);
            let mut t =
                QueryTile { first, count, min_pos: u32::MAX, max_pos: 0, min_first: u32::MAX, max_first: 0 };
            for i in first..first + count {
                let (pos, key) = (self.q_pos.row(i)[0], self.first_key.row(i)[0]);
                t.min_pos = t.min_pos.min(pos);
                t.max_pos = t.max_pos.max(pos);
                t.min_first = t.min_first.min(key);
                t.max_first = t.max_first.max(key);
            }
            t
        };
        (0..self.q_pos.rows).step_by(size).map(tile).collect()
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
            let p = self.k_pos.row(keys.first + j)[0];
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
        let (low, high) = (self.first_key.row(i)[0], self.q_pos.row(i)[0].min(HIDDEN - 1));
        let mut any = false;
        for (j, score) in scores.iter_mut().enumerate() {
            let p = self.k_pos.row(first + j)[0];
            let seen = low <= p && p <= high;
            any |= seen;
            *score = if seen { *score } else { f32::NEG_INFINITY };
        }
        any
    }
}
