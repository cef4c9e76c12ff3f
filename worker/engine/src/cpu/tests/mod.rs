//! Each fast kernel against the f64 reference over ragged shapes, strided views, packed masks,
//! padding and bf16 operands; equal bits for 1, 2 and 3 threads.
//!
//! Bounds (ε = 2⁻²³, numbers below 1): a sum of K products is off by less than K·ε; sums over
//! tokens of a gradient, whose errors are independent, by 4·√T·ε; attention, whose weights sum to
//! one and whose scores are at most √D, by 16·ε·(1 + √D).

mod attention;
mod harness;
mod kernels;
mod random;
mod streams;
