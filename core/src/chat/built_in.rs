use crate::tokenizer::Tokenizer;

/// Templates for files that have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BuiltIn {
    /// `<|im_start|>role … <|im_end|>`: SmolLM2, Qwen.
    ChatMl,
    /// `<|start_header_id|>role<|end_header_id|> … <|eot_id|>`
    Llama3,
    /// `[INST] <<SYS>> … [/INST] … </s>`
    Llama2,
    /// `<start_of_turn>role … <end_of_turn>`
    Gemma,
    /// `User: … Assistant: …`, for base models.
    Transcript,
}

impl BuiltIn {
    /// The family whose turn tokens the vocabulary has, if the model's `name` says that it was tuned to use them. Base
    /// models have the tokens too, but answer them with noise; a plain transcript they continue.
    ///
    /// Llama 2 has no turn tokens: its chat models are known by name.
    pub(super) fn for_model(tokenizer: &Tokenizer, name: &str) -> Self {
        let name = name.to_lowercase();
        let is_tuned =
            name.split(|c: char| !c.is_alphanumeric()).any(|word| matches!(word, "it" | "instruct" | "chat"));
        let has = |token| tokenizer.special_token(token).is_some();
        if !is_tuned {
            Self::Transcript
        } else if has("<|im_start|>") && has("<|im_end|>") {
            Self::ChatMl
        } else if has("<|start_header_id|>") && has("<|eot_id|>") {
            Self::Llama3
        } else if has("<start_of_turn>") && has("<end_of_turn>") {
            Self::Gemma
        } else if name.contains("llama") && name.contains('2') {
            Self::Llama2
        } else {
            Self::Transcript
        }
    }

    pub(super) fn source(self) -> &'static str {
        match self {
            Self::ChatMl => {
                "{% for message in messages %}<|im_start|>{{ message.role }}\n\
                 {{ message.content }}<|im_end|>\n\
                 {{ '' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
            }
            Self::Llama3 => {
                "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n\
                 {{ message.content | trim }}<|eot_id|>{% endfor %}\
                 {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
            }
            // The system message is part of the first user turn.
            Self::Llama2 => {
                "{% set ns = namespace(system='') %}{% for message in messages %}\
                 {% if message.role == 'system' %}{% set ns.system = '<<SYS>>\\n' ~ message.content ~ '\\n<</SYS>>\\n\\n' %}\
                 {% elif message.role == 'assistant' %} {{ message.content | trim }} {{ eos_token }}\
                 {% else %}{{ bos_token }}[INST] {{ ns.system ~ message.content | trim }} [/INST]\
                 {% set ns.system = '' %}{% endif %}{% endfor %}"
            }
            // Gemma has no system role either.
            Self::Gemma => {
                "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}\
                 {% if message.role == 'system' %}{% set ns.system = message.content ~ '\\n\\n' %}{% else %}\
                 <start_of_turn>{{ 'model' if message.role == 'assistant' else 'user' }}\n\
                 {{ ns.system ~ message.content | trim }}<end_of_turn>\n\
                 {{ '' }}{% set ns.system = '' %}{% endif %}{% endfor %}\
                 {% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
            }
            Self::Transcript => {
                "{% for message in messages %}\
                 {% if message.role == 'system' %}{{ message.content }}\n\n\
                 {% elif message.role == 'assistant' %}Assistant: {{ message.content }}\n\
                 {% else %}User: {{ message.content }}\n\
                 {% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
            }
        }
    }

    pub(super) fn stop_strings(self) -> &'static [&'static str] {
        match self {
            Self::Transcript => &["\nUser:"],
            _ => &[],
        }
    }
}
