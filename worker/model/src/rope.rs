//! Rotary position frequencies, with the arithmetic of `transformers`: f32 throughout and the
//! same order of operations, so that angles agree at positions far beyond the old window.

use serde::{Deserialize, Serialize};

/// Rotary embedding of a model: base and the scaling of its frequencies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// The base (`rope_theta`); a longer context wants a larger one.
    pub theta: f64,
    /// What is done to the frequencies after they are made from the base.
    pub scaling: RopeScaling,
}

/// Scaling of the frequencies (`rope_type`); types not listed here are refused when read.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// None (`default`).
    Default,
    /// Llama 3.1's: long wavelengths are divided by `factor`, short ones kept, a ramp between.
    Llama3(Llama3Scaling),
}

/// Parameters of [`RopeScaling::Llama3`], by their names in `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Llama3Scaling {
    /// Divisor of the low frequencies.
    pub factor: f64,
    /// Wavelengths above `original / low_freq_factor` are divided.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// The window before the scaling was applied.
    pub original_max_position_embeddings: u64,
}

impl Rope {
    /// The `head_dim / 2` inverse frequencies, in f32.
    ///
    /// Angles are `inv_freq[i] * position as f32`, sine and cosine taken of that f32 product.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let base = self.theta as f32;
        (0..head_dim / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / head_dim as f32;
                // Rounded once from f64: what a powf good to one unit in the last place gives.
                let power = f64::from(base).powf(f64::from(exponent)) as f32;
                let frequency = power.recip();
                match &self.scaling {
                    RopeScaling::Default => frequency,
                    RopeScaling::Llama3(s) => s.scale(frequency),
                }
            })
            .collect()
    }
}

impl Llama3Scaling {
    fn scale(&self, frequency: f32) -> f32 {
        let old = self.original_max_position_embeddings as f64;
        let low_wavelength = (old / self.low_freq_factor) as f32;
        let high_wavelength = (old / self.high_freq_factor) as f32;
        let factor = self.factor as f32;
        // torch divides a number by a tensor as reciprocal times number.
        let wavelength = frequency.recip() * (2.0 * std::f64::consts::PI) as f32;
        if wavelength > low_wavelength {
            frequency / factor
        } else if wavelength < high_wavelength {
            frequency
        } else {
            let smooth = (wavelength.recip() * old as f32 - self.low_freq_factor as f32)
                / (self.high_freq_factor - self.low_freq_factor) as f32;
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    }
}
