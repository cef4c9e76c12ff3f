//! Words, 12-gram shingles and MinHash sketches: the fingerprints by which texts are compared.
//!
//! Hashes are our own fixed arithmetic: the same text has the same sketch on every machine and in
//! every version, because duplicates decide which bytes are written.

/// Words in a shingle: long enough that a shared one is a copy, not a phrase of the language.
const SHINGLE_WORDS: usize = 12;
/// Hash functions in a sketch: 21 bands of 3.
pub(crate) const HASHES: usize = 63;

/// MinHash sketch of a text: for each hash function the least value over the text's shingles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sketch(pub(crate) [u32; HASHES]);

impl Sketch {
    /// Estimated Jaccard similarity of the two texts' shingle sets, 0 to 1.
    pub fn similarity(&self, other: &Sketch) -> f64 {
        let equal = self.0.iter().zip(&other.0).filter(|(a, b)| a == b).count();
        equal as f64 / HASHES as f64
    }
}

/// Hashes of the words of a text, in order: runs of letters and digits, lower case; a letter of a
/// script that is written without spaces is a word of its own.
pub fn words(text: &str) -> Vec<u64> {
    const EMPTY: u64 = 0xcbf2_9ce4_8422_2325;
    let mut words = Vec::new();
    let mut hash = EMPTY;
    let mut push = |hash: &mut u64| {
        if *hash != EMPTY {
            words.push(mix(*hash));
            *hash = EMPTY;
        }
    };
    for c in text.chars() {
        if !c.is_alphanumeric() {
            push(&mut hash);
            continue;
        }
        let spaceless = matches!(u32::from(c), 0x0e00..=0x0eff | 0x2e80..=0xd7af | 0x20000..);
        if spaceless {
            push(&mut hash);
        }
        for lower in c.to_lowercase() {
            hash = (hash ^ u64::from(u32::from(lower))).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if spaceless {
            push(&mut hash);
        }
    }
    push(&mut hash);
    words
}

/// Hashes of the 12-word shingles of a text, in order; a shorter text has one, of all its words,
/// and a text without words none.
pub fn shingles(text: &str) -> Vec<u64> {
    shingles_of(&words(text))
}

/// [`shingles`] of a text's words.
pub(crate) fn shingles_of(words: &[u64]) -> Vec<u64> {
    sequences(words, SHINGLE_WORDS)
}

/// Hashes of all sequences of `length` words; of all words when there are fewer.
pub(crate) fn sequences(words: &[u64], length: usize) -> Vec<u64> {
    let combine = |window: &[u64]| {
        window.iter().fold(0x9e37_79b9_7f4a_7c15u64, |hash, word| mix(hash.rotate_left(7) ^ word))
    };
    match words.len() {
        0 => Vec::new(),
        n if n < length => vec![combine(words)],
        _ => words.windows(length).map(combine).collect(),
    }
}

/// The sketch of a text, by its 12-word shingles.
pub fn sketch(text: &str) -> Sketch {
    sketch_words(text, SHINGLE_WORDS)
}

/// The sketch of a short text, by its sequences of `length` words.
///
/// # Panics
/// When `length` is 0.
pub fn sketch_words(text: &str, length: usize) -> Sketch {
    let mut least = [u32::MAX; HASHES];
    for shingle in sequences(&words(text), length) {
        for (i, slot) in least.iter_mut().enumerate() {
            let value = (mix(shingle ^ SALTS[i]) >> 32) as u32;
            *slot = (*slot).min(value);
        }
    }
    Sketch(least)
}

/// One salt per hash function: the first outputs of SplitMix64 from 0.
const SALTS: [u64; HASHES] = {
    let mut salts = [0u64; HASHES];
    let mut i = 0;
    while i < HASHES {
        salts[i] = mix((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        i += 1;
    }
    salts
};

/// The finaliser of SplitMix64 (Steele et al. 2014).
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_ignore_case_and_marks_and_split_spaceless_scripts() {
        assert_eq!(words("Hello, WORLD-2"), words("hello world 2"));
        assert_ne!(words("ab c"), words("a bc"));
        assert_eq!(words("漢字 a").len(), 3);
        assert_eq!(shingles("a b c").len(), 1);
        assert!(shingles(" -- ").is_empty());
        let thirteen = "a b c d e f g h i j k l m";
        assert_eq!(shingles(thirteen).len(), 2);
    }

    #[test]
    fn similarity_estimates_jaccard() {
        let text = |from: usize, to: usize| (from..to).map(|i| format!("w{i} ")).collect::<String>();
        // 500 words each, 250 shared: Jaccard of shingles about 239 / 739 = 0.32.
        let estimate = sketch(&text(0, 500)).similarity(&sketch(&text(250, 750)));
        assert!((0.17..0.48).contains(&estimate), "{estimate}");
        assert_eq!(sketch(&text(0, 50)).similarity(&sketch(&text(0, 50))), 1.0);
        assert!(sketch(&text(0, 500)).similarity(&sketch(&text(600, 1100))) < 0.05);
        // Fixed arithmetic: a change of these values changes which duplicates a run drops.
        assert_eq!(sketch("the quick brown fox").0[..3], FOX);
    }
    const FOX: [u32; 3] = [1_613_419_676, 1_534_844_771, 985_291_931];
}
