use serde::{Deserialize, Serialize};

/// A way to tell the edge model its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// Not at all: the item alone.
    None,
    /// The task's definition in the context.
    Prompt,
    /// The definition and examples in the context.
    Fewshot,
    /// The pack that the generator makes of definition and examples; nothing in the context.
    Pack,
    /// The pack of another task, which is far away in the list.
    PackMismatched,
    /// The pack of another task that has the same labels.
    PackSameLabels,
    /// One LoRA for all tasks.
    Lora,
    /// One LoRA for all tasks, with the task's definition in the context.
    LoraPrompt,
    /// The generator's experts, weighted by what fits the task's examples best (LoraHub); nothing in the context.
    Lorahub,
    /// LoRA experts for all tasks that every token chooses from (LoRAMoE, MixLoRA); nothing in the context.
    LoraTokens,
}

impl Arm {
    /// All arms, in the order of tables.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::Prompt,
        Self::Fewshot,
        Self::Pack,
        Self::PackMismatched,
        Self::PackSameLabels,
        Self::Lora,
        Self::LoraPrompt,
        Self::Lorahub,
        Self::LoraTokens,
    ];

    /// As the command line and reports write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Prompt => "prompt",
            Self::Fewshot => "fewshot",
            Self::Pack => "pack",
            Self::PackMismatched => "pack-mismatched",
            Self::PackSameLabels => "pack-same-labels",
            Self::Lora => "lora",
            Self::LoraPrompt => "lora-prompt",
            Self::Lorahub => "lorahub",
            Self::LoraTokens => "lora-tokens",
        }
    }
}
