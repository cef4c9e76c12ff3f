//! Attention over a row that is spread over the ranks: the one place that knows of them.
//!
//! Rank r of P holds chunks r and 2P−1−r of a row (zigzag: every rank has equal work under a
//! causal mask). Keys and values travel round the ring while queries stay; in the backward the
//! gradients of keys and values travel with them and come home after P hops. The block on the
//! diagonal is merged first, so no query starts with a block in which it sees nothing.

use longstrap_engine::{Attention, AttentionGrad, Backend, Comm, Heads, Mask, Result, Stream, Tag, View};

use super::buffers::{Buffers, RowViews};

/// Queries of this rank, keys and values of any.
#[derive(Clone, Copy, Debug)]
pub struct Qkv {
    /// t × h·D.
    pub q: View,
    /// t × g·D.
    pub k: View,
    /// t × g·D.
    pub v: View,
}

impl Qkv {
    /// Of the columns of a joint matrix, t × (h + 2g)·D.
    pub fn split(joint: View, heads: Heads) -> Self {
        let (q, kv) = (heads.query * heads.dim, heads.kv * heads.dim);
        Self {
            q: joint.col_range(0..q),
            k: joint.col_range(q..q + kv),
            v: joint.col_range(q + kv..q + 2 * kv),
        }
    }

    /// The same queries with keys and values from a ring buffer (K over V).
    fn with_ring_buffer(self, buffer: View) -> Self {
        let t = self.k.rows;
        let half = buffer.rows / 2;
        Self { q: self.q, k: buffer.row_range(0..t), v: buffer.row_range(half..half + t) }
    }
}

/// What travels in one pass; keeps the frames of a step apart.
#[derive(Clone, Copy, Debug)]
enum Pass {
    Forward,
    BackwardKv,
    BackwardDKv,
}

/// Where in a step an attention is computed.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Optimizer step.
    pub step: u64,
    /// Row within the step.
    pub row: usize,
    /// Layer.
    pub layer: usize,
}

/// Zigzag ring attention; one rank is a ring of one block.
pub struct Ring<'a> {
    backend: &'a dyn Backend,
    comm: &'a dyn Comm,
    heads: Heads,
    kv: Vec<View>,
    d_kv: Vec<View>,
}

const COMPUTE: Stream = Stream::Compute;
const COMM: Stream = Stream::Comm;

impl<'a> Ring<'a> {
    /// A ring over all ranks of `comm`.
    pub fn new(backend: &'a dyn Backend, comm: &'a dyn Comm, heads: Heads, buffers: &Buffers) -> Self {
        Self { backend, comm, heads, kv: buffers.ring_kv.clone(), d_kv: buffers.ring_d_kv.clone() }
    }

    /// o, lse ← attention of this rank's queries to the keys of all ranks.
    ///
    /// # Errors
    /// As backend and peers report.
    pub fn forward(&self, at: At, row: &RowViews, own: Qkv, o: View, lse: View) -> Result<()> {
        self.backend.fill(COMPUTE, o, 0.0)?;
        self.backend.fill(COMPUTE, lse, f32::NEG_INFINITY)?;
        let mut held = own;
        for hop in 0..self.comm.world() {
            let next = self.send_keys(at, Pass::Forward, hop, held, own)?;
            for block in self.blocks(row, self.owner(hop), held) {
                self.backend.attn(
                    COMPUTE,
                    Attention {
                        q: block.qkv.q,
                        k: block.qkv.k,
                        v: block.qkv.v,
                        mask: block.mask,
                        heads: self.heads,
                        scale: self.scale(),
                        o: o.row_range(block.queries.clone()),
                        lse: lse.row_range(block.queries),
                    },
                )?;
            }
            held = self.receive(next, held)?;
        }
        Ok(())
    }

    /// d ← gradients of this rank's queries, keys and values, from those of its outputs and from
    /// what the other ranks' queries owe its keys.
    ///
    /// # Errors
    /// As backend and peers report.
    #[allow(clippy::too_many_arguments, reason = "an attention gradient has so many operands")]
    pub fn backward(
        &self,
        at: At,
        row: &RowViews,
        own: Qkv,
        lse: View,
        delta: View,
        d_o: View,
        d: Qkv,
    ) -> Result<()> {
        let world = self.comm.world();
        self.backend.fill(COMPUTE, d.q, 0.0)?;
        let mut d_held = if world == 1 { d } else { d.with_ring_buffer(self.d_kv[0]) };
        self.backend.fill(COMPUTE, d_held.k, 0.0)?;
        self.backend.fill(COMPUTE, d_held.v, 0.0)?;
        let mut held = own;
        for hop in 0..world {
            let next = self.send_keys(at, Pass::BackwardKv, hop, held, own)?;
            for block in self.blocks(row, self.owner(hop), held) {
                self.backend.attn_grad(
                    COMPUTE,
                    AttentionGrad {
                        q: block.qkv.q,
                        k: block.qkv.k,
                        v: block.qkv.v,
                        mask: block.mask,
                        heads: self.heads,
                        scale: self.scale(),
                        lse: lse.row_range(block.queries.clone()),
                        delta: delta.row_range(block.queries.clone()),
                        d_o: d_o.row_range(block.queries.clone()),
                        dq: d.q.row_range(block.queries),
                        dk: d_held.k.row_range(block.keys.clone()),
                        dv: d_held.v.row_range(block.keys),
                    },
                )?;
            }
            held = self.receive(next, held)?;
            if world > 1 {
                // The gradients follow their keys; after the last hop they are at home.
                let arriving = d.with_ring_buffer(self.d_kv[(hop + 1) % 2]);
                self.exchange(at, Pass::BackwardDKv, hop, d_held, arriving)?;
                self.backend.wait(COMPUTE, self.backend.record(COMM)?)?;
                d_held = arriving;
            }
        }
        if world > 1 {
            self.backend.copy(COMPUTE, d_held.k, d.k)?;
            self.backend.copy(COMPUTE, d_held.v, d.v)?;
        }
        Ok(())
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.dim as f32).sqrt()
    }

    /// Whose keys this rank holds at a hop.
    fn owner(&self, hop: usize) -> usize {
        (self.comm.rank() + self.comm.world() - hop) % self.comm.world()
    }

    /// Starts the next block on its way, unless this is the last hop.
    fn send_keys(&self, at: At, pass: Pass, hop: usize, held: Qkv, own: Qkv) -> Result<Option<Qkv>> {
        if hop + 1 == self.comm.world() {
            return Ok(None);
        }
        let arriving = own.with_ring_buffer(self.kv[hop % 2]);
        self.exchange(at, pass, hop, held, arriving)?;
        Ok(Some(arriving))
    }

    /// Lets the compute stream wait for what is arriving.
    fn receive(&self, next: Option<Qkv>, held: Qkv) -> Result<Qkv> {
        match next {
            None => Ok(held),
            Some(next) => {
                self.backend.wait(COMPUTE, self.backend.record(COMM)?)?;
                Ok(next)
            }
        }
    }

    fn exchange(&self, at: At, pass: Pass, hop: usize, send: Qkv, receive: Qkv) -> Result<()> {
        let (world, rank) = (self.comm.world(), self.comm.rank());
        // Not before all that was enqueued: the buffer received into may still be read.
        self.backend.wait(COMM, self.backend.record(COMPUTE)?)?;
        let hop = (at.row * 3 + pass as usize) * world + hop;
        let tag = Tag { step: at.step as u32, layer: at.layer as u32, hop: hop as u32 };
        let (next, previous) = ((rank + 1) % world, (rank + world - 1) % world);
        self.comm.exchange(COMM, tag, &[send.k, send.v], next, &[receive.k, receive.v], previous)
    }

    /// The blocks of one hop in which a query can see a key, diagonal first.
    fn blocks(&self, row: &RowViews, owner: usize, qkv: Qkv) -> Vec<Block> {
        let (world, rank, t) = (self.comm.world(), self.comm.rank(), row.tokens);
        let key_pos = row.key_pos.row_range(owner * t..(owner + 1) * t);
        let block = |queries: std::ops::Range<usize>, keys: std::ops::Range<usize>| Block {
            qkv: Qkv {
                q: qkv.q.row_range(queries.clone()),
                k: qkv.k.row_range(keys.clone()),
                v: qkv.v.row_range(keys.clone()),
            },
            mask: Mask {
                q_pos: row.query_pos.row_range(queries.clone()),
                first_key: row.first_key.row_range(queries.clone()),
                k_pos: key_pos.row_range(keys.clone()),
            },
            queries,
            keys,
        };
        if world == 1 {
            return vec![block(0..t, 0..t)];
        }
        let halves = [0..t / 2, t / 2..t];
        let chunks = |rank: usize| [rank, 2 * world - 1 - rank];
        let mut found = Vec::with_capacity(3);
        for (queries, q_chunk) in halves.iter().zip(chunks(rank)) {
            for (keys, k_chunk) in halves.iter().zip(chunks(owner)) {
                // Later chunks lie in every query's future.
                if k_chunk <= q_chunk {
                    found.push((q_chunk != k_chunk, block(queries.clone(), keys.clone())));
                }
            }
        }
        found.sort_by_key(|(off_diagonal, _)| *off_diagonal);
        found.into_iter().map(|(_, block)| block).collect()
    }
}

/// One call of the kernel.
struct Block {
    queries: std::ops::Range<usize>,
    keys: std::ops::Range<usize>,
    qkv: Qkv,
    mask: Mask,
}
