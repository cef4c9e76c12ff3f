//! PID 1 of a training pod: starts the ranks, forms the gang, restarts it from the last checkpoint.
