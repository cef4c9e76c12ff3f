//! The CPU as a device: two arenas, its own threads, three streams.
//!
//! Invariant: Compute runs inline, Copy and Comm are one thread each, so overlap and races are as
//! real as on an accelerator; results do not depend on the number of threads.

mod arena;
mod attention;
mod attention_grad;
mod dispatch;
mod elementwise;
mod few_rows;
mod gemm;
mod loss;
mod mask;
mod mlp;
mod norm;
mod optimizer;
mod pool;
mod rope;
mod simd;
mod speed;
mod streams;
mod team;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arena::Memory;
use pool::Exec;
use streams::{Events, Job, Queue};

pub use attention::KEY_TILE;
pub use gemm::PACKING_BYTES;
pub use pool::SCRATCH_BYTES;
pub use simd::instruction_set;
pub use speed::measure_gemm_gflops;

use crate::op::check_bytes;
use crate::{Backend, Event, Op, Result, Stream, View};

/// Sizes of a CPU device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Bytes of the device arena.
    pub device_bytes: usize,
    /// Bytes of the host arena.
    pub host_bytes: usize,
    /// Threads of the Compute stream, at least 1.
    pub threads: usize,
}

impl CpuOptions {
    /// Most bytes that operations use beside the arenas: tiles of each thread (of Compute, Copy and
    /// Comm) and one set to share in each stream, and what matrix products pack. Pages that no kernel
    /// touches cost nothing. The memory plan has the same number (`tests/plan.rs`).
    #[must_use]
    pub const fn working_bytes(&self) -> usize {
        (self.threads + 1 + 2 + 2) * SCRATCH_BYTES + self.threads * PACKING_BYTES
    }
}

/// What the jobs of all streams share.
struct Inner {
    memory: Memory,
    compute: Exec,
    /// Of the Copy and Comm threads: one thread, its own working memory.
    copy: Exec,
    comm: Exec,
}

/// The CPU implementation of [`Backend`].
pub struct CpuBackend {
    inner: Arc<Inner>,
    events: Arc<Events>,
    copy: Queue,
    comm: Queue,
    threads: usize,
}

impl CpuBackend {
    /// Maps the arenas and starts the threads.
    ///
    /// # Errors
    /// When the system refuses memory or threads.
    pub fn new(options: CpuOptions) -> Result<Arc<Self>> {
        let threads = options.threads.max(1);
        let inner = Arc::new(Inner {
            memory: Memory::new(options.device_bytes, options.host_bytes)?,
            compute: Exec::new(threads)?,
            copy: Exec::new(1)?,
            comm: Exec::new(1)?,
        });
        let events = Arc::new(Events::default());
        let copy = Queue::new("copy", Arc::clone(&events))?;
        let comm = Queue::new("comm", Arc::clone(&events))?;
        Ok(Arc::new(Self { inner, events, copy, comm, threads }))
    }

    /// Threads of the Compute stream.
    #[must_use]
    pub const fn threads(&self) -> usize {
        self.threads
    }

    fn submit(&self, stream: Stream, op: Op) -> Result<()> {
        op.check()?;
        for view in op.reads().into_iter().chain(op.writes()) {
            self.inner.memory.check(view)?;
        }
        match self.queue(stream) {
            None => streams::guard("compute", || {
                // SAFETY: checked; ordering streams is the caller's part of the contract.
                unsafe { dispatch::run(&op, &self.inner.memory, &self.inner.compute) };
                Ok(())
            }),
            Some(queue) => {
                let inner = Arc::clone(&self.inner);
                queue.run(Box::new(move || {
                    let exec = if stream == Stream::Copy { &inner.copy } else { &inner.comm };
                    // SAFETY: as above.
                    unsafe { dispatch::run(&op, &inner.memory, exec) };
                    Ok(())
                }))
            }
        }
    }

    /// Runs a job of a collective in a stream.
    pub(crate) fn enqueue(&self, stream: Stream, job: Job) -> Result<()> {
        match self.queue(stream) {
            None => job(),
            Some(queue) => queue.run(job),
        }
    }

    /// Refuses views that leave their arena.
    pub(crate) fn check(&self, views: &[View]) -> Result<()> {
        views.iter().try_for_each(|v| self.inner.memory.check(*v))
    }

    /// The arenas, for a collective's job.
    pub(crate) fn memory(&self) -> SharedMemory {
        SharedMemory(Arc::clone(&self.inner))
    }

    const fn queue(&self, stream: Stream) -> Option<&Queue> {
        match stream {
            Stream::Compute => None,
            Stream::Copy => Some(&self.copy),
            Stream::Comm => Some(&self.comm),
        }
    }
}

/// Keeps the arenas alive while a collective's job is queued.
#[derive(Clone)]
pub(crate) struct SharedMemory(Arc<Inner>);

impl SharedMemory {
    pub(crate) fn get(&self) -> &Memory {
        &self.0.memory
    }
}

pub(crate) use arena::{Element, Mat, Memory as Arenas};

impl Backend for CpuBackend {
    fn write(&self, dst: View, bytes: &[u8]) -> Result<()> {
        self.inner.memory.check(dst)?;
        check_bytes("write", dst, bytes.len())?;
        // SAFETY: checked; Compute is inline, so what was enqueued there is done.
        let dst = unsafe { self.inner.memory.bytes(dst, true) };
        for (r, row) in bytes.chunks_exact(dst.cols.max(1)).enumerate() {
            dst.row_mut(r).copy_from_slice(row);
        }
        Ok(())
    }

    fn read(&self, src: View, bytes: &mut [u8]) -> Result<()> {
        self.copy.failure()?;
        self.comm.failure()?;
        self.inner.memory.check(src)?;
        check_bytes("read", src, bytes.len())?;
        // SAFETY: as in `write`.
        let src = unsafe { self.inner.memory.bytes(src, true) };
        for (r, row) in bytes.chunks_exact_mut(src.cols.max(1)).enumerate() {
            row.copy_from_slice(src.row(r));
        }
        Ok(())
    }

    fn record(&self, stream: Stream) -> Result<Event> {
        self.queue(stream).map_or_else(|| Ok(self.events.create(false)), Queue::record)
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        match self.queue(stream) {
            Some(queue) => queue.wait(event),
            None => {
                self.events.query(event)?;
                self.events.wait(event);
                // Compute would go on with what a failed copy or collective left.
                self.copy.failure()?;
                self.comm.failure()
            }
        }
    }

    fn query(&self, event: Event) -> Result<bool> {
        self.events.query(event)
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.queue(stream).map_or(Ok(()), Queue::synchronize)
    }

    crate::op::forward_to_submit!();
}
