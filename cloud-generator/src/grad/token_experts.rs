//! LoRA experts beside one layer's FFN, chosen token by token (LoRAMoE, MixLoRA).

use std::sync::{Mutex, MutexGuard};

use candle_core::{Error, Result, Tensor};
use edgeweld::lora::Target;

use super::Dropout;
use crate::method::{Gates, load_balance};

/// The experts of one layer and their router, for one forward pass: `W·x + scale · Σ_j g_j · b_j·(a_j·x)`, where one
/// choice of gates `g` serves all three projections of a token.
///
/// LoRAMoE has a router per projection, and MixLoRA mixes what the experts' whole FFNs give: here the sum is within
/// each projection, as the pool of a generator mixes.
pub struct TokenExperts {
    // [expert, hidden]: times the FFN's input, a token's logits
    router: Tensor,
    top_k: usize,
    // [expert, rank, in] and [expert, out, rank] per target
    a: [Tensor; 3],
    b: [Tensor; 3],
    scale: f32,
    dropout: Option<Dropout>,
    // [rows, expert], from `route` on
    gates: Mutex<Option<Tensor>>,
}

impl TokenExperts {
    /// `router: [expert, hidden]` keeps the `top_k` largest gates; `a: [expert, rank, in]` and `b: [expert, out, rank]`
    /// are in the order of [`Target::ALL`]; `dropout` is on the experts' input.
    pub fn new(
        router: Tensor,
        top_k: usize,
        a: [Tensor; 3],
        b: [Tensor; 3],
        scale: f32,
        dropout: Option<Dropout>,
    ) -> Self {
        Self { router, top_k, a, b, scale, dropout, gates: Mutex::new(None) }
    }

    /// Eq. 9 without α over the tokens of the last pass; `None` before the first.
    pub fn load_balance(&self) -> Result<Option<Tensor>> {
        self.chosen().as_ref().map(load_balance).transpose()
    }

    /// Chooses the gates of the FFN's input `x: [rows, hidden]`, which [`delta`](Self::delta) then uses.
    pub(super) fn route(&self, x: &Tensor) -> Result<()> {
        let gates = Gates::from_logits(&x.matmul(&self.router.t()?)?, self.top_k)?;
        *self.chosen() = Some(gates.values);
        Ok(())
    }

    /// What the experts add to the projection `target` of `x: [rows, in]`.
    pub(super) fn delta(&self, x: &Tensor, target: Target) -> Result<Tensor> {
        let gates = self.chosen().clone().ok_or_else(|| Error::Msg("no gates: route comes first".into()))?;
        let (a, b) = (&self.a[target as usize], &self.b[target as usize]);
        let ((count, rank, _), rows) = (a.dims3()?, x.dim(0)?);
        let x = match self.dropout {
            None => x.clone(),
            Some(dropout) => {
                let mut mask = vec![1f32; x.elem_count()];
                Dropout { seed: dropout.seed.wrapping_add(target as u64), ..dropout }.apply(&mut mask);
                x.mul(&Tensor::from_vec(mask, x.shape(), x.device())?)?
            }
        };
        // The experts side by side are one pair of rank `count · rank`, whose inner values the gates weigh.
        let inner = x.matmul(&a.flatten(0, 1)?.t()?)?.reshape((rows, count, rank))?;
        let inner = inner.broadcast_mul(&gates.unsqueeze(2)?)?.flatten_from(1)?;
        let b = b.transpose(1, 2)?.contiguous()?.flatten(0, 1)?;
        inner.matmul(&b)? * f64::from(self.scale)
    }

    fn chosen(&self) -> MutexGuard<'_, Option<Tensor>> {
        self.gates.lock().expect("no panic while held")
    }
}
