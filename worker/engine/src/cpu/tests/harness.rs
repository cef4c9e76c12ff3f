//! A device filled with random matrices, each beside an f64 copy for the reference.

use std::sync::Arc;

use half::bf16;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Backend, CpuBackend, CpuOptions, Dtype, Space, View};

pub(super) const EPS: f64 = f32::EPSILON as f64;

/// Device, a bump allocator for views and a seeded generator.
pub(super) struct Device {
    pub(super) backend: Arc<CpuBackend>,
    next: usize,
    rng: ChaCha8Rng,
}

impl Device {
    pub(super) fn new(threads: usize, seed: u64) -> Self {
        let options = CpuOptions { device_bytes: 256 << 20, host_bytes: 16 << 20, threads };
        Self { backend: CpuBackend::new(options).unwrap(), next: 0, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// A view with `gap` columns between its rows.
    pub(super) fn view(&mut self, rows: usize, cols: usize, gap: usize, dtype: Dtype) -> View {
        let view =
            View { row_stride: cols + gap, ..View::dense(Space::Device, self.next, rows, cols, dtype) };
        self.next = (self.next + rows * (cols + gap) * dtype.size()).next_multiple_of(64);
        view
    }

    /// Random numbers in −1..1 and their exact values as stored.
    pub(super) fn random(&mut self, rows: usize, cols: usize, gap: usize, dtype: Dtype) -> (View, Vec<f64>) {
        let view = self.view(rows, cols, gap, dtype);
        let data: Vec<f32> = (0..rows * cols).map(|_| self.rng.random_range(-1.0..1.0)).collect();
        (view, self.set(view, &data))
    }

    pub(super) fn set(&self, view: View, data: &[f32]) -> Vec<f64> {
        match view.dtype {
            Dtype::F32 => {
                self.backend.write(view, bytemuck::cast_slice(data)).unwrap();
                data.iter().map(|x| f64::from(*x)).collect()
            }
            Dtype::Bf16 => {
                let data: Vec<bf16> = data.iter().map(|x| bf16::from_f32(*x)).collect();
                self.backend.write(view, bytemuck::cast_slice(&data)).unwrap();
                data.iter().map(|x| f64::from(x.to_f32())).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn ids(&mut self, ids: &[u32]) -> View {
        let view = self.view(ids.len(), 1, 0, Dtype::U32);
        self.backend.write(view, bytemuck::cast_slice(ids)).unwrap();
        view
    }

    pub(super) fn get(&self, view: View) -> Vec<f32> {
        let mut out = vec![0.0f32; view.len()];
        self.backend.read(view, bytemuck::cast_slice_mut(&mut out)).unwrap();
        out
    }
}

/// Asserts |got − want| ≤ bound for every element.
#[track_caller]
pub(super) fn close(name: &str, got: &[f32], want: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len(), "{name}");
    let worst = got
        .iter()
        .zip(want)
        .map(|(g, w)| (f64::from(*g) - w).abs())
        .fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) });
    assert!(worst <= bound, "{name}: off by {worst:.3e}, allowed {bound:.3e}");
}

/// Runs a case with 1, 2 and 3 threads and asserts equal bits.
#[track_caller]
pub(super) fn same_bits(case: impl Fn(usize) -> Vec<f32>) {
    let bits = |threads| case(threads).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let one = bits(1);
    assert!(bits(2) == one && bits(3) == one, "the number of threads changed bits");
}
