/// How a pack gets into a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeMode {
    /// `y = W·x + scale · b·(a·x)`: keeps the delta to within 1% (factors of 8 bits on the CPU), swaps in milliseconds, the base stays memory-mapped.
    SidePath,
    /// `W + Δ` in each tensor's own block type.
    Merge,
    /// `W + Δ` in [`MergeOptions::promote_to`].
    Promote,
    /// Merge, else promote, each within the memory budget and only if its proof passes; else the side path.
    #[default]
    Auto,
}

impl MergeMode {
    /// `side_path`, `merge`, `promote` or `auto`, as files spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SidePath => "side_path",
            Self::Merge => "merge",
            Self::Promote => "promote",
            Self::Auto => "auto",
        }
    }
}

impl std::fmt::Display for MergeMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How merged weights are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// The least noise at gain 1: rounds `μ·Δ` to whole steps, with the smallest sufficient `μ` per row.
    #[default]
    Amplified,
    /// Unbiased, for comparison: each code moves with the probability of the step's fraction.
    Stochastic,
    /// The naive way, for comparison: loses most of a small delta, which the proof refuses.
    Nearest,
}

/// Choices of one merge.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeOptions {
    /// How the pack gets into the model.
    pub mode: MergeMode,
    /// Most bytes of merged weights to hold beside the mapped base.
    pub memory_budget_bytes: u64,
    /// Block type of [`MergeMode::Promote`].
    pub promote_to: crate::quant::BlockType,
    /// How weights are rounded.
    pub rounding: Rounding,
    /// Accepted gain per tensor, from and to.
    pub gain_limits: (f64, f64),
    /// Most that [`MergeMode::Auto`] lets rounding change the weights beside the delta, `‖W'−W−Δ‖ / ‖W‖` over all merged
    /// weights, before it spends a probe on them. Beyond about 1% no probe has ever passed: rounding is then as loud as a
    /// 7-bit format, and some tokens change. The time of a probe is that of reading its texts; this test costs nothing.
    pub noise_max: f64,
    /// Least share of probe tokens whose most likely next token equals the side path's.
    pub agreement_min: f64,
    /// Most that the probe perplexity may differ from the side path's, as a share of it.
    pub perplexity_change_max: f64,
    /// Threads; 0 takes as many as the machine has cores.
    pub threads: usize,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self {
            mode: MergeMode::Auto,
            memory_budget_bytes: u64::MAX,
            promote_to: crate::quant::BlockType::Q8_0,
            rounding: Rounding::Amplified,
            gain_limits: (0.95, 1.05),
            noise_max: 0.01,
            agreement_min: 0.98,
            perplexity_change_max: 0.01,
            threads: 0,
        }
    }
}
