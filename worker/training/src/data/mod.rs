//! Training data: samples, the rows that are made of them, and a rank's part of a row.

pub mod row_plan;
pub mod shard;
