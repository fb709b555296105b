//! How lm-evaluation-harness asks the eight reasoning sets: plain text whose continuations are compared.

use edgeweld::tokenizer::{EncodeOptions, Tokenizer};

use super::Question;
use crate::Result;

/// The tokens of `context` and `answer`, and the index of the answer's first.
///
/// As the harness does, blanks at the end of the context belong to the answer, and the two are encoded as one.
pub fn encode(tokenizer: &Tokenizer, context: &str, answer: &str) -> Result<(Vec<u32>, usize)> {
    let options = EncodeOptions { add_special: true, parse_special: false };
    let trimmed = context.trim_end();
    let answer = format!("{}{answer}", &context[trimmed.len()..]);
    let encode = |text: &str| -> Result<Vec<u32>> {
        let ids = tokenizer.encode(text, options)?;
        let ends = tokenizer.adds_eos() && ids.last().copied() == tokenizer.eos();
        Ok(ids[..ids.len() - usize::from(ends)].to_vec())
    };
    Ok((encode(&format!("{trimmed}{answer}"))?, encode(trimmed)?.len()))
}

/// `(context, answer)` of every choice, as lm-evaluation-harness 0.4 has them.
pub fn texts(task: &str, question: &Question, choices: &[String]) -> Vec<(String, String)> {
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

    fn harness(task: &str, context: Option<&str>, text: &str, choices: &[&str]) -> Vec<(String, String)> {
        let question = Question { context: context.map(str::to_owned), text: text.to_owned() };
        let choices: Vec<String> = choices.iter().map(|choice| (*choice).to_owned()).collect();
        super::texts(task, &question, &choices)
    }

    #[test]
    fn the_eight_sets_have_the_harness_prompts() {
        let pair = |context: &str, answer: &str| (context.to_owned(), answer.to_owned());
        assert_eq!(harness("arc_easy", None, "Why?", &["a"]), [pair("Question: Why?\nAnswer:", " a")]);
        assert_eq!(harness("arc_challenge", None, "Why?", &["a"]), [pair("Question: Why?\nAnswer:", " a")]);
        assert_eq!(harness("piqa", None, "To cut", &["a"]), [pair("Question: To cut\nAnswer:", " a")]);
        assert_eq!(harness("openbookqa", None, "The sun is", &["hot"]), [pair("The sun is", " hot")]);
        assert_eq!(
            harness("boolq", Some("T -- p"), "is it", &["yes", "no"]),
            [pair("T -- p\nQuestion: is it?\nAnswer:", " yes"), pair("T -- p\nQuestion: is it?\nAnswer:", " no")]
        );
        assert_eq!(harness("socialiqa", Some("He ran."), "Why?", &["fun"]), [pair("Q: He ran. Why?\nA:", " fun")]);
        assert_eq!(
            harness("winogrande", None, "The cup beat the _ as it was big.", &["mug", "jar"]),
            [pair("The cup beat the mug", " as it was big."), pair("The cup beat the jar", " as it was big.")]
        );
        assert_eq!(
            harness("hellaswag", None, "Cooking: [header] How to [title] Mix it. They", &["stir [step] well"]),
            [pair("Cooking: How to. Mix it. They", " stir well")]
        );
    }
}
