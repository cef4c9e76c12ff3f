//! A rank's part of a row: the arrays that the kernels read.
//!
//! Invariant: everything is computed from the whole row before it is cut: labels are shifted within
//! the sample, `rope_pos` counts within the sample, `query_pos` and `key_pos` within the row.
//! Padding has no target, sees nothing and is seen by nobody.

use std::ops::Range;

use longstrap_memory_plan::padded;

/// No target, a key that nobody sees, a query that sees nothing.
pub const NONE: u32 = u32::MAX;

/// A sample in a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Index of its source.
    pub source: u16,
    /// Its tokens.
    pub tokens: usize,
    /// Tokens that are targets; the first token of a sample never is.
    pub targets: Vec<Range<u32>>,
    /// Loss weight of its targets.
    pub weight: f32,
}

/// Σ of the weights of a row's targets: what its loss is divided by.
#[must_use]
pub fn loss_weight(row: &[Placed]) -> f64 {
    let targets = |p: &Placed| p.targets.iter().map(|t| f64::from(t.end - t.start)).sum::<f64>();
    row.iter().map(|p| f64::from(p.weight) * targets(p)).sum()
}

/// Tokens of one sample that a rank needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Index in the row.
    pub piece: usize,
    /// Token range within the sample.
    pub range: Range<usize>,
}

/// The arrays of one rank, t tokens; two chunks of t/2 each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shard {
    /// Token ids; 0 for padding.
    pub ids: Vec<u32>,
    /// The next token of the sample where it has a loss.
    pub targets: Vec<u32>,
    /// Weight of each target; 0 without.
    pub weights: Vec<f32>,
    /// Source of each token; `u16::MAX` for padding.
    pub sources: Vec<u16>,
    /// Position within the sample.
    pub rope_pos: Vec<u32>,
    /// Position within the row; 0 for padding.
    pub query_pos: Vec<u32>,
    /// Position within the row of the sample's first token.
    pub first_key: Vec<u32>,
    /// `key_pos` of all ranks, in rank order.
    pub key_pos: Vec<u32>,
}

impl Shard {
    /// Tokens of this rank.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}

/// The two chunks of a rank as ranges of the padded row.
fn chunks(padded: usize, rank: usize, world: usize) -> [Range<usize>; 2] {
    let n = padded / (2 * world);
    [rank, 2 * world - 1 - rank].map(|c| c * n..(c + 1) * n)
}

/// Samples with their first position in the row.
fn placed(row: &[Placed]) -> impl Iterator<Item = (usize, usize, &Placed)> {
    let mut start = 0;
    row.iter().enumerate().map(move |(i, p)| {
        let at = start;
        start += p.tokens;
        (i, at, p)
    })
}

fn overlap(chunk: &Range<usize>, start: usize, tokens: usize) -> Range<usize> {
    let from = chunk.start.max(start).min(start + tokens);
    let to = chunk.end.min(start + tokens).max(from);
    from - start..to - start
}

/// What a rank must read: its tokens and the one behind each part, for the label.
#[must_use]
pub fn needs(row: &[Placed], rank: usize, world: usize) -> Vec<Need> {
    let length = padded(row.iter().map(|p| p.tokens).sum(), world);
    let mut needs = Vec::new();
    for chunk in chunks(length, rank, world) {
        for (piece, start, p) in placed(row) {
            let range = overlap(&chunk, start, p.tokens);
            if !range.is_empty() {
                needs.push(Need { piece, range: range.start..(range.end + 1).min(p.tokens) });
            }
        }
    }
    needs
}

/// The arrays of a rank, from the tokens read for [`needs`], in that order.
#[must_use]
pub fn shard(row: &[Placed], rank: usize, world: usize, read: &[Vec<u32>]) -> Shard {
    let tokens: usize = row.iter().map(|p| p.tokens).sum();
    let length = padded(tokens, world);
    let mut out = Shard { key_pos: key_positions(tokens, length, world), ..Shard::default() };
    let mut parts = read.iter();
    for chunk in chunks(length, rank, world) {
        let mut filled = 0;
        for (_, start, p) in placed(row) {
            let range = overlap(&chunk, start, p.tokens);
            if range.is_empty() {
                continue;
            }
            filled += range.len();
            out.append(start, p, range, parts.next().map_or(&[], Vec::as_slice));
        }
        out.pad(chunk.len() - filled);
    }
    out
}

fn key_positions(tokens: usize, length: usize, world: usize) -> Vec<u32> {
    let position = |i: usize| if i < tokens { i as u32 } else { NONE };
    (0..world).flat_map(|rank| chunks(length, rank, world)).flatten().map(position).collect()
}

impl Shard {
    /// Appends tokens `range` of a sample that starts at `start`; `ids` holds them and the next.
    fn append(&mut self, start: usize, sample: &Placed, range: Range<usize>, ids: &[u32]) {
        let first = range.start;
        for i in range {
            let next = (i + 1) as u32;
            let id = |i: usize| ids.get(i - first).copied();
            let has_target = sample.targets.iter().any(|t| t.contains(&next));
            let target = if has_target { id(i + 1) } else { None };
            self.ids.push(id(i).unwrap_or_default());
            self.targets.push(target.unwrap_or(NONE));
            self.weights.push(if target.is_some() { sample.weight } else { 0.0 });
            self.sources.push(sample.source);
            self.rope_pos.push(i as u32);
            self.query_pos.push((start + i) as u32);
            self.first_key.push(start as u32);
        }
    }

    fn pad(&mut self, count: usize) {
        let end = self.ids.len() + count;
        self.ids.resize(end, 0);
        self.targets.resize(end, NONE);
        self.weights.resize(end, 0.0);
        self.sources.resize(end, u16::MAX);
        self.rope_pos.resize(end, 0);
        // 0 and NONE together: no key lies between.
        self.query_pos.resize(end, 0);
        self.first_key.resize(end, NONE);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(tokens: usize, targets: &[Range<u32>]) -> Placed {
        Placed { source: tokens as u16, tokens, targets: targets.to_vec(), weight: 0.5 }
    }

    fn read(row: &[Placed], rank: usize, world: usize) -> Vec<Vec<u32>> {
        let id = |piece: usize, i: usize| (1000 * piece + i) as u32;
        needs(row, rank, world).into_iter().map(|n| n.range.map(|i| id(n.piece, i)).collect()).collect()
    }

    #[test]
    fn a_packed_row_on_one_rank() {
        let row = [sample(3, &[1..3]), sample(1, &[]), sample(3, &[2..3])];
        let s = shard(&row, 0, 1, &read(&row, 0, 1));
        assert_eq!(s.ids, [0, 1, 2, 1000, 2000, 2001, 2002, 0]);
        assert_eq!(s.targets, [1, 2, NONE, NONE, NONE, 2002, NONE, NONE]);
        assert_eq!(s.weights, [0.5, 0.5, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0]);
        // What the loss is divided by: the sum of these, not the number of targets.
        assert_eq!(loss_weight(&row), 1.5);
        assert_eq!(s.rope_pos, [0, 1, 2, 0, 0, 1, 2, 0]);
        assert_eq!(s.query_pos, [0, 1, 2, 3, 4, 5, 6, 0]);
        assert_eq!(s.first_key, [0, 0, 0, 3, 4, 4, 4, NONE]);
        assert_eq!(s.key_pos, [0, 1, 2, 3, 4, 5, 6, NONE]);
        assert_eq!(s.sources, [3, 3, 3, 1, 3, 3, 3, u16::MAX]);
    }

    #[test]
    fn zigzag_gives_a_rank_the_first_and_the_last_chunk() {
        let row = [sample(8, &[1..8])];
        let s = shard(&row, 0, 2, &read(&row, 0, 2));
        assert_eq!((&s.ids[..], &s.targets[..]), (&[0, 1, 6, 7][..], &[1, 2, 7, NONE][..]));
        assert_eq!(s.key_pos, [0, 1, 6, 7, 2, 3, 4, 5]);
        let s = shard(&row, 1, 2, &read(&row, 1, 2));
        assert_eq!((&s.ids[..], &s.targets[..]), (&[2, 3, 4, 5][..], &[3, 4, 5, 6][..]));
    }

    proptest! {
        /// Whatever the number of ranks, together they hold what one rank holds.
        #[test]
        fn ranks_share_what_one_rank_holds(lengths in proptest::collection::vec(1usize..30, 1..8), world in 1usize..5) {
            let row: Vec<Placed> = lengths.iter().map(|&n| sample(n, &[1..n.div_ceil(2) as u32, 4..n.max(4) as u32])).collect();
            let whole = shard(&row, 0, 1, &read(&row, 0, 1));
            let tokens: usize = lengths.iter().sum();
            let mut seen = vec![false; tokens];
            let mut t = None;
            for rank in 0..world {
                let s = shard(&row, rank, world, &read(&row, rank, world));
                prop_assert_eq!(*t.get_or_insert(s.tokens()), s.tokens());
                prop_assert_eq!(s.key_pos.len(), world * s.tokens());
                for i in 0..s.tokens() {
                    let key = s.key_pos[rank * s.tokens() + i];
                    if s.first_key[i] == NONE {
                        prop_assert_eq!((s.targets[i], s.query_pos[i], key), (NONE, 0, NONE));
                        continue;
                    }
                    let at = s.query_pos[i] as usize;
                    prop_assert_eq!(key as usize, at);
                    prop_assert!(!std::mem::replace(&mut seen[at], true));
                    prop_assert_eq!(
                        (s.ids[i], s.targets[i], s.weights[i], s.rope_pos[i], s.first_key[i], s.sources[i]),
                        (whole.ids[at], whole.targets[at], whole.weights[at], whole.rope_pos[at], whole.first_key[at], whole.sources[at])
                    );
                }
            }
            prop_assert!(seen.into_iter().all(|s| s));
        }
    }
}
