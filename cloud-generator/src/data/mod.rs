//! Tasks to train and evaluate on: the *task*, *mc* and *instr* schemas, gzip or not.

pub mod harness;
mod read;
mod splits;

pub use read::{read_tasks, read_wordings};
pub use splits::Splits;

/// What one prompt is about: its wording, examples of it, and items to be solved with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Unique name.
    pub name: String,
    /// The instruction.
    pub definition: String,
    /// Other wordings of it, which training draws from too.
    pub wordings: Vec<String>,
    /// Worked examples that a prompt may show.
    pub examples: Vec<(String, String)>,
    /// Items, none of which is among the examples.
    pub items: Vec<Item>,
}

/// One item of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// What the user sends.
    pub input: String,
    /// Accepted answers, the preferred first.
    pub outputs: Vec<String>,
    /// Answers to choose from, where the item has its own.
    pub choices: Vec<String>,
    /// What `input` was made of, where the item is of the *mc* schema.
    pub question: Option<Question>,
}

/// The parts of an *mc* item.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// A passage or situation.
    pub context: Option<String>,
    /// The question.
    pub text: String,
}

impl Task {
    /// The prompt with its first `example_count` examples.
    pub fn prompt(&self, example_count: usize) -> String {
        self.prompt_worded(&self.definition, example_count)
    }

    /// The prompt in another wording of its instruction.
    pub fn prompt_worded(&self, wording: &str, example_count: usize) -> String {
        let mut prompt = wording.to_owned();
        for (input, output) in self.examples.iter().take(example_count) {
            prompt += &format!("\n\nInput: {input}\nOutput: {output}");
        }
        prompt
    }

    /// The labels a classification task answers with, sorted; empty if there are more than `limit`.
    pub fn label_set(&self, limit: usize) -> Vec<String> {
        let mut labels: Vec<String> = self.items.iter().filter_map(|item| item.outputs.first().cloned()).collect();
        labels.sort();
        labels.dedup();
        if labels.len() > limit { Vec::new() } else { labels }
    }
}
