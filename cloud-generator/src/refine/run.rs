use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use candle_core::Tensor;
use edgeweld::chat::Message;
use edgeweld::lora::LoraSet;
use edgeweld::{CancelToken, Digest};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::state::{Folder, State};
use super::student::Lesson;
use super::{Answer, Distribution, Fidelity, Query, RefineOptions, Split, Student, Teacher, measure};
use crate::edge_model::EdgeModel;
use crate::generator::LanguageModel;
use crate::{Error, Result};

/// What a run tells about itself.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    /// The teacher answers queries.
    Teaching {
        /// Answers so far.
        done: usize,
        /// Answers in all.
        total: usize,
    },
    /// An optimiser step is done.
    Step {
        /// Its number, from 1.
        step: u64,
        /// KL(teacher ‖ student) on the step's lessons before it, nats per answer token.
        divergence: f64,
        /// Student tokens per second so far.
        tokens_per_second: f64,
        /// Share of the run, 0 to 1.
        done: f64,
    },
    /// The `dev` queries were looked at.
    Looked {
        /// After this step.
        step: u64,
        /// What was found; without greedy answers.
        dev: Fidelity,
        /// Whether it is the best so far.
        best: bool,
    },
    /// An interrupted run continues after this step.
    Resumed {
        /// Steps done.
        step: u64,
    },
}

/// What a run has made.
pub struct Refined {
    /// The LoRA after the step that did best on the `dev` queries.
    pub lora: LoraSet,
    /// The unspecialised model without the prompt, on the `test` queries.
    pub base: Fidelity,
    /// The unspecialised model with the prompt, on the `test` queries: itself, unless these have answers.
    pub prompted: Fidelity,
    /// The model with [`lora`](Self::lora) and without the prompt, on the `test` queries.
    pub specialized: Fidelity,
    /// Steps until training stopped.
    pub step_count: u64,
    /// The step that [`lora`](Self::lora) is from.
    pub best_step: u64,
    /// Seconds of training, those of interrupted runs included.
    pub training_seconds: f64,
    /// Student tokens per second of forward, backward and update.
    pub tokens_per_second: f64,
    /// Answers that were learnt from.
    pub answer_count: usize,
}

/// Distils the prompted edge model into a LoRA for the unprompted one. Where queries have answers, those are learnt, and no
/// teacher runs.
///
/// `edge` and `grad` are the same model, on the two backends. `context` is what the teacher sees before a user's turn (see
/// [`examples_as_turns`](edgeweld::chat::examples_as_turns)). `start` is a generator's LoRA. `folder` keeps what an
/// interrupted run needs; the next call with the same arguments continues from there, and a finished one removes it. Without
/// `test` queries nothing is measured.
///
/// # Errors
/// [`Error::PromptTooLong`], [`Error::InvalidOption`]; [`edgeweld::Error::Cancelled`], after saving.
pub fn refine(
    edge: &EdgeModel,
    grad: &LanguageModel,
    context: &[Message],
    queries: &[(Query, Split)],
    start: Option<&LoraSet>,
    options: &RefineOptions,
    folder: PathBuf,
    cancel: &CancelToken,
    listener: &mut dyn FnMut(Progress),
) -> Result<Refined> {
    options.check()?;
    let key = serde_json::json!([edge.identity, context, queries, options, start.is_some()]);
    let folder = Folder::new(folder, Digest::of(key.to_string().as_bytes()));
    let answers = match folder.answers() {
        Some(answers) => answers,
        None => {
            let answers = match given(edge, context, queries, options)? {
                Some(answers) => answers,
                None => teach(edge, context.to_vec(), queries, options, cancel, listener)?,
            };
            folder.save_answers(&answers)?;
            answers
        }
    };
    let of = |split: Split| answers.iter().filter(|answer| answer.split == split).collect::<Vec<_>>();
    let (train, dev, test) = (of(Split::Train), of(Split::Dev), of(Split::Test));
    let lessons: Vec<Lesson> = train.iter().map(|answer| lesson(edge, answer, options)).collect::<Result<_>>()?;
    let entropies: Vec<f64> = lessons.iter().map(|lesson| entropy(lesson) / lesson.targets.len() as f64).collect();

    let config = &grad.decoder.config;
    let mut student = match start {
        None => Student::new(config, options.rank, options.alpha, options.seed, &grad.decoder)?,
        Some(lora) => Student::from_lora(config, lora, &grad.decoder)?,
    };
    let copy = |student: &Student| -> Result<HashMap<String, Tensor>> {
        student.parameters.iter().map(|(name, var)| Ok((name.to_owned(), var.as_tensor().copy()?))).collect()
    };
    let (mut state, mut best) = match folder.resume(&mut student)? {
        Some((state, best)) => {
            listener(Progress::Resumed { step: state.step });
            (state, best)
        }
        None => {
            let dev = measure(edge, Some(&student.lora()?), &[], &dev, false, cancel)?;
            listener(Progress::Looked { step: 0, dev, best: true });
            (State { best_divergence: dev.divergence, ..State::default() }, copy(&student)?)
        }
    };

    let (mut tokens, mut busy) = (0usize, 0.0);
    let mut clock = Instant::now();
    while state.step < options.step_count && state.seconds < options.minutes * 60.0 {
        if state.stale_count >= options.patience {
            break;
        }
        let chosen = draw(&lessons, options, state.step);
        let batch: Vec<&Lesson> = chosen.iter().map(|&index| &lessons[index]).collect();
        let done = (state.step as f64 / options.step_count as f64).max(state.seconds / (options.minutes * 60.0));
        let rate = options.learning_rate * options.schedule(state.step, done);
        let before = Instant::now();
        let loss = match student.advance(&grad.decoder, &batch, state.step, rate, options.clip_norm, cancel) {
            Err(Error::Edge(edgeweld::Error::Cancelled)) => {
                state.seconds += clock.elapsed().as_secs_f64();
                folder.save(&state, &student, &best)?;
                return Err(edgeweld::Error::Cancelled.into());
            }
            loss => loss?,
        };
        busy += before.elapsed().as_secs_f64();
        tokens += batch.iter().map(|lesson| lesson.ids.len()).sum::<usize>();
        let rows: usize = batch.iter().map(|lesson| lesson.targets.len()).sum();
        let floor: f64 =
            chosen.iter().map(|&i| entropies[i] * lessons[i].targets.len() as f64).sum::<f64>() / rows as f64;
        state.step += 1;
        state.seconds += clock.elapsed().as_secs_f64();
        clock = Instant::now();
        let tokens_per_second = tokens as f64 / busy;
        listener(Progress::Step { step: state.step, divergence: loss - floor, tokens_per_second, done });
        let last = state.step == options.step_count || state.seconds >= options.minutes * 60.0;
        if state.step % options.eval_steps == 0 || last {
            let dev = measure(edge, Some(&student.lora()?), &[], &dev, false, cancel)?;
            let better = dev.divergence < state.best_divergence;
            if better {
                (state.best_divergence, state.best_step, best) = (dev.divergence, state.step, copy(&student)?);
            }
            state.stale_count = if better { 0 } else { state.stale_count + 1 };
            listener(Progress::Looked { step: state.step, dev, best: better });
            state.seconds += clock.elapsed().as_secs_f64();
            clock = Instant::now();
            folder.save(&state, &student, &best)?;
        }
    }

    for (name, tensor) in &best {
        student.parameters.var(name).set(tensor)?;
    }
    let lora = student.lora()?;
    let refined = Refined {
        base: measure(edge, None, &[], &test, true, cancel)?,
        prompted: measure(edge, None, context, &test, true, cancel)?,
        specialized: measure(edge, Some(&lora), &[], &test, true, cancel)?,
        lora,
        step_count: state.step,
        best_step: state.best_step,
        training_seconds: state.seconds,
        tokens_per_second: if busy > 0.0 { tokens as f64 / busy } else { 0.0 },
        answer_count: lessons.len(),
    };
    folder.remove()?;
    Ok(refined)
}

// The answers that the queries have, if they do.
fn given(
    edge: &EdgeModel,
    context: &[Message],
    queries: &[(Query, Split)],
    options: &RefineOptions,
) -> Result<Option<Vec<Answer>>> {
    let invalid = |option, reason: &str| Err(Error::InvalidOption { option, reason: reason.into() });
    if queries.iter().all(|(query, _)| query.answer.is_none()) {
        return Ok(None);
    }
    if options.sampled_answers > 0 || options.sampled_queries > 0 {
        return invalid("--queries", "nothing is sampled where queries have answers");
    }
    let mut answers = Vec::with_capacity(queries.len());
    for (query, split) in queries {
        let Some(answer) = &query.answer else {
            return invalid("--queries", "either all queries have an answer or none");
        };
        let Some(ids) = edge.answer(&query.query, answer)? else {
            return invalid("--edge", "its chat template does not write answers where it asks for them");
        };
        let required = edge.encode(&[context, &[Message::user(&query.query)]].concat())?.len() + ids.len();
        let limit = edge.decoder.config.context_length;
        if required > limit {
            return Err(Error::PromptTooLong { actual: required, limit });
        }
        let expected = ids.iter().map(|id| Distribution::certain(*id)).collect();
        answers.push(Answer { query: query.query.clone(), split: *split, greedy: true, ids, expected });
    }
    Ok(Some(answers))
}

// Greedy answers to every query; sampled ones, and sampled queries, for training only.
fn teach(
    edge: &EdgeModel,
    context: Vec<Message>,
    queries: &[(Query, Split)],
    options: &RefineOptions,
    cancel: &CancelToken,
    listener: &mut dyn FnMut(Progress),
) -> Result<Vec<Answer>> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let lengths = queries.iter().map(|(query, _)| Ok(edge.turn(&query.query)?.len()));
    let longest = lengths.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
    let query_tokens = if options.sampled_queries > 0 { longest.max(128) } else { longest };
    let mut teacher = Teacher::new(edge, context, query_tokens, options.answer_tokens_max)?;
    let mut queries: Vec<(String, Split)> =
        queries.iter().map(|(query, split)| (query.query.clone(), *split)).collect();
    if options.sampled_queries > 0 {
        let given: Vec<String> =
            queries.iter().filter(|(_, split)| *split == Split::Train).map(|(query, _)| query.clone()).collect();
        let mut reader = edge.reader(query_tokens * 8 + 512, None)?;
        for _ in 0..options.sampled_queries {
            if let Some(query) = teacher.query(&mut reader, &given, options, &mut rng, cancel)? {
                queries.push((query, Split::Train));
            }
        }
    }
    let trained = queries.iter().filter(|(_, split)| *split == Split::Train).count();
    let total = queries.len() + trained * options.sampled_answers;
    let mut answers = Vec::with_capacity(total);
    for (query, split) in &queries {
        answers.push(teacher.answer(query, *split, None, options, cancel)?);
        if *split == Split::Train {
            for _ in 0..options.sampled_answers {
                let answer = teacher.answer(query, *split, Some(&mut rng), options, cancel)?;
                // A sample that equals the greedy answer teaches nothing new.
                if answers.iter().rev().take_while(|known| known.query == *query).all(|known| known.ids != answer.ids) {
                    answers.push(answer);
                }
            }
        }
        listener(Progress::Teaching { done: answers.len(), total });
    }
    Ok(answers)
}

fn lesson(edge: &EdgeModel, answer: &Answer, options: &RefineOptions) -> Result<Lesson> {
    let mut ids = edge.turn(&answer.query)?;
    ids.extend(&answer.ids[..answer.ids.len() - 1]);
    let label = |id: u32| answer.greedy.then_some((id, options.label_weight));
    let targets = answer.ids.iter().zip(&answer.expected).map(|(&id, expected)| expected.target(label(id)));
    Ok(Lesson { ids, targets: targets.collect() })
}

// The least cross-entropy that the targets allow, summed over their rows.
fn entropy(lesson: &Lesson) -> f64 {
    let probabilities = lesson.targets.iter().flatten().map(|&(_, p)| f64::from(p)).filter(|p| *p > 0.0);
    -probabilities.map(|p| p * p.ln()).sum::<f64>()
}

// The lessons of a step: walks through shuffles of all lessons, `batch_tokens` at a time. Depends on seed and step only.
fn draw(lessons: &[Lesson], options: &RefineOptions, step: u64) -> Vec<usize> {
    let mean = lessons.iter().map(|lesson| lesson.ids.len()).sum::<usize>() as f64 / lessons.len() as f64;
    let count = ((options.batch_tokens as f64 / mean).round() as usize).clamp(1, lessons.len());
    let first = step as usize * count;
    let mut epoch = usize::MAX;
    let mut order: Vec<usize> = Vec::new();
    (first..first + count)
        .map(|place| {
            if place / lessons.len() != epoch {
                epoch = place / lessons.len();
                order = (0..lessons.len()).collect();
                order.shuffle(&mut StdRng::seed_from_u64(options.seed.wrapping_add(epoch as u64)));
            }
            order[place % lessons.len()]
        })
        .collect()
}
