use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use edgeweld::CancelToken;
use edgeweld::model::CpuLora;
use serde::{Deserialize, Serialize};

use super::format::chat_context;
use super::score::{log_likelihoods, rank, text_score};
use super::{Arm, EvalTask, Format, Packs, Request, Score, TokenRouted};
use crate::Result;
use crate::data::Item;
use crate::edge_model::{EdgeModel, Reader};
use crate::refine::Progress;

/// What to evaluate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalOptions {
    /// Arms, each on the same items.
    pub arms: Vec<Arm>,
    /// Examples in the context of [`Arm::Fewshot`], and those that [`Arm::Lorahub`] fits.
    pub shots: usize,
    /// Examples in the prompt that a pack is made of.
    pub pack_examples: usize,
    /// How items become text.
    pub format: Format,
    /// Longest answer to an open item, in tokens.
    pub answer_tokens_max: usize,
}

/// One arm on one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The task.
    pub task: String,
    /// The arm.
    pub arm: Arm,
    /// Whether items have answers to choose from.
    pub ranked: bool,
    /// One per item.
    pub scores: Vec<Score>,
    /// Tokens of the context that are not the item's, per item.
    pub prompt_tokens: f64,
    /// Seconds to compute them once.
    pub prompt_seconds: f64,
    /// Seconds per item with the prompt's part of the KV cache at hand.
    pub item_seconds: f64,
    /// Seconds to make the pack; zero without one.
    pub pack_seconds: f64,
    /// The task whose prompt the pack is made of.
    pub pack_of: Option<String>,
}

/// What is being done.
pub enum EvalProgress<'a> {
    /// A task's pack is refined.
    Refining {
        /// The task.
        task: &'a str,
        /// How far it is.
        progress: Progress,
    },
    /// An arm on a task is done.
    Done {
        /// Arms of tasks that are done, of `total`.
        done: usize,
        /// All of them.
        total: usize,
        /// The latest.
        outcome: &'a Outcome,
    },
}

/// All outcomes, in the order of tasks and arms.
pub type Evaluation = Vec<Outcome>;

/// Runs every arm on every task. What `done` holds is not run again; each new outcome goes to `listener`.
///
/// # Errors
/// [`edgeweld::Error::Cancelled`]; [`Error::InvalidOption`](crate::Error::InvalidOption) if an arm lacks its generator.
pub fn evaluate(
    edge: &EdgeModel,
    packs: &Packs,
    tasks: &[EvalTask],
    options: &EvalOptions,
    done: Evaluation,
    cancel: &CancelToken,
    listener: &mut dyn FnMut(EvalProgress) -> Result<()>,
) -> Result<Evaluation> {
    let mut done: HashMap<(String, Arm), Outcome> =
        done.into_iter().map(|outcome| ((outcome.task.clone(), outcome.arm), outcome)).collect();
    let mut evaluation = Vec::new();
    let mut sides: BTreeMap<String, Arc<[CpuLora]>> = BTreeMap::new();
    let total = tasks.len() * options.arms.len();
    for (index, task) in tasks.iter().enumerate() {
        for (place, &arm) in options.arms.iter().enumerate() {
            let done_count = index * options.arms.len() + place + 1;
            if let Some(outcome) = done.remove(&(task.task.name.clone(), arm)) {
                evaluation.push(outcome);
                continue;
            }
            let Some(source) = pack_source(tasks, index, arm, options) else { continue };
            let start = Instant::now();
            let side = match (arm, source) {
                (Arm::Lora, _) => Some(edge.side_path(packs.lora()?)?),
                (Arm::LoraPrompt, _) => Some(edge.side_path(packs.lora_prompt()?)?),
                (Arm::Lorahub, _) => {
                    let shots = shots(edge, task, options)?;
                    Some(edge.side_path(&packs.lorahub(edge, &shots, cancel)?)?)
                }
                (_, None) => None,
                (_, Some(source)) => {
                    let name = &source.task.name;
                    if !sides.contains_key(name) {
                        let mut heard = Ok(());
                        let mut refining = |progress| {
                            if heard.is_ok() {
                                heard = listener(EvalProgress::Refining { task: name, progress });
                            }
                        };
                        let lora = packs.pack(edge, source, options.pack_examples, cancel, &mut refining)?;
                        heard?;
                        sides.insert(name.clone(), edge.side_path(&lora)?);
                    }
                    sides.get(name).cloned()
                }
            };
            let pack_seconds = if side.is_some() { start.elapsed().as_secs_f64() } else { 0.0 };
            let tokens = (arm == Arm::LoraTokens).then(|| packs.token_routed()).transpose()?;
            let mut outcome = run(edge, side, tokens, task, arm, options, cancel)?;
            outcome.pack_of = source.map(|source| source.task.name.clone());
            outcome.pack_seconds = pack_seconds;
            listener(EvalProgress::Done { done: done_count, total, outcome: &outcome })?;
            evaluation.push(outcome);
        }
    }
    Ok(evaluation)
}

// The task whose prompt the arm's pack is made of: `Some(None)` without a pack, `None` if there is no such task.
fn pack_source<'a>(
    tasks: &'a [EvalTask],
    index: usize,
    arm: Arm,
    options: &EvalOptions,
) -> Option<Option<&'a EvalTask>> {
    let own = &tasks[index];
    let prompt = |task: &EvalTask| task.task.prompt(options.pack_examples);
    // Neighbours in a list of tasks are often siblings: the search starts half of the list away.
    let far = || (0..tasks.len()).map(|step| &tasks[(index + tasks.len() / 2 + step) % tasks.len()]);
    match arm {
        Arm::None | Arm::Prompt | Arm::Fewshot | Arm::Lora | Arm::LoraPrompt => Some(None),
        Arm::Lorahub => (!own.task.examples.is_empty()).then_some(None),
        // Its forward pass has no KV cache to write answers with.
        Arm::LoraTokens => own.is_ranked().then_some(None),
        Arm::Pack => Some(Some(own)),
        Arm::PackMismatched => Some(Some(far().find(|task| prompt(task) != prompt(own))?)),
        Arm::PackSameLabels => {
            let same = |task: &&EvalTask| !own.labels.is_empty() && task.output_format() == own.output_format();
            Some(Some(far().filter(same).find(|task| task.task.definition != own.task.definition)?))
        }
    }
}

// The task's examples with their right answers alone.
fn shots(edge: &EdgeModel, task: &EvalTask, options: &EvalOptions) -> Result<Vec<Request>> {
    let examples = task.examples().into_iter().take(options.shots);
    let request = |item: Item| {
        let requests = options.format.requests(edge, &task.task.name, None, &item, &item.outputs[..1])?;
        Ok(requests.into_iter().next().expect("one per choice"))
    };
    examples.map(request).collect()
}

fn run(
    edge: &EdgeModel,
    side: Option<Arc<[CpuLora]>>,
    tokens: Option<&TokenRouted>,
    task: &EvalTask,
    arm: Arm,
    options: &EvalOptions,
    cancel: &CancelToken,
) -> Result<Outcome> {
    let prompt = in_context(task, arm, options);
    let limit = edge.decoder.config.context_length;
    let (mut work, mut longest, mut prompt_tokens) = (Vec::new(), 0, 0);
    for item in &task.task.items {
        let choices = task.choices(item);
        let encode = |prompt: Option<&str>| match task.is_ranked() {
            true => options.format.requests(edge, &task.task.name, prompt, item, choices),
            false => Ok(vec![Request { first: 0, ids: chat_context(edge, prompt, &item.input)? }]),
        };
        let mut requests = encode(prompt.as_deref())?;
        if prompt.is_some() {
            prompt_tokens += requests[0].ids.len() - encode(None)?[0].ids.len().min(requests[0].ids.len());
        }
        let room = limit - if task.is_ranked() { 0 } else { options.answer_tokens_max };
        for request in &mut requests {
            // As the harness does: too long a context loses its front.
            let surplus = request.ids.len().saturating_sub(room).min(request.first.saturating_sub(1));
            request.ids.drain(..surplus);
            request.first -= surplus;
            longest = longest.max(request.ids.len());
        }
        work.push((item, choices, requests));
    }
    let mut reader = edge.reader(longest + options.answer_tokens_max + 1, side)?;
    let count = work.len().max(1) as f64;
    let shared = shared_prefix(work.iter().map(|(_, _, requests)| requests[0].ids.as_slice()));
    let start = Instant::now();
    if prompt.is_some() && shared > 0 {
        reader.next(&work[0].2[0].ids[..shared], cancel)?;
    }
    let prompt_seconds = if prompt.is_some() { start.elapsed().as_secs_f64() } else { 0.0 };
    let start = Instant::now();
    let mut scores = Vec::with_capacity(work.len());
    for (item, choices, requests) in &work {
        scores.push(if task.is_ranked() {
            let right = item.outputs.first().and_then(|answer| choices.iter().position(|choice| choice == answer));
            let likelihoods = match tokens {
                Some(tokens) => tokens.log_likelihoods(requests, cancel)?,
                None => log_likelihoods(&mut reader, requests, cancel)?,
            };
            let score = rank(&likelihoods, choices, right.unwrap_or(usize::MAX));
            Score { label: right.filter(|_| !task.labels.is_empty()), ..score }
        } else {
            text_score(&greedy(edge, &mut reader, &requests[0].ids, options.answer_tokens_max, cancel)?, &item.outputs)
        });
    }
    Ok(Outcome {
        task: task.task.name.clone(),
        arm,
        ranked: task.is_ranked(),
        scores,
        prompt_tokens: prompt_tokens as f64 / count,
        prompt_seconds,
        item_seconds: start.elapsed().as_secs_f64() / count,
        pack_seconds: 0.0,
        pack_of: None,
    })
}

// What stands before the items of this arm.
fn in_context(task: &EvalTask, arm: Arm, options: &EvalOptions) -> Option<String> {
    match (arm, options.format) {
        (Arm::Prompt | Arm::LoraPrompt, _) => Some(task.task.definition.clone()),
        (Arm::Fewshot, Format::Chat) => Some(task.task.prompt(options.shots)),
        (Arm::Fewshot, Format::Harness) => {
            let shots = task.shots.iter().take(options.shots);
            Some(shots.map(|shot| options.format.example(&task.task.name, shot)).collect::<Vec<_>>().join("\n\n"))
        }
        _ => None,
    }
}

fn shared_prefix<'a>(mut all: impl Iterator<Item = &'a [u32]>) -> usize {
    let Some(first) = all.next() else { return 0 };
    let shared = |ids: &[u32]| first.iter().zip(ids).take_while(|(a, b)| a == b).count();
    all.map(shared).min().unwrap_or(0)
}

// The likeliest tokens one after the other, up to the end of turn, a line break or `limit`.
fn greedy(
    edge: &EdgeModel,
    reader: &mut Reader,
    context: &[u32],
    limit: usize,
    cancel: &CancelToken,
) -> Result<String> {
    let mut ids = context.to_vec();
    let ends = [edge.tokenizer.special_token("<|im_end|>"), edge.tokenizer.eos()];
    for _ in 0..limit {
        let logits = reader.next(&ids, cancel)?;
        let best = (0..logits.len()).max_by(|&i, &j| logits[i].total_cmp(&logits[j]).then(j.cmp(&i)));
        let id = best.expect("a vocabulary") as u32;
        if ends.contains(&Some(id)) {
            break;
        }
        ids.push(id);
    }
    let text = edge.tokenizer.decode(&ids[context.len()..]);
    Ok(text.trim().lines().next().unwrap_or_default().to_owned())
}
