use std::collections::BTreeSet;

use crate::data::{Item, Task};

/// A task to evaluate on, with the items that were selected.
#[derive(Clone, Debug)]
pub struct EvalTask {
    /// The task; its items are the selected ones.
    pub task: Task,
    /// Its other items, without those whose input is a selected one's.
    pub rest: Vec<Item>,
    /// What every item is answered with; empty if items have choices of their own or are open.
    pub labels: Vec<String>,
    /// Examples from other items, where the task has none of its own.
    pub shots: Vec<Item>,
}

impl EvalTask {
    /// The answers `item` is to choose from; empty for an open one.
    pub fn choices<'a>(&'a self, item: &'a Item) -> &'a [String] {
        if item.choices.is_empty() { &self.labels } else { &item.choices }
    }

    /// Whether its items have answers to choose from.
    pub fn is_ranked(&self) -> bool {
        !self.labels.is_empty() || self.task.items.iter().all(|item| item.choices.len() > 1)
    }

    /// The labels regardless of case and punctuation: tasks with equal ones have one output format.
    pub fn output_format(&self) -> BTreeSet<String> {
        let plain = |label: &String| label.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
        self.labels.iter().map(plain).collect()
    }
}

impl EvalTask {
    /// Its examples as items.
    pub fn examples(&self) -> Vec<Item> {
        if !self.shots.is_empty() {
            return self.shots.clone();
        }
        let item = |(input, output): &(String, String)| Item {
            input: input.clone(),
            outputs: vec![output.clone()],
            choices: Vec::new(),
            question: None,
        };
        self.task.examples.iter().map(item).collect()
    }

    /// Takes examples for prompts from other items of the task (a training file's), where it has none of its own.
    pub fn take_examples(&mut self, items: &[Item], count: usize) {
        if !self.task.examples.is_empty() {
            return;
        }
        for item in items.iter().take(count) {
            self.shots.push(item.clone());
            self.task.examples.push((item.input.clone(), item.outputs.first().cloned().unwrap_or_default()));
        }
    }
}

/// Takes the first `limit` items of each task, and its label set if it has at most `labels_max` different answers.
/// Tasks of one name (train and test files) are one. Open tasks are left out unless asked for.
pub fn select(tasks: Vec<Task>, limit: usize, labels_max: usize, open: bool) -> Vec<EvalTask> {
    let mut selected: Vec<EvalTask> = Vec::new();
    for mut task in tasks {
        // All items count for the label set, so that a small limit does not hide a label.
        let with_choices = task.items.iter().all(|item| item.choices.len() > 1);
        let labels = task.label_set(labels_max);
        let labels = if with_choices || labels.len() < 2 { Vec::new() } else { labels };
        let mut rest = task.items.split_off(limit.min(task.items.len()));
        rest.retain(|item| task.items.iter().all(|selected| selected.input != item.input));
        let task = EvalTask { task, rest, labels, shots: Vec::new() };
        if !task.task.items.is_empty() && (open || task.is_ranked()) {
            selected.push(task);
        }
    }
    selected
}
