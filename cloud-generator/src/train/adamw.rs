use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use crate::Result;
use crate::generator::Parameters;

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// AdamW with decoupled weight decay on matrices (not on vectors, norms and meta embeddings).
#[derive(Default)]
pub struct AdamW {
    /// First and second moments per parameter.
    pub moments: BTreeMap<String, (Tensor, Tensor)>,
}

impl AdamW {
    /// One update with accumulated gradients; `step` counts from 0. Returns the gradients' norm before clipping.
    pub fn update(
        &mut self,
        parameters: &Parameters,
        gradients: &BTreeMap<String, Tensor>,
        step: u64,
        rate: impl Fn(&str) -> f64,
        weight_decay: f64,
        clip_norm: f64,
    ) -> Result<f64> {
        let mut square = 0.0;
        for gradient in gradients.values() {
            square += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        let norm = square.sqrt();
        let clip = if norm > clip_norm { clip_norm / norm } else { 1.0 };
        let correction = |beta: f64| 1.0 - beta.powf((step + 1) as f64);
        for (name, var) in parameters.trained() {
            let Some(gradient) = gradients.get(name) else { continue };
            let gradient = (gradient * clip)?;
            let (m, v) = match self.moments.remove(name) {
                Some(moments) => moments,
                None => (gradient.zeros_like()?, gradient.zeros_like()?),
            };
            let m = ((m * BETA_1)? + (&gradient * (1.0 - BETA_1))?)?;
            let v = ((v * BETA_2)? + (gradient.sqr()? * (1.0 - BETA_2))?)?;
            let direction = (&m / correction(BETA_1))?.div(&((&v / correction(BETA_2))?.sqrt()? + EPSILON)?)?;
            let decay = if name.ends_with(".weight") && var.rank() > 1 || name.starts_with("pool.") {
                1.0 - rate(name) * weight_decay
            } else {
                1.0
            };
            var.set(&((var.as_detached_tensor() * decay)? - (direction * rate(name))?)?)?;
            self.moments.insert(name.to_owned(), (m, v));
        }
        Ok(norm)
    }
}

/// Adds the gradients of `parameters` to `sum`.
pub(super) fn accumulate(
    sum: &mut BTreeMap<String, Tensor>,
    parameters: &Parameters,
    gradients: &GradStore,
) -> Result<()> {
    for (name, var) in parameters.trained() {
        if let Some(gradient) = gradients.get(var.as_tensor()) {
            let total = match sum.remove(name) {
                Some(sum) => (sum + gradient)?,
                None => gradient.clone(),
            };
            sum.insert(name.to_owned(), total.detach());
        }
    }
    Ok(())
}
