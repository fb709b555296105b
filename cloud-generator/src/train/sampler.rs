use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::TrainConfig;
use crate::data::{Item, Task};

/// Draws the tasks and items of each pass. A pass depends on the seed and its number only, so a resumed run
/// continues with the same data.
pub struct Sampler {
    tasks: Vec<Task>,
    instructions: Vec<Task>,
}

/// One prompt of a pass and the items that are solved with it.
pub struct Step {
    /// The prompt.
    pub prompt: String,
    /// Items and the answer to learn.
    pub items: Vec<(Item, String)>,
}

impl Sampler {
    /// `tasks` with one item count as instruction data.
    pub fn new(tasks: Vec<Task>) -> Self {
        let (tasks, instructions) =
            tasks.into_iter().filter(|task| !task.items.is_empty()).partition(|task| task.items.len() > 1);
        Self { tasks, instructions }
    }

    /// Tasks with several items, and single-item instructions.
    pub fn counts(&self) -> (usize, usize) {
        (self.tasks.len(), self.instructions.len())
    }

    /// The prompts and items of pass `pass`.
    pub fn pass(&self, config: &TrainConfig, pass: u64) -> Vec<Step> {
        let mut rng = StdRng::seed_from_u64(config.seed ^ pass.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        (0..config.prompts_per_pass)
            .map(|_| {
                let instruction = self.tasks.is_empty() || rng.random_bool(config.instruction_share);
                let pool = if instruction && !self.instructions.is_empty() { &self.instructions } else { &self.tasks };
                let task = &pool[rng.random_range(0..pool.len())];
                let example_count = rng.random_range(0..=config.examples_max);
                let mut order: Vec<&Item> = task.items.iter().collect();
                order.partial_shuffle(&mut rng, config.items_per_prompt);
                let count = config.items_per_prompt.min(order.len());
                // partial_shuffle puts what it drew at the end.
                let items = order[order.len() - count..].iter().map(|item| {
                    let output = &item.outputs[rng.random_range(0..item.outputs.len())];
                    ((*item).clone(), output.clone())
                });
                Step { prompt: task.prompt(example_count), items: items.collect() }
            })
            .collect()
    }
}
