//! From a checked operation to its kernel.

use super::arena::Memory;
use super::mask::Positions;
use super::pool::Exec;
use super::{attention, attention_grad, elementwise, gemm, loss, mlp, norm, optimizer, rope};
use crate::{Mask, Op, View};

/// Runs an operation on the calling thread and `exec`'s.
///
/// # Safety
/// The operation passed [`Op::check`], all its views [`Memory::check`], and operations of other
/// streams that touch them are ordered against this one.
pub(crate) unsafe fn run(op: &Op, memory: &Memory, exec: &Exec) {
    // SAFETY: the caller's promise is that of `mat` and `operand`.
    let (f32, u32, f64, operand) = unsafe {
        (
            |v: View| memory.mat::<f32>(v),
            |v: View| memory.mat::<u32>(v),
            |v: View| memory.mat::<f64>(v),
            |v: View| memory.operand(v),
        )
    };
    let column = |v: View| if v.is_empty() { &[] } else { u32(v).joined().row(0) };
    let inputs = |q, k, v, m: Mask, heads, scale| attention::Inputs {
        q: operand(q),
        k: operand(k),
        v: operand(v),
        positions: Positions {
            q_pos: column(m.q_pos),
            first_key: column(m.first_key),
            k_pos: column(m.k_pos),
        },
        heads,
        scale,
    };
    match *op {
        Op::Copy { src, dst } => elementwise::copy(exec, memory, src, dst),
        Op::Fill { dst, value } => elementwise::fill(exec, memory, dst, value),
        Op::Add { x, y } => elementwise::add(exec, operand(x), f32(y)),
        Op::Gemm(g) => gemm::product(exec, operand(g.a), g.ta, operand(g.b), g.tb, f32(g.c), g.beta),
        Op::Embed { ids, table, out } => elementwise::embed(exec, u32(ids), operand(table), f32(out)),
        Op::EmbedGrad { ids, d_out, d_table } => {
            elementwise::embed_grad(exec, u32(ids), operand(d_out), f32(d_table));
        }
        Op::RmsNorm { x, w, eps, y, rstd } => {
            norm::forward(exec, operand(x), operand(w), eps, f32(y), f32(rstd));
        }
        Op::RmsNormGrad { x, w, rstd, dy, dx, beta, dw } => {
            let (x, w, rstd, dy) = (operand(x), operand(w), f32(rstd), f32(dy));
            norm::backward(exec, &norm::Backward { x, w, rstd, dy, dx: f32(dx), beta, dw: f32(dw) });
        }
        Op::RopeTable { pos, inv_freq, cos, sin } => {
            rope::table(exec, u32(pos), f32(inv_freq), f32(cos), f32(sin));
        }
        Op::Rope { x, cos, sin, inverse } => rope::rotate(exec, f32(x), f32(cos), f32(sin), inverse),
        Op::Attn(a) => attention::forward(
            exec,
            &attention::Forward {
                inputs: inputs(a.q, a.k, a.v, a.mask, a.heads, a.scale),
                o: f32(a.o),
                lse: f32(a.lse),
            },
        ),
        Op::AttnDelta { o, d_o, delta } => attention::delta(exec, f32(o), operand(d_o), f32(delta)),
        Op::AttnGrad(a) => attention_grad::backward(
            exec,
            &attention_grad::Backward {
                inputs: inputs(a.q, a.k, a.v, a.mask, a.heads, a.scale),
                lse: f32(a.lse),
                delta: f32(a.delta),
                d_o: operand(a.d_o),
                dq: f32(a.dq),
                dk: f32(a.dk),
                dv: f32(a.dv),
            },
        ),
        Op::Swiglu { gate, up, out } => mlp::forward(exec, operand(gate), operand(up), f32(out)),
        Op::SwigluGrad { gate, up, d_out } => mlp::backward(exec, f32(gate), f32(up), operand(d_out)),
        Op::CrossEntropy(c) => loss::cross_entropy(
            exec,
            &loss::CrossEntropy {
                logits: f32(c.logits),
                targets: u32(c.targets),
                weights: f32(c.weights),
                nll: f32(c.nll),
                scale: c.scale,
                grad: c.grad,
            },
        ),
        Op::WeightedSum { x, w, sum } => elementwise::weighted_sum(exec, f32(x), f32(w), f64(sum)),
        Op::SumSquares { x, sum } => elementwise::sum_squares(exec, operand(x), f64(sum)),
        Op::ClipFactor { sum, max_norm, factor, finite } => {
            optimizer::clip_factor(f64(sum), max_norm, f32(factor), u32(finite));
        }
        Op::AdamW(a) => {
            let (factor, finite) = (f32(a.factor), u32(a.finite));
            let (w, g, m, v) = (f32(a.w), f32(a.g), f32(a.m), f32(a.v));
            optimizer::adamw(exec, &optimizer::Buffers { w, g, m, v, factor, finite }, &a);
        }
    }
}
