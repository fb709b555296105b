use std::collections::HashMap;
use std::ops::Range;

use candle_core::Tensor;
use edgeweld::CancelToken;
use edgeweld::model::Decoder;
use edgeweld::tokenizer::EncodeOptions;

use super::{Sample, TrainConfig};
use crate::Result;
use crate::data::Item;
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

    /// The turn, the answer and the end of turn; the input is cut in front if they are too long.
    pub(super) fn turn(&self, sample: &Sample) -> Result<Turn> {
        let tokenizer = &self.edge.tokenizer;
        let plain = EncodeOptions { add_special: false, parse_special: false };
        let limit = self.tokens_max;
        let mut ids = user_turn(tokenizer, None, &sample.input)?;
        let mut answer = tokenizer.encode(&sample.answer, plain)?;
        answer.extend(tokenizer.special_token("<|im_end|>").or(tokenizer.eos()));
        answer.truncate(limit / 2);
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
