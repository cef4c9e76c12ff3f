//! One operation as plain data: what it reads, what it writes, and whether its views fit together.
//!
//! Invariant: every backend checks an operation here before it enqueues it, so a wrong shape is
//! the same error on every device and never reaches a kernel.

use crate::{
    AdamW, Attention, AttentionGrad, Beta, CrossEntropy, Dtype, Error, Gemm, Mask, Result, Transpose, View,
};

/// A kernel call; the fields are those of the methods of [`crate::Backend`].
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Op {
    Copy { src: View, dst: View },
    Fill { dst: View, value: f32 },
    Add { x: View, y: View },
    Gemm(Gemm),
    Embed { ids: View, table: View, out: View },
    EmbedGrad { ids: View, d_out: View, d_table: View },
    RmsNorm { x: View, w: View, eps: f32, y: View, rstd: View },
    RmsNormGrad { x: View, w: View, rstd: View, dy: View, dx: View, beta: Beta, dw: View },
    RopeTable { pos: View, inv_freq: View, cos: View, sin: View },
    Rope { x: View, cos: View, sin: View, inverse: bool },
    Attn(Attention),
    AttnDelta { o: View, d_o: View, delta: View },
    AttnGrad(AttentionGrad),
    Swiglu { gate: View, up: View, out: View },
    SwigluGrad { gate: View, up: View, d_out: View },
    CrossEntropy(CrossEntropy),
    WeightedSum { x: View, w: View, sum: View },
    SumSquares { x: View, sum: View },
    ClipFactor { sum: View, max_norm: f64, factor: View, finite: View },
    AdamW(AdamW),
}

/// Refuses bytes that are not as many as a view has.
pub(crate) fn check_bytes(op: &'static str, view: View, bytes: usize) -> Result<()> {
    let want = view.len() * view.dtype.size();
    if bytes == want {
        Ok(())
    } else {
        Err(Error::shape(op, format!("{bytes} bytes for a view of {want} bytes")))
    }
}

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
    /// Name of the operation, as in the table of `docs/engine.md`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Copy { .. } => "copy",
            Self::Fill { .. } => "fill",
            Self::Add { .. } => "add",
            Self::Gemm(_) => "gemm",
            Self::Embed { .. } => "embed",
            Self::EmbedGrad { .. } => "embed_grad",
            Self::RmsNorm { .. } => "rms_norm",
            Self::RmsNormGrad { .. } => "rms_norm_grad",
            Self::RopeTable { .. } => "rope_table",
            Self::Rope { .. } => "rope",
            Self::Attn(_) => "attn",
            Self::AttnDelta { .. } => "attn_delta",
            Self::AttnGrad(_) => "attn_grad",
            Self::Swiglu { .. } => "swiglu",
            Self::SwigluGrad { .. } => "swiglu_grad",
            Self::CrossEntropy(_) => "cross_entropy",
            Self::WeightedSum { .. } => "weighted_sum",
            Self::SumSquares { .. } => "sum_squares",
            Self::ClipFactor { .. } => "clip_factor",
            Self::AdamW(_) => "adamw",
        }
    }

    /// Views that are only read.
    #[must_use]
    pub fn reads(&self) -> Vec<View> {
        match *self {
            Self::Copy { src, .. } => vec![src],
            Self::Fill { .. } => vec![],
            Self::Add { x, .. } => vec![x],
            Self::Gemm(g) => vec![g.a, g.b],
            Self::Embed { ids, table, .. } => vec![ids, table],
            Self::EmbedGrad { ids, d_out, .. } => vec![ids, d_out],
            Self::RmsNorm { x, w, .. } => vec![x, w],
            Self::RmsNormGrad { x, w, rstd, dy, .. } => vec![x, w, rstd, dy],
            Self::RopeTable { pos, inv_freq, .. } => vec![pos, inv_freq],
            Self::Rope { cos, sin, .. } => vec![cos, sin],
            Self::Attn(a) => vec![a.q, a.k, a.v, a.mask.q_pos, a.mask.first_key, a.mask.k_pos],
            Self::AttnDelta { o, d_o, .. } => vec![o, d_o],
            Self::AttnGrad(a) => {
                vec![a.q, a.k, a.v, a.mask.q_pos, a.mask.first_key, a.mask.k_pos, a.lse, a.delta, a.d_o]
            }
            Self::Swiglu { gate, up, .. } => vec![gate, up],
            Self::SwigluGrad { d_out, .. } => vec![d_out],
            Self::CrossEntropy(c) => vec![c.targets, c.weights],
            Self::WeightedSum { x, w, .. } => vec![x, w],
            Self::SumSquares { x, .. } => vec![x],
            Self::ClipFactor { sum, .. } => vec![sum],
            Self::AdamW(a) => vec![a.g, a.factor, a.finite],
        }
    }

    /// Views that are written, also those that are read and written.
    #[must_use]
    pub fn writes(&self) -> Vec<View> {
        match *self {
            Self::Copy { dst, .. } | Self::Fill { dst, .. } => vec![dst],
            Self::Add { y, .. } => vec![y],
            Self::Gemm(g) => vec![g.c],
            Self::Embed { out, .. } | Self::Swiglu { out, .. } => vec![out],
            Self::EmbedGrad { d_table, .. } => vec![d_table],
            Self::RmsNorm { y, rstd, .. } => vec![y, rstd],
            Self::RmsNormGrad { dx, dw, .. } => vec![dx, dw],
            Self::RopeTable { cos, sin, .. } => vec![cos, sin],
            Self::Rope { x, .. } => vec![x],
            Self::Attn(a) => vec![a.o, a.lse],
            Self::AttnDelta { delta, .. } => vec![delta],
            Self::AttnGrad(a) => vec![a.dq, a.dk, a.dv],
            Self::SwigluGrad { gate, up, .. } => vec![gate, up],
            Self::CrossEntropy(c) => vec![c.logits, c.nll],
            Self::WeightedSum { sum, .. } | Self::SumSquares { sum, .. } => vec![sum],
            Self::ClipFactor { factor, finite, .. } => vec![factor, finite],
            Self::AdamW(a) => vec![a.w, a.m, a.v],
        }
    }

    /// Multiplications and additions of the matrix part, for rates; attention counts every pair,
    /// seen or not.
    #[must_use]
    pub fn flops(&self) -> u64 {
        match self {
            Self::Gemm(g) => {
                let k = if g.ta == Transpose::No { g.a.cols } else { g.a.rows };
                2 * (g.c.rows * g.c.cols * k) as u64
            }
            Self::Attn(a) => 4 * (a.q.rows * a.k.rows * a.heads.query * a.heads.dim) as u64,
            Self::AttnGrad(a) => 10 * (a.q.rows * a.k.rows * a.heads.query * a.heads.dim) as u64,
            _ => 0,
        }
    }

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

/// The kernel methods of [`crate::Backend`] for a type with `submit(stream, op)`.
macro_rules! forward_to_submit {
    () => {
        $crate::op::forward_to_submit! {
            copy(src: View, dst: View) = Copy;
            fill(dst: View, value: f32) = Fill;
            add(x: View, y: View) = Add;
            embed(ids: View, table: View, out: View) = Embed;
            embed_grad(ids: View, d_out: View, d_table: View) = EmbedGrad;
            rms_norm(x: View, w: View, eps: f32, y: View, rstd: View) = RmsNorm;
            rms_norm_grad(x: View, w: View, rstd: View, dy: View, dx: View, beta: $crate::Beta, dw: View) = RmsNormGrad;
            rope_table(pos: View, inv_freq: View, cos: View, sin: View) = RopeTable;
            rope(x: View, cos: View, sin: View, inverse: bool) = Rope;
            attn_delta(o: View, d_o: View, delta: View) = AttnDelta;
            swiglu(gate: View, up: View, out: View) = Swiglu;
            swiglu_grad(gate: View, up: View, d_out: View) = SwigluGrad;
            weighted_sum(x: View, w: View, sum: View) = WeightedSum;
            sum_squares(x: View, sum: View) = SumSquares;
            clip_factor(sum: View, max_norm: f64, factor: View, finite: View) = ClipFactor;
        }
        fn gemm(&self, stream: Stream, op: $crate::Gemm) -> Result<()> {
            self.submit(stream, Op::Gemm(op))
        }
        fn attn(&self, stream: Stream, op: $crate::Attention) -> Result<()> {
            self.submit(stream, Op::Attn(op))
        }
        fn attn_grad(&self, stream: Stream, op: $crate::AttentionGrad) -> Result<()> {
            self.submit(stream, Op::AttnGrad(op))
        }
        fn cross_entropy(&self, stream: Stream, op: $crate::CrossEntropy) -> Result<()> {
            self.submit(stream, Op::CrossEntropy(op))
        }
        fn adamw(&self, stream: Stream, op: $crate::AdamW) -> Result<()> {
            self.submit(stream, Op::AdamW(op))
        }
    };
    ($($method:ident($($arg:ident: $ty:ty),*) = $variant:ident;)*) => {
        $(fn $method(&self, stream: Stream, $($arg: $ty),*) -> Result<()> {
            self.submit(stream, Op::$variant { $($arg),* })
        })*
    };
}
pub(crate) use forward_to_submit;
