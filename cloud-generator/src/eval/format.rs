use edgeweld::chat::Message;
use edgeweld::tokenizer::EncodeOptions;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::data::{Item, harness};
use crate::edge_model::EdgeModel;

/// How items become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// As an app sends them: a user's turn of the chat template, the prompt as the system message.
    Chat,
    /// lm-evaluation-harness's prompts of the eight reasoning sets: plain text, the prompt and a blank line before it.
    Harness,
}

/// One answer to be scored: the tokens of context and answer, of which those from `first` on are the answer's.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Context and answer.
    pub ids: Vec<u32>,
    /// Index of the answer's first token.
    pub first: usize,
}

impl Format {
    /// One request per choice, in their order.
    pub fn requests(
        self,
        edge: &EdgeModel,
        task: &str,
        prompt: Option<&str>,
        item: &Item,
        choices: &[String],
    ) -> Result<Vec<Request>> {
        match (self, &item.question) {
            (Self::Harness, Some(question)) => {
                let prefix = prompt.map(|prompt| format!("{prompt}\n\n")).unwrap_or_default();
                let pairs = harness::texts(task, question, choices);
                let request = |(context, answer): (String, String)| {
                    let (ids, first) = harness::encode(&edge.tokenizer, &(prefix.clone() + &context), &answer)?;
                    Ok(Request { ids, first })
                };
                pairs.into_iter().map(request).collect()
            }
            _ => {
                let context = chat_context(edge, prompt, &item.input)?;
                let options = EncodeOptions { add_special: false, parse_special: false };
                let request = |choice: &String| {
                    let answer = edge.tokenizer.encode(choice, options)?;
                    Ok(Request { first: context.len(), ids: [context.as_slice(), &answer].concat() })
                };
                choices.iter().map(request).collect()
            }
        }
    }

    /// An example as it stands in a prompt: the item and its right answer.
    pub fn example(self, task: &str, item: &Item) -> String {
        let answer = item.outputs.first().map(String::as_str).unwrap_or_default();
        match (self, &item.question) {
            (Self::Harness, Some(question)) => {
                let right = item.choices.iter().position(|choice| choice == answer).unwrap_or(0);
                let (context, answer) = harness::texts(task, question, &item.choices).swap_remove(right);
                context + &answer
            }
            _ => format!("Input: {}\nOutput: {answer}", item.input),
        }
    }
}

/// The tokens of a user's turn up to where the model answers.
pub(super) fn chat_context(edge: &EdgeModel, prompt: Option<&str>, input: &str) -> Result<Vec<u32>> {
    let system = prompt.map(Message::system);
    let messages: Vec<Message> = system.into_iter().chain([Message::user(input)]).collect();
    edge.encode(&messages)
}
