//! Model shape, lengths and options in; the table of buffers out. No tensors, no I/O.
