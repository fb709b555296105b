use edgeweld::chat::Message;
use edgeweld::tokenizer::EncodeOptions;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::data::{Item, Question};
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
                let pairs = harness_texts(task, question, choices);
                pairs.into_iter().map(|(context, answer)| plain(edge, &(prefix.clone() + &context), &answer)).collect()
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
                let (context, answer) = harness_texts(task, question, &item.choices).swap_remove(right);
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

// As lm-evaluation-harness does: blanks at the end of the context belong to the answer, and the two are encoded as one.
fn plain(edge: &EdgeModel, context: &str, answer: &str) -> Result<Request> {
    let options = EncodeOptions { add_special: true, parse_special: false };
    let trimmed = context.trim_end();
    let answer = format!("{}{answer}", &context[trimmed.len()..]);
    let encode = |text: &str| -> Result<Vec<u32>> {
        let ids = edge.tokenizer.encode(text, options)?;
        let ends = edge.tokenizer.adds_eos() && ids.last().copied() == edge.tokenizer.eos();
        Ok(ids[..ids.len() - usize::from(ends)].to_vec())
    };
    Ok(Request { first: encode(trimmed)?.len(), ids: encode(&format!("{trimmed}{answer}"))? })
}

/// `(context, answer)` of every choice, as lm-evaluation-harness 0.4 has them.
fn harness_texts(task: &str, question: &Question, choices: &[String]) -> Vec<(String, String)> {
    let Question { context, text } = question;
    let passage = context.as_deref().unwrap_or_default();
    let same = |context: String| choices.iter().map(|choice| (context.clone(), format!(" {choice}"))).collect();
    match task {
        "openbookqa" => same(text.clone()),
        "boolq" => same(format!("{passage}\nQuestion: {}?\nAnswer:", text.trim_end_matches('?'))),
        "socialiqa" => same(format!("Q: {passage} {text}\nA:")),
        "hellaswag" => {
            let choices = choices.iter().map(|choice| (hellaswag_text(text), format!(" {}", hellaswag_text(choice))));
            choices.collect()
        }
        // The option is part of the context; what follows it is scored.
        "winogrande" => {
            let (before, after) = text.split_once('_').unwrap_or((text, ""));
            let pair = |choice: &String| (format!("{before}{choice}"), format!(" {}", after.trim()));
            choices.iter().map(pair).collect()
        }
        _ => same(format!("Question: {text}\nAnswer:")),
    }
}

// The harness's clean-up of HellaSwag: headings in brackets go, and the double blanks they leave.
fn hellaswag_text(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut clean = String::with_capacity(text.len());
    let mut depth = 0usize;
    for c in text.chars() {
        match c {
            '[' => depth += 1,
            ']' if depth > 0 => depth -= 1,
            c if depth == 0 => clean.push(c),
            _ => {}
        }
    }
    clean.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(task: &str, context: Option<&str>, text: &str, choices: &[&str]) -> Vec<(String, String)> {
        let question = Question { context: context.map(str::to_owned), text: text.to_owned() };
        let choices: Vec<String> = choices.iter().map(|choice| (*choice).to_owned()).collect();
        harness_texts(task, &question, &choices)
    }

    #[test]
    fn the_eight_sets_have_the_harness_prompts() {
        let pair = |context: &str, answer: &str| (context.to_owned(), answer.to_owned());
        assert_eq!(texts("arc_easy", None, "Why?", &["a"]), [pair("Question: Why?\nAnswer:", " a")]);
        assert_eq!(texts("arc_challenge", None, "Why?", &["a"]), [pair("Question: Why?\nAnswer:", " a")]);
        assert_eq!(texts("piqa", None, "To cut", &["a"]), [pair("Question: To cut\nAnswer:", " a")]);
        assert_eq!(texts("openbookqa", None, "The sun is", &["hot"]), [pair("The sun is", " hot")]);
        assert_eq!(
            texts("boolq", Some("T -- p"), "is it", &["yes", "no"]),
            [pair("T -- p\nQuestion: is it?\nAnswer:", " yes"), pair("T -- p\nQuestion: is it?\nAnswer:", " no")]
        );
        assert_eq!(texts("socialiqa", Some("He ran."), "Why?", &["fun"]), [pair("Q: He ran. Why?\nA:", " fun")]);
        assert_eq!(
            texts("winogrande", None, "The cup beat the _ as it was big.", &["mug", "jar"]),
            [pair("The cup beat the mug", " as it was big."), pair("The cup beat the jar", " as it was big.")]
        );
        assert_eq!(
            texts("hellaswag", None, "Cooking: [header] How to [title] Mix it. They", &["stir [step] well"]),
            [pair("Cooking: How to. Mix it. They", " stir well")]
        );
    }
}
