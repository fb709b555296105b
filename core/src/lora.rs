//! LoRA sets as every stage exchanges them, in f32.

use ndarray::Array2;

/// The projections of one FFN that take a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Target {
    /// `gate_proj`
    #[serde(rename = "gate_proj")]
    Gate,
    /// `up_proj`
    #[serde(rename = "up_proj")]
    Up,
    /// `down_proj`
    #[serde(rename = "down_proj")]
    Down,
}

impl Target {
    /// All targets, in the order of the forward pass.
    pub const ALL: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    /// PEFT's name, such as `gate_proj`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }
}

/// One target's LoRA: `delta = scale · b · a`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraPair {
    /// `[rank, in]`
    pub a: Array2<f32>,
    /// `[out, rank]`
    pub b: Array2<f32>,
}

/// The LoRA pairs of one layer; a target without a pair keeps its weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerLora {
    /// Delta of `gate_proj`.
    pub gate: Option<LoraPair>,
    /// Delta of `up_proj`.
    pub up: Option<LoraPair>,
    /// Delta of `down_proj`.
    pub down: Option<LoraPair>,
}

impl LayerLora {
    /// The pair of `target`.
    pub fn pair(&self, target: Target) -> Option<&LoraPair> {
        match target {
            Target::Gate => self.gate.as_ref(),
            Target::Up => self.up.as_ref(),
            Target::Down => self.down.as_ref(),
        }
    }

    /// The place of `target`'s pair.
    pub fn pair_mut(&mut self, target: Target) -> &mut Option<LoraPair> {
        match target {
            Target::Gate => &mut self.gate,
            Target::Up => &mut self.up,
            Target::Down => &mut self.down,
        }
    }
}

/// A LoRA for a whole edge model.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSet {
    /// `alpha / rank`, the factor on every `b · a`.
    pub scale: f32,
    /// One entry per layer.
    pub layers: Vec<LayerLora>,
}
