//! The backward of a row: every layer from its kept input, the last layer first.

use longstrap_engine::{Beta, Result, View};

use super::forward::halves;
use super::{Activations, At, COMPUTE, Model, Place, Qkv, RowViews, StepResult, Watch, tiles, visit};

impl Model<'_> {
    /// Adds the row's gradients to those of the step. `d_hidden` holds the gradient of the stream
    /// behind the last layer, as [`Model::head`] leaves it.
    ///
    /// # Errors
    /// As backend and peers report; an interruption between layers.
    pub fn backward(
        &self,
        step: u64,
        index: usize,
        row: &RowViews,
        acts: &Activations,
        watch: &Watch<'_>,
    ) -> StepResult {
        for layer in (0..self.plan.shape.layers).rev() {
            visit(watch, Place::Backward { row: index, layer })?;
            self.layer_backward(At { step, row: index, layer }, row, acts)?;
        }
        self.backend.embed_grad(COMPUTE, row.ids, acts.d_hidden, self.gradients.embedding)?;
        Ok(())
    }

    /// `d_hidden`: gradient behind the layer in, gradient before it out.
    fn layer_backward(&self, at: At, row: &RowViews, acts: &Activations) -> Result<()> {
        let b = self.backend;
        let (w, g) = (&self.weights.layers[at.layer], &self.gradients.layers[at.layer]);
        let x = self.kept_input(at.layer, acts)?;
        let (o, lse) = self.attention_slot(acts, at.layer);
        if !self.keeps_attention() {
            let qkv = self.queries_keys_values(at.layer, x, row, acts)?;
            self.ring.forward(at, row, qkv, o, lse)?;
        }

        // MLP: from the stream between attention and MLP, made again.
        b.copy(COMPUTE, x, acts.residual)?;
        self.project(o, w.o, acts.residual, Beta::One)?;
        b.rms_norm(COMPUTE, acts.residual, w.mlp_norm, self.eps, acts.normed, acts.rstd)?;
        for tile in tiles(row.tokens, self.plan.mlp_tile) {
            self.mlp_backward(at.layer, tile, acts)?;
        }
        b.rms_norm_grad(
            COMPUTE,
            acts.residual,
            w.mlp_norm,
            acts.rstd,
            acts.d_normed,
            acts.d_hidden,
            Beta::One,
            g.mlp_norm,
        )?;

        // Attention.
        self.add_outer(acts.d_hidden, o, g.o)?;
        self.project_back(acts.d_hidden, w.o, acts.d_attention, Beta::Zero)?;
        b.attn_delta(COMPUTE, o, acts.d_attention, acts.delta)?;
        let qkv = if self.keeps_attention() {
            self.queries_keys_values(at.layer, x, row, acts)?
        } else {
            // q, k and v are still there; only the norm was overwritten by the MLP's.
            b.rms_norm(COMPUTE, x, w.input_norm, self.eps, acts.normed, acts.rstd)?;
            Qkv::split(acts.qkv, self.heads)
        };
        let d = Qkv::split(acts.d_qkv, self.heads);
        self.ring.backward(at, row, qkv, lse, acts.delta, acts.d_attention, d)?;
        b.rope(COMPUTE, d.q, row.cos, row.sin, true)?;
        b.rope(COMPUTE, d.k, row.cos, row.sin, true)?;
        self.add_outer(acts.d_qkv, acts.normed, g.qkv)?;
        self.project_back(acts.d_qkv, w.qkv, acts.d_normed, Beta::Zero)?;
        b.rms_norm_grad(
            COMPUTE,
            x,
            w.input_norm,
            acts.rstd,
            acts.d_normed,
            acts.d_hidden,
            Beta::One,
            g.input_norm,
        )
    }

    /// Gradients of the MLP for some tokens: d_hidden → d_normed, and the weights'.
    fn mlp_backward(&self, layer: usize, tile: std::ops::Range<usize>, acts: &Activations) -> Result<()> {
        let b = self.backend;
        let (w, g) = (&self.weights.layers[layer], &self.gradients.layers[layer]);
        let normed = acts.normed.row_range(tile.clone());
        let dy = acts.d_hidden.row_range(tile.clone());
        let (gate_up, activated) = self.mlp_tile(layer, normed)?;
        let (gate, up) = halves(gate_up);
        b.swiglu(COMPUTE, gate, up, activated)?;
        self.add_outer(dy, activated, g.down)?;
        let d_activated = self.buffers.d_activated.row_range(0..normed.rows);
        self.project_back(dy, w.down, d_activated, Beta::Zero)?;
        b.swiglu_grad(COMPUTE, gate, up, d_activated)?;
        self.add_outer(gate_up, normed, g.gate_up)?;
        self.project_back(gate_up, w.gate_up, acts.d_normed.row_range(tile), Beta::Zero)
    }

    /// The layer's input in f32, next to the arithmetic.
    fn kept_input(&self, layer: usize, acts: &Activations) -> Result<View> {
        if self.plan.options.inputs_in_place() {
            return Ok(acts.inputs[layer]);
        }
        self.backend.copy(COMPUTE, acts.inputs[layer], acts.hidden)?;
        Ok(acts.hidden)
    }
}
