//! Dequantisation of ggml's block formats to f32, with ggml's own arithmetic: each weight is the
//! small integer times the block's f16 scale (plus its f16 minimum), in f32.

use half::{bf16, f16};

/// Elements in a block of the quantised formats read here.
const BLOCK: usize = 32;

/// Storage format of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
}

impl Block {
    /// From ggml's type number; others are refused by name.
    pub(super) fn from_ggml(kind: u32) -> Result<Self, String> {
        Ok(match kind {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            30 => Self::BF16,
            other => {
                let name = match other {
                    9 => "Q8_1",
                    10 => "Q2_K",
                    11 => "Q3_K",
                    12 => "Q4_K",
                    13 => "Q5_K",
                    14 => "Q6_K",
                    15 => "Q8_K",
                    16..=23 | 29 => "IQ (importance-quantised)",
                    28 => "F64",
                    34 | 35 => "TQ (ternary)",
                    _ => "unknown",
                };
                return Err(format!(
                    "has type {name} (number {other}); F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 are read: use a file of one of these"
                ));
            }
        })
    }

    /// Elements per block.
    pub(super) fn elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            _ => BLOCK,
        }
    }

    fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 2 + 2 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 2 + 2 + 4 + 16,
            Self::Q8_0 => 2 + 32,
        }
    }

    /// Bytes of `elements` elements (whole blocks); none on overflow.
    pub(super) fn bytes(self, elements: usize) -> Option<usize> {
        (elements / self.elements()).checked_mul(self.block_bytes())
    }

    /// Dequantises whole blocks.
    pub(super) fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        for (b, y) in bytes.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.elements())) {
            match self {
                Self::F32 => y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
                Self::F16 => y[0] = half_at(b, 0),
                Self::BF16 => y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
                Self::Q4_0 => nibbles(&b[2..], None, y, |q| (f32::from(q) - 8.0) * half_at(b, 0)),
                Self::Q4_1 => nibbles(&b[4..], None, y, |q| f32::from(q) * half_at(b, 0) + half_at(b, 2)),
                Self::Q5_0 => nibbles(&b[6..], Some(&b[2..6]), y, |q| (f32::from(q) - 16.0) * half_at(b, 0)),
                Self::Q5_1 => {
                    nibbles(&b[8..], Some(&b[4..8]), y, |q| f32::from(q) * half_at(b, 0) + half_at(b, 2))
                }
                Self::Q8_0 => {
                    for (y, &q) in y.iter_mut().zip(&b[2..]) {
                        *y = f32::from(q as i8) * half_at(b, 0);
                    }
                }
            }
        }
    }
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Low nibbles are the first half of the block, high ones the second; a fifth bit comes from
/// `fifth`, bit i for element i.
fn nibbles(low: &[u8], fifth: Option<&[u8]>, y: &mut [f32], value: impl Fn(u8) -> f32) {
    let fifth = fifth.map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    for i in 0..BLOCK / 2 {
        let bit = |at: usize| ((fifth >> at) as u8 & 1) << 4;
        y[i] = value(low[i] & 0x0F | bit(i));
        y[i + BLOCK / 2] = value(low[i] >> 4 | bit(i + BLOCK / 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of each format, with values worked out by hand from ggml's definition.
    #[test]
    fn blocks_dequantise_as_ggml_defines() {
        let h = |v: f32| f16::from_f32(v).to_le_bytes().to_vec();
        // Element i: low nibble i; element i + 16: high nibble 15 - i.
        let nibbles: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        let fifth = 0x8000_0001u32.to_le_bytes().to_vec();
        let bytes: Vec<u8> = (0..32i8).map(|i| (i - 16) as u8).collect();
        let low = |i: usize| if i < 16 { i as f32 } else { (31 - i) as f32 };
        let high = |i: usize| if i == 0 || i == 31 { 16.0 } else { 0.0 };
        type Value<'a> = &'a dyn Fn(usize) -> f32;
        let cases: [(u32, Vec<u8>, Value); 5] = [
            (2, [h(0.5), nibbles.clone()].concat(), &|i| (low(i) - 8.0) * 0.5),
            (3, [h(0.5), h(-2.0), nibbles.clone()].concat(), &|i| low(i) * 0.5 - 2.0),
            (6, [h(0.25), fifth.clone(), nibbles.clone()].concat(), &|i| (low(i) + high(i) - 16.0) * 0.25),
            (7, [h(0.25), h(1.5), fifth, nibbles].concat(), &|i| (low(i) + high(i)) * 0.25 + 1.5),
            (8, [h(2.0), bytes].concat(), &|i| (i as f32 - 16.0) * 2.0),
        ];
        for (kind, block, value) in cases {
            let format = Block::from_ggml(kind).unwrap();
            assert_eq!(format.bytes(64), Some(2 * block.len()));
            let mut out = [0.0; 64];
            format.dequantize(&block.repeat(2), &mut out);
            for (i, &v) in out.iter().enumerate() {
                assert_eq!(v, value(i % 32), "{format:?} element {i}");
            }
        }
    }
}
