//! The object storage protocol: data under unique names, committed by a small manifest.
