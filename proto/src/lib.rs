//! The gRPC messages of progress and rendezvous, generated from `proto/longstrap/*.proto`.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

/// `longstrap.v1alpha1`.
pub mod v1alpha1 {
    tonic::include_proto!("longstrap.v1alpha1");
}
