use edgeweld::CancelToken;
use edgeweld::chat::Message;
use edgeweld::tokenizer::EncodeOptions;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::{Answer, Distribution, RefineOptions, Split};
use crate::edge_model::{EdgeModel, Reader};
use crate::{Error, Result};

/// Sampled queries that are longer than this are not finished: no user's turn in the sample is.
const QUERY_TOKENS_MAX: usize = 96;
/// Queries that the model sees when it makes another.
const QUERIES_SHOWN: usize = 6;

/// The edge model with the prompt in its context. The prompt is computed once.
pub struct Teacher<'a> {
    edge: &'a EdgeModel,
    // System message and example turns.
    context: Vec<Message>,
    reader: Reader,
}

impl<'a> Teacher<'a> {
    /// A teacher that has read nothing yet.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`] if prompt, a query and an answer do not fit the model's context.
    pub fn new(edge: &'a EdgeModel, context: Vec<Message>, query_tokens: usize, answer_tokens: usize) -> Result<Self> {
        let prompt_tokens = edge.encode(&[context.as_slice(), &[Message::user("")]].concat())?.len();
        let required = prompt_tokens + query_tokens + answer_tokens;
        let limit = edge.decoder.config.context_length;
        if required > limit {
            let limit = limit.saturating_sub(query_tokens + answer_tokens);
            return Err(Error::PromptTooLong { actual: prompt_tokens, limit });
        }
        Ok(Self { edge, context, reader: edge.reader(required + 8, None)? })
    }

    /// Answers `query`: greedily, or sampled at the options' temperature with `rng`.
    pub fn answer(
        &mut self,
        query: &str,
        split: Split,
        rng: Option<&mut StdRng>,
        options: &RefineOptions,
        cancel: &CancelToken,
    ) -> Result<Answer> {
        let turn = self.edge.encode(&[self.context.as_slice(), &[Message::user(query)]].concat())?;
        let mut answer =
            Answer { query: query.to_owned(), split, greedy: rng.is_none(), ids: Vec::new(), expected: Vec::new() };
        let mut rng = rng;
        decode(self.edge, &mut self.reader, turn, options.answer_tokens_max, cancel, |logits| {
            let expected = Distribution::of(logits, options.top_k);
            let id = match &mut rng {
                None => expected.top[0].0,
                Some(rng) => expected.sample(options.temperature, rng),
            };
            answer.expected.push(expected);
            answer.ids.push(id);
            id
        })?;
        Ok(answer)
    }

    /// A user's turn in the manner of `queries`, made by the model from a few of them; `None` if it did not end well.
    pub fn query(
        &mut self,
        reader: &mut Reader,
        queries: &[String],
        options: &RefineOptions,
        rng: &mut StdRng,
        cancel: &CancelToken,
    ) -> Result<Option<String>> {
        let tokenizer = &self.edge.tokenizer;
        let shown: Vec<&String> = queries.choose_multiple(rng, QUERIES_SHOWN).collect();
        let list: String = shown.iter().map(|query| format!("- {}\n", query.replace('\n', " "))).collect();
        let mut ids = tokenizer.encode(&format!("User messages:\n{list}-"), EncodeOptions::default())?;
        let start = ids.len();
        while ids.len() - start < QUERY_TOKENS_MAX {
            let expected = Distribution::of(reader.next(&ids, cancel)?, options.top_k);
            let id = expected.sample(options.temperature, rng);
            ids.push(id);
            let text = tokenizer.decode(&ids[start..]);
            if tokenizer.is_end(id) || text.contains('\n') {
                let text = text.lines().next().unwrap_or_default().trim().to_owned();
                let known = shown.iter().any(|query| **query == text);
                return Ok((text.chars().count() >= 8 && !known).then_some(text));
            }
        }
        Ok(None)
    }
}

/// Continues `ids` by what `choose` picks from the logits, until the turn ends or `tokens_max` are there. Returns the
/// answer's tokens.
pub(super) fn decode(
    edge: &EdgeModel,
    reader: &mut Reader,
    mut ids: Vec<u32>,
    tokens_max: usize,
    cancel: &CancelToken,
    mut choose: impl FnMut(&[f32]) -> u32,
) -> Result<Vec<u32>> {
    let start = ids.len();
    let stops = edge.template.stop_strings();
    while ids.len() - start < tokens_max {
        let id = choose(reader.next(&ids, cancel)?);
        ids.push(id);
        if edge.tokenizer.is_end(id) {
            break;
        }
        if !stops.is_empty() {
            let text = edge.tokenizer.decode(&ids[start..]);
            if stops.iter().any(|stop| text.contains(stop)) {
                break;
            }
        }
    }
    Ok(ids.split_off(start))
}
