//! The choice of the next token. A function of logits, tokens so far, parameters and the call's own
//! random stream: nothing else, so a call repeats to the bit.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::{InferenceError, Result};

/// How an answer is sampled; everything is explicit, so that it can be recorded with the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sampling {
    /// Most tokens of the answer, without its forced beginning.
    pub max_tokens: usize,
    /// Divides the logits; 0 takes the most likely token (of equal ones the lowest id).
    pub temperature: f32,
    /// Keeps the fewest most likely tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Seed of the call's random stream.
    pub seed: u64,
    /// No sequence of so many tokens occurs twice in prompt and answer; 0 allows it.
    pub no_repeat_ngram: usize,
    /// Divides the positive logits of tokens that occurred in prompt or answer and multiplies the
    /// negative ones; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            no_repeat_ngram: 0,
            repetition_penalty: 1.0,
            stop: Vec::new(),
        }
    }
}

/// Draws the tokens of one call.
#[derive(Debug)]
pub(crate) struct Sampler {
    rng: ChaCha8Rng,
}

impl Sampler {
    pub(crate) fn new(sampling: &Sampling) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(sampling.seed) }
    }

    /// The token after `tokens` (prompt and answer so far); `logits` are changed on the way.
    pub(crate) fn next(&mut self, sampling: &Sampling, tokens: &[u32], logits: &mut [f32]) -> Result<u32> {
        // No early end: the compiler makes vectors of it.
        if logits.iter().fold(false, |any, l| any | l.is_nan()) {
            return Err(InferenceError::NotFinite);
        }
        penalise(sampling.repetition_penalty, tokens, logits);
        forbid_repeats(sampling.no_repeat_ngram, tokens, logits);
        if sampling.temperature <= 0.0 {
            return most_likely(logits);
        }
        self.draw(f64::from(sampling.temperature), f64::from(sampling.top_p), logits)
    }

    fn draw(&mut self, temperature: f64, top_p: f64, logits: &[f32]) -> Result<u32> {
        let best = f64::from(logits[most_likely(logits)? as usize]);
        // e⁻³⁷ < 2⁻⁵³: what weighs less than that beside the best one is never drawn by 53 bits.
        let least = (best - 37.0 * temperature) as f32;
        let mut kept: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .filter(|(_, l)| **l >= least)
            .map(|(id, &l)| (id as u32, ((f64::from(l) - best) / temperature).exp()))
            .collect();
        nucleus(top_p, &mut kept);
        let kept_sum: f64 = kept.iter().map(|(_, w)| w).sum();
        // 53 random bits: every double in [0, 1) that is a multiple of 2⁻⁵³.
        let mut left = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * kept_sum;
        for (id, w) in &kept {
            left -= w;
            if left < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding can leave a crumb behind the last one.
        kept.last().map(|(id, _)| *id).ok_or(InferenceError::NotFinite)
    }
}

/// Leaves the fewest heaviest tokens that reach `top_p` of all weight, the heaviest first, of equal
/// ones the lowest id; from 1 on all tokens, as they are. Only what is left gets sorted.
fn nucleus(top_p: f64, kept: &mut Vec<(u32, f64)>) {
    if top_p >= 1.0 {
        return;
    }
    let enough = top_p * kept.iter().map(|(_, w)| w).sum::<f64>();
    // A total order: weights are never NaN, no id comes twice.
    let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let (mut sorted, mut more, mut sum) = (0, 64, 0.0);
    while sorted < kept.len() {
        let rest = &mut kept[sorted..];
        if more < rest.len() {
            rest.select_nth_unstable_by(more, order);
        }
        let next = more.min(rest.len());
        rest[..next].sort_unstable_by(order);
        for (i, (_, w)) in rest[..next].iter().enumerate() {
            sum += w;
            if sum >= enough {
                kept.truncate(sorted + i + 1);
                return;
            }
        }
        sorted += next;
        more *= 8;
    }
}

/// The highest logit; of equal ones the lowest id.
fn most_likely(logits: &[f32]) -> Result<u32> {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for part in logits.chunks(LANES) {
        for (highest, l) in lanes.iter_mut().zip(part) {
            *highest = if l > highest { *l } else { *highest };
        }
    }
    let highest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    // None: every token is forbidden, or the model is broken.
    let id = logits.iter().position(|l| *l == highest).filter(|_| highest.is_finite());
    id.map(|id| id as u32).ok_or(InferenceError::NotFinite)
}

fn penalise(penalty: f32, tokens: &[u32], logits: &mut [f32]) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = tokens.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        let l = &mut logits[id as usize];
        *l = if *l > 0.0 { *l / penalty } else { *l * penalty };
    }
}

fn forbid_repeats(n: usize, tokens: &[u32], logits: &mut [f32]) {
    if n == 0 || tokens.len() < n {
        return;
    }
    let begun = &tokens[tokens.len() + 1 - n..];
    for gram in tokens.windows(n) {
        if gram[..n - 1] == *begun {
            logits[gram[n - 1] as usize] = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(sampling: &Sampling, tokens: &[u32], logits: &[f32]) -> u32 {
        Sampler::new(sampling).next(sampling, tokens, &mut logits.to_vec()).unwrap()
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_heeds_repeats() {
        let greedy = Sampling::default();
        assert_eq!(next(&greedy, &[], &[1.0, 3.0, 3.0, -1.0]), 1);
        let ngram = Sampling { no_repeat_ngram: 2, ..Sampling::default() };
        // 7 was followed by 1 before: 1 is out, 2 is next.
        assert_eq!(next(&ngram, &[7, 1, 7], &[1.0, 3.0, 3.0, -1.0, 0.0, 0.0, 0.0, 0.0]), 2);
        assert_eq!(next(&ngram, &[7, 1, 0], &[1.0, 3.0, 3.0, -1.0, 0.0, 0.0, 0.0, 0.0]), 1);
        let penalty = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(next(&penalty, &[1, 1], &[1.6, 3.0, 1.5]), 0, "3 / 2 once, however often it occurred");
        assert_eq!(next(&penalty, &[0], &[-1.0, -1.5]), 1, "a negative logit falls");
        let broken = Sampler::new(&greedy).next(&greedy, &[], &mut [f32::NAN, 1.0]);
        assert!(matches!(broken, Err(InferenceError::NotFinite)));
    }

    #[test]
    fn the_nucleus_is_that_of_a_whole_sort() {
        // Few distinct weights: many are equal.
        for (count, top_p) in [(1, 0.5), (64, 0.9), (65, 0.99), (5000, 0.3), (5000, 0.95), (5000, 0.999_999)]
        {
            let weight = |id: u32| f64::from(id.wrapping_mul(2_654_435_761) >> 20).powi(2) + 1.0;
            let all: Vec<(u32, f64)> = (0..count).map(|id| (id, weight(id))).collect();
            let mut sorted = all.clone();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let enough = top_p * all.iter().map(|(_, w)| w).sum::<f64>();
            let mut sum = 0.0;
            let cut = sorted.iter().position(|(_, w)| {
                sum += w;
                sum >= enough
            });
            let mut kept = all.clone();
            nucleus(top_p, &mut kept);
            assert_eq!(kept, sorted[..=cut.unwrap()], "{count} {top_p}");
            nucleus(1.0, &mut sorted);
            assert_eq!(sorted.len(), all.len());
        }
    }

    #[test]
    fn drawing_follows_the_probabilities_of_the_nucleus_and_repeats() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        let shares = |temperature, top_p| {
            let mut sampler = Sampler::new(&Sampling { seed: 11, ..Sampling::default() });
            let mut counts = [0.0; 4];
            for _ in 0..20_000 {
                let s = Sampling { temperature, top_p, ..Sampling::default() };
                counts[sampler.next(&s, &[], &mut logits.clone()).unwrap() as usize] += 1.0 / 20_000.0;
            }
            counts
        };
        let near = |a: [f64; 4], b: [f64; 4]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 0.015);
        assert!(near(shares(1.0, 1.0), [0.5, 0.3, 0.15, 0.05]));
        // 0.5 + 0.3 reaches 0.79: two tokens are kept; at 0.81 it takes the third.
        assert!(near(shares(1.0, 0.79), [0.625, 0.375, 0.0, 0.0]));
        assert_eq!(shares(1.0, 0.81)[3], 0.0);
        // Temperature 0.5 squares the probabilities.
        assert!(near(shares(0.5, 1.0), [0.685, 0.247, 0.062, 0.007]));
        let s = Sampling { temperature: 1.0, seed: 5, ..Sampling::default() };
        assert_eq!(next(&s, &[], &logits), next(&s, &[], &logits));
    }
}
