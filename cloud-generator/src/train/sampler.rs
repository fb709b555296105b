use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::TrainConfig;
use crate::data::{Item, Task, harness};

/// Items a task must keep to be trained on, where long ones are left out.
const ITEMS_MIN: usize = 8;

/// Draws the tasks and items of each pass. A pass depends on the seed and its number only, so a resumed run
/// continues with the same data.
pub struct Sampler {
    labelled: Vec<Labelled>,
    open: Vec<Task>,
    instructions: Vec<Task>,
}

struct Labelled {
    task: Task,
    // The answers of every item, or none if each item has its own.
    labels: Vec<String>,
    // Items by their answer, so that a frequent label does not drown the others.
    by_label: Vec<Vec<usize>>,
}

/// One prompt of a pass and the items that are solved with it.
pub struct Step {
    /// The prompt.
    pub prompt: String,
    /// Whether the prompt will come back.
    pub recurs: bool,
    /// What to learn with it.
    pub samples: Vec<Sample>,
}

/// What the edge model sees before an answer.
pub enum Input {
    /// What a user sends, in the chat template.
    Turn(String),
    /// Plain text that the answer continues, as lm-evaluation-harness asks.
    Text(String),
}

/// One item with the answer to learn.
pub struct Sample {
    /// What comes before the answer.
    pub input: Input,
    /// What to answer.
    pub answer: String,
    /// The answers to choose from, `answer` among them; empty for open ones.
    pub choices: Vec<String>,
}

impl Sampler {
    /// Sorts `tasks` into those with a label set or choices, open ones, and instructions (one item). `fits` says
    /// whether an item is short enough; it is asked only where the configuration leaves long ones out.
    pub fn new(tasks: Vec<Task>, config: &TrainConfig, mut fits: impl FnMut(&Item) -> bool) -> Self {
        let mut sampler = Self { labelled: Vec::new(), open: Vec::new(), instructions: Vec::new() };
        let mut rng = StdRng::seed_from_u64(config.seed);
        for mut task in tasks {
            let several = task.items.len() > 1;
            let labels = task.label_set(config.choices_max);
            let limit = config.items_per_task_max.unwrap_or(usize::MAX);
            if config.leave_out_long_items || task.items.len() > limit {
                task.items.shuffle(&mut rng);
                let items = std::mem::take(&mut task.items).into_iter();
                let short = items.filter(|item| !config.leave_out_long_items || fits(item));
                task.items = short.take(limit).collect();
            }
            if task.items.is_empty() || several && config.leave_out_long_items && task.items.len() < ITEMS_MIN {
                continue;
            }
            if !several {
                sampler.instructions.push(task);
            } else if labels.len() > 1 {
                let of = |label: &String| {
                    let items = task.items.iter().enumerate();
                    items.filter(|(_, item)| item.outputs.first() == Some(label)).map(|(index, _)| index).collect()
                };
                let by_label = labels.iter().map(of).filter(|items: &Vec<usize>| !items.is_empty()).collect();
                sampler.labelled.push(Labelled { task, labels, by_label });
            } else if task.items.iter().all(|item| item.choices.len() > 1) {
                let by_label = vec![(0..task.items.len()).collect()];
                sampler.labelled.push(Labelled { task, labels: Vec::new(), by_label });
            } else {
                sampler.open.push(task);
            }
        }
        sampler
    }

    /// Tasks with a label set or choices, open tasks, and instructions.
    pub fn counts(&self) -> [usize; 3] {
        [self.labelled.len(), self.open.len(), self.instructions.len()]
    }

    /// The prompts of all tasks with several items, each with every number of examples that a pass may show.
    pub fn prompts(&self, config: &TrainConfig) -> Vec<String> {
        let tasks = self.labelled.iter().map(|labelled| &labelled.task).chain(&self.open);
        let prompts = tasks.flat_map(|task| {
            (0..=config.examples_max.min(task.examples.len())).map(|example_count| task.prompt(example_count))
        });
        prompts.collect()
    }

    /// The prompts and items of pass `pass`.
    pub fn pass(&self, config: &TrainConfig, pass: u64) -> Vec<Step> {
        let mut rng = StdRng::seed_from_u64(config.seed ^ pass.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        (0..config.prompts_per_pass).map(|_| self.step(config, &mut rng)).collect()
    }

    fn step(&self, config: &TrainConfig, rng: &mut StdRng) -> Step {
        let task_count = self.labelled.len() + self.open.len();
        if task_count == 0 || !self.instructions.is_empty() && rng.random_bool(config.instruction_share) {
            return open(&self.instructions[rng.random_range(0..self.instructions.len())], config, rng);
        }
        let share = config.label_share.unwrap_or(self.labelled.len() as f64 / task_count as f64);
        let labelled = self.open.is_empty() || !self.labelled.is_empty() && rng.random_bool(share);
        match labelled {
            true => self.labelled[rng.random_range(0..self.labelled.len())].step(config, rng),
            false => open(&self.open[rng.random_range(0..self.open.len())], config, rng),
        }
    }
}

impl Labelled {
    fn step(&self, config: &TrainConfig, rng: &mut StdRng) -> Step {
        let samples = (0..config.items_per_prompt).map(|_| {
            let items = self.by_label.choose(rng).expect("a task has items");
            let item = &self.task.items[*items.choose(rng).expect("a label has items")];
            if item.question.is_some() && config.harness_share > 0.0 && rng.random_bool(config.harness_share) {
                return as_the_harness_asks(&self.task.name, item);
            }
            let choices = if self.labels.is_empty() { &item.choices } else { &self.labels };
            let input = Input::Turn(item.input.clone());
            Sample { input, answer: item.outputs[0].clone(), choices: choices.clone() }
        });
        let samples = samples.collect();
        Step { prompt: prompt(&self.task, config, rng), recurs: true, samples }
    }
}

// Only contexts that all choices share make a choice among first tokens.
fn as_the_harness_asks(task: &str, item: &Item) -> Sample {
    let question = item.question.as_ref().expect("only multiple-choice items are asked so");
    let right = item.choices.iter().position(|choice| *choice == item.outputs[0]).expect("the answer is a choice");
    let mut pairs = harness::texts(task, question, &item.choices);
    let shared = pairs.iter().all(|(context, _)| *context == pairs[0].0);
    let choices = if shared { pairs.iter().map(|(_, answer)| answer.clone()).collect() } else { Vec::new() };
    let (context, answer) = pairs.swap_remove(right);
    Sample { input: Input::Text(context), answer, choices }
}

fn open(task: &Task, config: &TrainConfig, rng: &mut StdRng) -> Step {
    let mut order: Vec<&Item> = task.items.iter().collect();
    let count = config.items_per_prompt.min(order.len());
    // partial_shuffle returns what it drew first.
    let (drawn, _) = order.partial_shuffle(rng, count);
    let sample = |item: &&Item| {
        let answer = item.outputs.choose(rng).expect("an item has an answer").clone();
        Sample { input: Input::Turn(item.input.clone()), answer, choices: Vec::new() }
    };
    let samples = drawn.iter().map(sample).collect();
    Step { prompt: prompt(task, config, rng), recurs: task.items.len() > 1, samples }
}

// Every other prompt in another wording, where there are any.
fn prompt(task: &Task, config: &TrainConfig, rng: &mut StdRng) -> String {
    let example_count = rng.random_range(0..=config.examples_max.min(task.examples.len()));
    match task.wordings.choose(rng) {
        Some(wording) if rng.random_bool(0.5) => task.prompt_worded(wording, example_count),
        _ => task.prompt(example_count),
    }
}
