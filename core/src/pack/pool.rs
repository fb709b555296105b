use ndarray::{Array2, Array3, Axis, s};

use super::Composition;
use crate::lora::{LayerLora, LoraPair, LoraSet, Target};
use crate::{Error, Result};

/// The router's weights for one prompt, `[layer, expert]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gates {
    /// `[layer, expert]`
    pub weights: Array2<f32>,
}

/// All experts of one target.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertPair {
    /// `[expert, rank, in]`
    pub a: Array3<f32>,
    /// `[expert, out, rank]`
    pub b: Array3<f32>,
}

/// The trained experts that all layers share.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertPool {
    /// `scale = alpha / rank` of one expert.
    pub alpha: f32,
    /// Experts of `gate_proj`.
    pub gate: Option<ExpertPair>,
    /// Experts of `up_proj`.
    pub up: Option<ExpertPair>,
    /// Experts of `down_proj`.
    pub down: Option<ExpertPair>,
}

impl ExpertPool {
    /// The experts of `target`.
    pub fn pair(&self, target: Target) -> Option<&ExpertPair> {
        match target {
            Target::Gate => self.gate.as_ref(),
            Target::Up => self.up.as_ref(),
            Target::Down => self.down.as_ref(),
        }
    }

    /// The place of `target`'s experts.
    pub fn pair_mut(&mut self, target: Target) -> &mut Option<ExpertPair> {
        match target {
            Target::Gate => &mut self.gate,
            Target::Up => &mut self.up,
            Target::Down => &mut self.down,
        }
    }

    /// `alpha / rank`, the factor on every `b · a`.
    pub fn scale(&self) -> f32 {
        let rank = Target::ALL.into_iter().find_map(|target| Some(self.pair(target)?.a.len_of(Axis(1))));
        self.alpha / rank.unwrap_or(1) as f32
    }

    /// Targets that have experts, in the order of the forward pass.
    pub fn targets(&self) -> Vec<Target> {
        Target::ALL.into_iter().filter(|target| self.pair(*target).is_some()).collect()
    }

    /// The LoRA of every layer, `θˡ = Σⱼ Gˡⱼ·Eⱼ`. The scale is the experts' own, also where the rank grows.
    ///
    /// With [`Composition::ProductSum`] all layers get the rank of the layer with the most gates that are not
    /// zero; shorter ones are filled with zeros, because a pack has one rank.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if the gates are for another number of experts.
    pub fn mix(&self, gates: &Gates, composition: Composition) -> Result<LoraSet> {
        let active_max =
            gates.weights.rows().into_iter().map(|row| row.iter().filter(|gate| **gate != 0.0).count()).max();
        let slots = active_max.unwrap_or(0).max(1);
        let mut layers = Vec::with_capacity(gates.weights.nrows());
        for row in gates.weights.rows() {
            let active: Vec<(usize, f32)> =
                row.iter().copied().enumerate().filter(|(_, weight)| *weight != 0.0).collect();
            let mut layer = LayerLora::default();
            for target in self.targets() {
                let Some(experts) = self.pair(target) else { continue };
                if experts.a.len_of(Axis(0)) != row.len() {
                    return Err(Error::ShapeMismatch {
                        tensor: "gates".into(),
                        expected: vec![gates.weights.nrows(), experts.a.len_of(Axis(0))],
                        actual: gates.weights.shape().to_vec(),
                    });
                }
                *layer.pair_mut(target) = Some(match composition {
                    Composition::Average => experts.average(&active),
                    Composition::ProductSum => experts.product_sum(&active, slots),
                });
            }
            layers.push(layer);
        }
        Ok(LoraSet { scale: self.scale(), layers })
    }
}

impl ExpertPair {
    fn average(&self, active: &[(usize, f32)]) -> LoraPair {
        let mut a = Array2::zeros((self.a.len_of(Axis(1)), self.a.len_of(Axis(2))));
        let mut b = Array2::zeros((self.b.len_of(Axis(1)), self.b.len_of(Axis(2))));
        for &(expert, gate) in active {
            a.scaled_add(gate, &self.a.index_axis(Axis(0), expert));
            b.scaled_add(gate, &self.b.index_axis(Axis(0), expert));
        }
        LoraPair { a, b }
    }

    /// `a` stacks the experts' rows, `b` their columns times the gate.
    fn product_sum(&self, active: &[(usize, f32)], slots: usize) -> LoraPair {
        let (rank, cols, rows) = (self.a.len_of(Axis(1)), self.a.len_of(Axis(2)), self.b.len_of(Axis(1)));
        let mut a = Array2::zeros((slots * rank, cols));
        let mut b = Array2::zeros((rows, slots * rank));
        for (slot, &(expert, gate)) in active.iter().enumerate() {
            let range = slot * rank..(slot + 1) * rank;
            a.slice_mut(s![range.clone(), ..]).assign(&self.a.index_axis(Axis(0), expert));
            b.slice_mut(s![.., range]).scaled_add(gate, &self.b.index_axis(Axis(0), expert));
        }
        LoraPair { a, b }
    }
}
