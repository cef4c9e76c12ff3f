//! A backend without arithmetic: the trainer needs nothing but the contract, reads numbers only
//! at the end of a step, and never reads what is still to be computed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use longstrap_engine::*;
use longstrap_memory_plan::{Options, Plan};

use super::rig::{Fixture, TestRow, step, update};
use crate::step::Trainer;

#[derive(Default)]
struct Recorder {
    calls: Mutex<Vec<&'static str>>,
    events: AtomicU64,
}

impl Recorder {
    fn note(&self, op: &'static str) -> Result<()> {
        self.calls.lock().unwrap().push(op);
        Ok(())
    }
}

#[rustfmt::skip]
impl Backend for Recorder {
    fn write(&self, dst: View, bytes: &[u8]) -> Result<()> {
        assert_eq!(dst.len() * dst.dtype.size(), bytes.len());
        self.note("write")
    }
    fn read(&self, _: View, bytes: &mut [u8]) -> Result<()> { bytes.fill(0); self.note("read") }
    fn record(&self, _: Stream) -> Result<Event> { Ok(Event(self.events.fetch_add(1, Ordering::Relaxed))) }
    fn wait(&self, _: Stream, _: Event) -> Result<()> { Ok(()) }
    fn query(&self, _: Event) -> Result<bool> { Ok(true) }
    fn synchronize(&self, _: Stream) -> Result<()> { self.note("synchronize") }
    fn copy(&self, _: Stream, src: View, dst: View) -> Result<()> { Op::Copy { src, dst }.check()?; self.note("copy") }
    fn fill(&self, _: Stream, dst: View, value: f32) -> Result<()> { Op::Fill { dst, value }.check()?; self.note("fill") }
    fn add(&self, _: Stream, x: View, y: View) -> Result<()> { Op::Add { x, y }.check()?; self.note("add") }
    fn gemm(&self, _: Stream, op: Gemm) -> Result<()> { Op::Gemm(op).check()?; self.note("gemm") }
    fn embed(&self, _: Stream, ids: View, table: View, out: View) -> Result<()> { Op::Embed { ids, table, out }.check()?; self.note("embed") }
    fn embed_grad(&self, _: Stream, ids: View, d_out: View, d_table: View) -> Result<()> { Op::EmbedGrad { ids, d_out, d_table }.check()?; self.note("embed_grad") }
    fn rms_norm(&self, _: Stream, x: View, w: View, eps: f32, y: View, rstd: View) -> Result<()> { Op::RmsNorm { x, w, eps, y, rstd }.check()?; self.note("rms_norm") }
    fn rms_norm_grad(&self, _: Stream, x: View, w: View, rstd: View, dy: View, dx: View, beta: Beta, dw: View) -> Result<()> { Op::RmsNormGrad { x, w, rstd, dy, dx, beta, dw }.check()?; self.note("rms_norm_grad") }
    fn rope_table(&self, _: Stream, pos: View, inv_freq: View, cos: View, sin: View) -> Result<()> { Op::RopeTable { pos, inv_freq, cos, sin }.check()?; self.note("rope_table") }
    fn rope(&self, _: Stream, x: View, cos: View, sin: View, inverse: bool) -> Result<()> { Op::Rope { x, cos, sin, inverse }.check()?; self.note("rope") }
    fn attn(&self, _: Stream, op: Attention) -> Result<()> { Op::Attn(op).check()?; self.note("attn") }
    fn attn_delta(&self, _: Stream, o: View, d_o: View, delta: View) -> Result<()> { Op::AttnDelta { o, d_o, delta }.check()?; self.note("attn_delta") }
    fn attn_grad(&self, _: Stream, op: AttentionGrad) -> Result<()> { Op::AttnGrad(op).check()?; self.note("attn_grad") }
    fn swiglu(&self, _: Stream, gate: View, up: View, out: View) -> Result<()> { Op::Swiglu { gate, up, out }.check()?; self.note("swiglu") }
    fn swiglu_grad(&self, _: Stream, gate: View, up: View, d_out: View) -> Result<()> { Op::SwigluGrad { gate, up, d_out }.check()?; self.note("swiglu_grad") }
    fn cross_entropy(&self, _: Stream, op: CrossEntropy) -> Result<()> { Op::CrossEntropy(op).check()?; self.note("cross_entropy") }
    fn weighted_sum(&self, _: Stream, x: View, w: View, sum: View) -> Result<()> { Op::WeightedSum { x, w, sum }.check()?; self.note("weighted_sum") }
    fn sum_squares(&self, _: Stream, x: View, sum: View) -> Result<()> { Op::SumSquares { x, sum }.check()?; self.note("sum_squares") }
    fn clip_factor(&self, _: Stream, sum: View, max_norm: f64, factor: View, finite: View) -> Result<()> { Op::ClipFactor { sum, max_norm, factor, finite }.check()?; self.note("clip_factor") }
    fn adamw(&self, _: Stream, op: AdamW) -> Result<()> { Op::AdamW(op).check()?; self.note("adamw") }
}

/// Two ranks of which only this one exists.
struct Alone;

impl Comm for Alone {
    fn rank(&self) -> Peer {
        0
    }
    fn world(&self) -> usize {
        2
    }
    fn exchange(&self, _: Stream, _: Tag, send: &[View], _: Peer, recv: &[View], _: Peer) -> Result<()> {
        let bytes = |views: &[View]| views.iter().map(|v| v.len() * v.dtype.size()).sum::<usize>();
        assert_eq!(bytes(send), bytes(recv));
        Ok(())
    }
    fn all_reduce(&self, _: Stream, _: Tag, _: View) -> Result<()> {
        Ok(())
    }
    fn all_gather(&self, _: Stream, _: Tag, _: View, _: View) -> Result<()> {
        unreachable!("the ring gathers nothing")
    }
    fn reduce_scatter(&self, _: Stream, _: Tag, _: View, _: View) -> Result<()> {
        unreachable!("weights are replicated")
    }
    fn all_to_all(&self, _: Stream, _: Tag, _: View, _: View) -> Result<()> {
        unreachable!("heads stay where they are")
    }
    fn bytes_sent(&self) -> u64 {
        0
    }
}

#[test]
fn a_step_needs_the_contract_and_reads_once_at_its_end() {
    let fixture = Fixture::load("llama3");
    let options = Options { ranks: 2, sources: 2, ..Options::default() };
    let plan = Plan::new(fixture.shape, 101, options);
    let recorder = Recorder::default();
    let trainer = Trainer::new(&recorder, &Alone, &plan, 1e-5);
    let rows = [TestRow::of(&[50, 51], 320), TestRow::of(&[7], 320)];
    step(&trainer, &Alone, &update(1, 100.0), &rows);
    let calls = recorder.calls.into_inner().unwrap();
    let first_read = calls.iter().position(|c| *c == "read").unwrap();
    assert_eq!(calls[first_read..], ["read"; 3], "numbers come back at the end only");
    assert!(!calls.contains(&"synchronize"));
    let updates = calls.iter().filter(|c| **c == "adamw").count();
    // Matrices and norms of three layers, embedding, final norm, head.
    assert_eq!(updates, 2 * 3 + 3);
    assert!(calls.iter().rposition(|c| *c == "gemm") < calls.iter().position(|c| *c == "sum_squares"));
}
