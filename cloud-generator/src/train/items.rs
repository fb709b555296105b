use std::collections::HashMap;
use std::ops::Range;

use candle_core::Tensor;
use edgeweld::CancelToken;
use edgeweld::model::Decoder;
use edgeweld::tokenizer::EncodeOptions;

use super::{Input, Sample, TrainConfig};
use crate::Result;
use crate::data::{Item, harness};
use crate::generator::{LanguageModel, user_turn};
use crate::grad::Grad;

/// The edge model in two parts, and items as the first has left them.
pub(super) struct Items {
    pub(super) edge: LanguageModel,
    /// The layers with deltas.
    pub(super) upper: Decoder<Grad>,
    lower_count: usize,
    states: HashMap<Vec<u32>, Tensor>,
    size_bytes: usize,
    size_limit: usize,
    tokens_max: usize,
}

/// One turn with its answer: rows of the edge batch.
pub(super) struct Turn {
    pub(super) ids: Vec<u32>,
    /// Rows that predict a token of the answer.
    pub(super) labels: Range<usize>,
    /// First tokens of the choices, each once, and the place of the right one, if they differ.
    pub(super) choices: Option<(Vec<u32>, usize)>,
}

impl Items {
    pub(super) fn new(edge: LanguageModel, config: &TrainConfig) -> Self {
        let (first, count) = (config.generator.first_layer, edge.decoder.config.layer_count());
        Self {
            upper: edge.layers(first..count),
            lower_count: first,
            edge,
            states: HashMap::new(),
            size_bytes: 0,
            size_limit: config.item_cache_bytes,
            tokens_max: config.item_tokens_max,
        }
    }

    /// What comes before the answer, after `prompt` if the edge model sees one, and the answer, which ends a turn. What
    /// is too long without the prompt is cut in front.
    pub(super) fn turn(&self, sample: &Sample, prompt: Option<&str>) -> Result<Turn> {
        let tokenizer = &self.edge.tokenizer;
        let plain = EncodeOptions { add_special: false, parse_special: false };
        let encode = |prompt: Option<&str>| -> Result<(Vec<u32>, Vec<u32>)> {
            match &sample.input {
                Input::Turn(input) => {
                    let mut answer = tokenizer.encode(&sample.answer, plain)?;
                    answer.extend(tokenizer.special_token("<|im_end|>").or(tokenizer.eos()));
                    Ok((user_turn(tokenizer, prompt, input)?, answer))
                }
                Input::Text(context) => {
                    let context = prompt.map(|prompt| format!("{prompt}\n\n")).unwrap_or_default() + context;
                    let (mut ids, first) = harness::encode(tokenizer, &context, &sample.answer)?;
                    let answer = ids.split_off(first);
                    Ok((ids, answer))
                }
            }
        };
        let (mut ids, mut answer) = encode(None)?;
        let mut limit = self.tokens_max;
        if prompt.is_some() {
            let bare = std::mem::replace(&mut ids, encode(prompt)?.0);
            limit += ids.len() - bare.len();
        }
        answer.truncate(self.tokens_max / 2);
        if ids.len() + answer.len() > limit {
            ids.drain(..ids.len() + answer.len() - limit);
        }
        let mut firsts = Vec::with_capacity(sample.choices.len());
        for choice in &sample.choices {
            firsts.extend(tokenizer.encode(choice, plain)?.first().copied());
        }
        firsts.sort_unstable();
        firsts.dedup();
        let right = firsts.iter().position(|first| Some(first) == answer.first());
        let choices = right.filter(|_| firsts.len() > 1).map(|right| (firsts, right));
        let first = ids.len() - 1;
        ids.extend(answer);
        Ok(Turn { labels: first..ids.len() - 1, ids, choices })
    }

    /// The states of `ids` before the first layer with a delta, `[ids, hidden]`. Each turn is computed alone, so that
    /// they do not depend on what else is in a pass.
    pub(super) fn state(&mut self, ids: &[u32], cancel: &CancelToken) -> Result<Tensor> {
        if let Some(state) = self.states.get(ids) {
            return Ok(state.clone());
        }
        let state = self.edge.states(ids, self.lower_count, cancel)?;
        if self.size_bytes < self.size_limit && self.lower_count > 0 {
            self.size_bytes += 4 * state.elem_count();
            self.states.insert(ids.to_vec(), state.clone());
        }
        Ok(state)
    }
}

/// Whether the turn of `item` with its longest answer has at most `tokens_max` tokens.
pub fn fits(edge: &LanguageModel, item: &Item, tokens_max: usize) -> bool {
    let plain = EncodeOptions { add_special: false, parse_special: false };
    // A token is one byte or more: what is far too long need not be encoded.
    if item.input.len() > tokens_max * 16 {
        return false;
    }
    let Ok(turn) = user_turn(&edge.tokenizer, None, &item.input) else { return false };
    let answers =
        item.outputs.iter().map(|output| edge.tokenizer.encode(output, plain).map_or(usize::MAX / 2, |a| a.len()));
    // One more for the end of turn.
    turn.len() + answers.max().unwrap_or(0) < tokens_max
}
