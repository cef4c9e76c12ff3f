//! Weights between Hugging Face folders and the arena.
//!
//! Invariant: a tensor crosses one at a time, so the host never holds a second copy of the model.

use longstrap_crds::Reason;
use longstrap_memory_plan::Shape;
use longstrap_model::Weights;
use longstrap_runtime::StepError;

use crate::layout::{Tensor, tensors};
use crate::step::Trainer;

/// Why weights did not get into the arena.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file of the model.
    #[error(transparent)]
    Model(#[from] longstrap_model::ModelError),
    /// The device.
    #[error(transparent)]
    Engine(#[from] longstrap_engine::Error),
    /// Training could only spread it.
    #[error("tensor {name} has {value} at element {index}: take weights that are finite")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Its first element that is not finite.
        index: usize,
        /// What stands there.
        value: f32,
    },
}

impl From<LoadError> for StepError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::NotFinite { .. } => Self::invalid(Reason::InvalidModel, error.to_string()),
            other => Self::Failed(anyhow::Error::from(other).context("weights to start from")),
        }
    }
}

/// One tensor of a model folder, all of it finite.
fn finite(weights: &Weights, tensor: &Tensor) -> Result<Vec<f32>, LoadError> {
    let data = weights.tensor_f32(&tensor.name)?;
    match data.iter().position(|x| !x.is_finite()) {
        None => Ok(data),
        Some(index) => Err(LoadError::NotFinite { name: tensor.name.clone(), index, value: data[index] }),
    }
}

/// Checks that all weights of an opened model folder are finite.
///
/// # Errors
/// `NotFinite` with the tensor; a missing tensor.
pub fn check_finite(weights: &Weights, shape: &Shape) -> Result<(), LoadError> {
    tensors(shape).iter().try_for_each(|tensor| finite(weights, tensor).map(drop))
}

/// Copies all weights of an opened model folder into the trainer.
///
/// # Errors
/// A missing tensor, one of another size, or one that is not finite.
pub fn load(trainer: &Trainer<'_>, weights: &Weights) -> Result<(), LoadError> {
    for tensor in tensors(&trainer.plan().shape) {
        write(trainer, &tensor, &finite(weights, &tensor)?)?;
    }
    Ok(())
}

/// Writes one tensor, rows × cols.
///
/// # Errors
/// When the number of elements is wrong.
pub fn write(trainer: &Trainer<'_>, tensor: &Tensor, data: &[f32]) -> longstrap_engine::Result<()> {
    trainer.backend().write(trainer.weight(tensor), bytemuck::cast_slice(data))
}

/// Reads one tensor.
///
/// # Errors
/// As the backend reports.
pub fn read(trainer: &Trainer<'_>, tensor: &Tensor) -> longstrap_engine::Result<Vec<f32>> {
    let mut data = vec![0.0; tensor.elements()];
    trainer.backend().read(trainer.weight(tensor), bytemuck::cast_slice_mut(&mut data))?;
    Ok(data)
}

/// What a model's file error is to a step: a full disk is for a human, the rest a failure.
pub(crate) fn writing_failed(error: longstrap_model::ModelError) -> StepError {
    match error {
        longstrap_model::ModelError::Io { path, source } => match StepError::from(source) {
            StepError::Invalid { reason, message } => {
                StepError::invalid(reason, format!("{}: {message}", path.display()))
            }
            StepError::Failed(error) => StepError::Failed(error.context(path.display().to_string())),
            other => other,
        },
        other => StepError::Failed(other.into()),
    }
}
