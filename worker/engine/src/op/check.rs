//! Whether the views of an operation fit together: shapes, element types, no overlap.

use super::Op;
use crate::{Dtype, Error, Mask, Result, Transpose, View};

/// Collects the first thing that is wrong with an operation's views.
struct Check {
    op: &'static str,
    wrong: Option<String>,
}

impl Check {
    fn that(&mut self, ok: bool, what: impl FnOnce() -> String) {
        if !ok && self.wrong.is_none() {
            self.wrong = Some(what());
        }
    }

    fn dtype(&mut self, name: &str, view: View, allowed: &[Dtype]) {
        self.that(allowed.contains(&view.dtype), || {
            format!("{name} is {:?} and must be one of {allowed:?}", view.dtype)
        });
    }

    fn shape(&mut self, name: &str, view: View, rows: usize, cols: usize) {
        self.that(view.rows == rows && view.cols == cols, || {
            format!("{name} is {} x {} and must be {rows} x {cols}", view.rows, view.cols)
        });
    }

    fn f32(&mut self, name: &str, view: View, rows: usize, cols: usize) {
        self.dtype(name, view, &[Dtype::F32]);
        self.shape(name, view, rows, cols);
    }

    fn operand(&mut self, name: &str, view: View, rows: usize, cols: usize) {
        self.dtype(name, view, &[Dtype::F32, Dtype::Bf16]);
        self.shape(name, view, rows, cols);
    }

    fn u32(&mut self, name: &str, view: View, rows: usize, cols: usize) {
        self.dtype(name, view, &[Dtype::U32]);
        self.shape(name, view, rows, cols);
    }

    fn mask(&mut self, mask: Mask, queries: usize, keys: usize) {
        self.u32("q_pos", mask.q_pos, queries, 1);
        self.u32("first_key", mask.first_key, queries, 1);
        self.u32("k_pos", mask.k_pos, keys, 1);
        for (name, view) in [("q_pos", mask.q_pos), ("first_key", mask.first_key), ("k_pos", mask.k_pos)] {
            self.that(view.is_dense(), || format!("{name} has gaps between its positions"));
        }
    }

    fn finish(self) -> Result<()> {
        match self.wrong {
            None => Ok(()),
            Some(what) => Err(Error::shape(self.op, what)),
        }
    }
}

impl Op {
    /// Checks shapes, element types and that no written view overlaps another.
    ///
    /// # Errors
    /// [`Error::Shape`] with the first view that does not fit.
    pub fn check(&self) -> Result<()> {
        let mut c = Check { op: self.name(), wrong: None };
        self.check_shapes(&mut c);
        let (reads, writes) = (self.reads(), self.writes());
        for (i, w) in writes.iter().enumerate() {
            for other in reads.iter().chain(&writes[i + 1..]) {
                c.that(!w.overlaps(other), || format!("{w:?} is written and overlaps {other:?}"));
            }
        }
        for view in reads.iter().chain(&writes) {
            c.that(view.row_stride >= view.cols || view.rows <= 1, || {
                format!("{view:?} has rows that overlap each other")
            });
            c.that(view.offset.is_multiple_of(view.dtype.size()), || {
                format!("{view:?} does not start at a multiple of its element's size")
            });
        }
        c.finish()
    }

    fn check_shapes(&self, c: &mut Check) {
        match *self {
            Self::Copy { src, dst } => {
                c.shape("dst", dst, src.rows, src.cols);
                if src.dtype != dst.dtype {
                    c.operand("src", src, src.rows, src.cols);
                    c.operand("dst", dst, src.rows, src.cols);
                }
            }
            Self::Fill { .. } => {}
            Self::Add { x, y } => {
                c.operand("x", x, y.rows, y.cols);
                c.f32("y", y, y.rows, y.cols);
            }
            Self::Gemm(g) => {
                let (m, k) = if g.ta == Transpose::No { (g.a.rows, g.a.cols) } else { (g.a.cols, g.a.rows) };
                let n = if g.tb == Transpose::No { g.b.cols } else { g.b.rows };
                c.operand("a", g.a, g.a.rows, g.a.cols);
                let (rows, cols) = if g.tb == Transpose::No { (k, n) } else { (n, k) };
                c.operand("b", g.b, rows, cols);
                c.f32("c", g.c, m, n);
            }
            Self::Embed { ids, table, out } => {
                c.u32("ids", ids, out.rows, 1);
                c.operand("table", table, table.rows, out.cols);
                c.f32("out", out, out.rows, out.cols);
            }
            Self::EmbedGrad { ids, d_out, d_table } => {
                c.u32("ids", ids, d_out.rows, 1);
                c.operand("d_out", d_out, d_out.rows, d_table.cols);
                c.f32("d_table", d_table, d_table.rows, d_table.cols);
            }
            Self::RmsNorm { x, w, y, rstd, .. } => {
                c.operand("x", x, x.rows, x.cols);
                c.operand("w", w, 1, x.cols);
                c.f32("y", y, x.rows, x.cols);
                c.f32("rstd", rstd, x.rows, 1);
            }
            Self::RmsNormGrad { x, w, rstd, dy, dx, dw, .. } => {
                c.operand("x", x, x.rows, x.cols);
                c.operand("w", w, 1, x.cols);
                c.f32("rstd", rstd, x.rows, 1);
                c.f32("dy", dy, x.rows, x.cols);
                c.f32("dx", dx, x.rows, x.cols);
                c.f32("dw", dw, 1, x.cols);
            }
            Self::RopeTable { pos, inv_freq, cos, sin } => {
                c.u32("pos", pos, pos.rows, 1);
                c.f32("inv_freq", inv_freq, 1, inv_freq.cols);
                c.f32("cos", cos, pos.rows, inv_freq.cols);
                c.f32("sin", sin, pos.rows, inv_freq.cols);
            }
            Self::Rope { x, cos, sin, .. } => {
                c.f32("x", x, x.rows, x.cols);
                c.f32("cos", cos, x.rows, cos.cols);
                c.f32("sin", sin, x.rows, cos.cols);
                c.that(cos.cols > 0 && x.cols.is_multiple_of(2 * cos.cols), || {
                    format!("x has {} columns and must have whole heads of {}", x.cols, 2 * cos.cols)
                });
            }
            Self::Attn(a) => {
                Self::check_heads(c, a.heads);
                let (t, s) = (a.q.rows, a.k.rows);
                c.operand("q", a.q, t, a.heads.query * a.heads.dim);
                c.operand("k", a.k, s, a.heads.kv * a.heads.dim);
                c.operand("v", a.v, s, a.heads.kv * a.heads.dim);
                c.f32("o", a.o, t, a.heads.query * a.heads.dim);
                c.f32("lse", a.lse, t, a.heads.query);
                c.mask(a.mask, t, s);
            }
            Self::AttnDelta { o, d_o, delta } => {
                c.f32("o", o, o.rows, o.cols);
                c.operand("d_o", d_o, o.rows, o.cols);
                c.f32("delta", delta, o.rows, delta.cols);
                c.that(delta.cols > 0 && o.cols.is_multiple_of(delta.cols), || {
                    format!("o has {} columns and must have {} whole heads", o.cols, delta.cols)
                });
            }
            Self::AttnGrad(a) => {
                Self::check_heads(c, a.heads);
                let (t, s) = (a.q.rows, a.k.rows);
                let (qc, kc) = (a.heads.query * a.heads.dim, a.heads.kv * a.heads.dim);
                c.operand("q", a.q, t, qc);
                c.operand("k", a.k, s, kc);
                c.operand("v", a.v, s, kc);
                c.operand("d_o", a.d_o, t, qc);
                c.f32("lse", a.lse, t, a.heads.query);
                c.f32("delta", a.delta, t, a.heads.query);
                c.f32("dq", a.dq, t, qc);
                c.f32("dk", a.dk, s, kc);
                c.f32("dv", a.dv, s, kc);
                c.mask(a.mask, t, s);
            }
            Self::Swiglu { gate, up, out } => {
                c.operand("gate", gate, out.rows, out.cols);
                c.operand("up", up, out.rows, out.cols);
                c.f32("out", out, out.rows, out.cols);
            }
            Self::SwigluGrad { gate, up, d_out } => {
                c.f32("gate", gate, d_out.rows, d_out.cols);
                c.f32("up", up, d_out.rows, d_out.cols);
                c.operand("d_out", d_out, d_out.rows, d_out.cols);
            }
            Self::CrossEntropy(e) => {
                let t = e.logits.rows;
                c.f32("logits", e.logits, t, e.logits.cols);
                c.u32("targets", e.targets, t, 1);
                c.f32("weights", e.weights, t, 1);
                c.f32("nll", e.nll, t, 1);
            }
            Self::WeightedSum { x, w, sum } => {
                c.f32("x", x, x.rows, 1);
                c.f32("w", w, x.rows, 1);
                c.dtype("sum", sum, &[Dtype::F64]);
                c.shape("sum", sum, 1, 1);
            }
            Self::SumSquares { x, sum } => {
                c.operand("x", x, x.rows, x.cols);
                c.dtype("sum", sum, &[Dtype::F64]);
                c.shape("sum", sum, 1, 1);
            }
            Self::ClipFactor { sum, factor, finite, .. } => {
                c.dtype("sum", sum, &[Dtype::F64]);
                c.shape("sum", sum, 1, 1);
                c.f32("factor", factor, 1, 1);
                c.u32("finite", finite, 1, 1);
            }
            Self::AdamW(a) => {
                for (name, view) in [("w", a.w), ("g", a.g), ("m", a.m), ("v", a.v)] {
                    c.f32(name, view, 1, a.w.cols);
                }
                c.f32("factor", a.factor, 1, 1);
                c.u32("finite", a.finite, 1, 1);
                c.that(a.step >= 1, || "step counts from 1".to_owned());
            }
        }
    }

    fn check_heads(c: &mut Check, heads: crate::Heads) {
        c.that(heads.kv > 0 && heads.dim > 0 && heads.query.is_multiple_of(heads.kv), || {
            format!("{heads:?}: the KV heads must divide the query heads")
        });
    }
}
