//! The forward of a row, and the head with its loss.

use longstrap_engine::{Beta, CrossEntropy, Result, View};

use super::{Activations, At, COMPUTE, Model, Place, Qkv, RowViews, StepResult, Watch, tiles, visit};

impl Model<'_> {
    /// Runs the layers; the result is the residual stream before the final norm.
    ///
    /// # Errors
    /// As backend and peers report; an interruption between layers.
    pub fn forward(
        &self,
        step: u64,
        index: usize,
        row: &RowViews,
        acts: &Activations,
        watch: &Watch<'_>,
    ) -> StepResult {
        let b = self.backend;
        b.rope_table(COMPUTE, row.rope_pos, self.buffers.inv_freq, row.cos, row.sin)?;
        b.embed(COMPUTE, row.ids, self.weights.embedding, self.stream(acts, 0))?;
        for layer in 0..self.plan.shape.layers {
            visit(watch, Place::Forward { row: index, layer })?;
            self.layer_forward(At { step, row: index, layer }, row, acts)?;
        }
        Ok(())
    }

    fn layer_forward(&self, at: At, row: &RowViews, acts: &Activations) -> Result<()> {
        let b = self.backend;
        let w = &self.weights.layers[at.layer];
        let (x, y) = (self.stream(acts, at.layer), self.stream(acts, at.layer + 1));
        if x != acts.inputs[at.layer] {
            b.copy(COMPUTE, x, acts.inputs[at.layer])?;
        }
        // Attention: y = x + O·attn(norm(x)).
        let (o, lse) = self.attention_slot(acts, at.layer);
        let qkv = self.queries_keys_values(at.layer, x, row, acts)?;
        self.ring.forward(at, row, qkv, o, lse)?;
        if x != y {
            b.copy(COMPUTE, x, y)?;
        }
        self.project(o, w.o, y, Beta::One)?;
        // MLP in tiles of tokens: y = y + down(silu(gate) · up).
        b.rms_norm(COMPUTE, y, w.mlp_norm, self.eps, acts.normed, acts.rstd)?;
        for tile in tiles(row.tokens, self.plan.mlp_tile) {
            let (gate_up, activated) = self.mlp_tile(at.layer, acts.normed.row_range(tile.clone()))?;
            let (gate, up) = halves(gate_up);
            b.swiglu(COMPUTE, gate, up, activated)?;
            self.project(activated, w.down, y.row_range(tile), Beta::One)?;
        }
        Ok(())
    }

    /// q, k and v of a layer's input, rotated; leaves `normed` and `rstd` of the input behind.
    pub(super) fn queries_keys_values(
        &self,
        layer: usize,
        x: View,
        row: &RowViews,
        acts: &Activations,
    ) -> Result<Qkv> {
        let w = &self.weights.layers[layer];
        self.backend.rms_norm(COMPUTE, x, w.input_norm, self.eps, acts.normed, acts.rstd)?;
        self.project(acts.normed, w.qkv, acts.qkv, Beta::Zero)?;
        let qkv = Qkv::split(acts.qkv, self.heads);
        self.backend.rope(COMPUTE, qkv.q, row.cos, row.sin, false)?;
        self.backend.rope(COMPUTE, qkv.k, row.cos, row.sin, false)?;
        Ok(qkv)
    }

    /// gate and up of some tokens, and a place for what is made of them.
    pub(super) fn mlp_tile(&self, layer: usize, normed: View) -> Result<(View, View)> {
        let gate_up = self.buffers.gate_up.row_range(0..normed.rows);
        self.project(normed, self.weights.layers[layer].gate_up, gate_up, Beta::Zero)?;
        Ok((gate_up, self.buffers.activated.row_range(0..normed.rows)))
    }

    /// The loss of a row, added to the sums, and the gradient of the residual stream before the
    /// final norm, in `d_hidden`. Logits exist a tile at a time and become their own gradient.
    ///
    /// # Errors
    /// As the backend reports.
    pub fn head(&self, row: &RowViews, acts: &Activations, scale: f32) -> Result<()> {
        let b = self.backend;
        let (w, g) = (&self.weights, &self.gradients);
        let x = self.stream(acts, self.plan.shape.layers);
        b.rms_norm(COMPUTE, x, w.final_norm, self.eps, acts.normed, acts.rstd)?;
        for tile in tiles(row.tokens, self.plan.logits_tile) {
            let normed = acts.normed.row_range(tile.clone());
            let logits = self.logits(normed)?;
            self.cross_entropy(row, tile.clone(), logits, scale, true)?;
            self.add_outer(logits, normed, g.head)?;
            self.project_back(logits, w.head, acts.d_normed.row_range(tile), Beta::Zero)?;
        }
        b.weighted_sum(COMPUTE, row.nll, row.loss_weights, self.buffers.loss_sums.row_range(0..1))?;
        b.rms_norm_grad(
            COMPUTE,
            x,
            w.final_norm,
            acts.rstd,
            acts.d_normed,
            acts.d_hidden,
            Beta::Zero,
            g.final_norm,
        )
    }

    /// Logits of some normed tokens, in the tile's buffer.
    pub(crate) fn logits(&self, normed: View) -> Result<View> {
        let logits = self.buffers.logits.row_range(0..normed.rows);
        self.project(normed, self.weights.head, logits, Beta::Zero)?;
        Ok(logits)
    }

    fn cross_entropy(
        &self,
        row: &RowViews,
        tile: std::ops::Range<usize>,
        logits: View,
        scale: f32,
        grad: bool,
    ) -> Result<()> {
        self.backend.cross_entropy(
            COMPUTE,
            CrossEntropy {
                logits,
                targets: row.targets.row_range(tile.clone()),
                weights: row.loss_weights.row_range(tile.clone()),
                scale,
                nll: row.nll.row_range(tile),
                grad,
            },
        )
    }
}

/// The two halves of the columns.
pub(super) fn halves(joint: View) -> (View, View) {
    let half = joint.cols / 2;
    (joint.col_range(0..half), joint.col_range(half..joint.cols))
}
