use edgeweld::CancelToken;

use super::Request;
use crate::Result;
use crate::edge_model::Reader;

/// How one item was answered.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Score {
    /// 1 if the right choice is the likeliest (harness: `acc`), or the text equals an answer (`exact match`); else 0.
    pub main: f64,
    /// The same with log-likelihoods divided by the choices' lengths in characters (`acc_norm`), or ROUGE-L.
    pub second: f64,
    /// Index of the right label, where a task's items share a label set.
    #[serde(default)]
    pub label: Option<usize>,
}

/// Natural log-probabilities of the requests' answers. Requests that share their context compute it once.
pub fn log_likelihoods(reader: &mut Reader, requests: &[Request], cancel: &CancelToken) -> Result<Vec<f64>> {
    let mut scores = Vec::with_capacity(requests.len());
    // Log-probabilities after the context of the request before.
    let mut context: &[u32] = &[];
    let mut after = Vec::new();
    for request in requests {
        let (before, answer) = request.ids.split_at(request.first);
        if context != before || after.is_empty() {
            after = log_softmax(reader.next(before, cancel)?);
            context = before;
        }
        let Some((&first, rest)) = answer.split_first() else {
            scores.push(0.0);
            continue;
        };
        let mut score = f64::from(after[first as usize]);
        if !rest.is_empty() {
            let vocab_size = reader.vocab_size();
            let logits = reader.predictions(&request.ids, request.first + 1, cancel)?;
            for (row, &id) in logits.chunks(vocab_size).zip(rest) {
                score += f64::from(row[id as usize] - log_sum_exp(row));
            }
        }
        scores.push(score);
    }
    Ok(scores)
}

/// lm-evaluation-harness's `acc` and `acc_norm`: the first of the likeliest choices is the answer; lengths are in characters.
pub fn rank(log_likelihoods: &[f64], choices: &[String], right: usize) -> Score {
    let normed: Vec<f64> = log_likelihoods
        .iter()
        .zip(choices)
        .map(|(score, choice)| score / choice.chars().count().max(1) as f64)
        .collect();
    let hit = |scores: &[f64]| f64::from(u8::from(first_largest(scores) == Some(right)));
    Score { main: hit(log_likelihoods), second: hit(&normed), label: None }
}

fn first_largest(values: &[f64]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (index, value) in values.iter().enumerate() {
        if best.is_none_or(|best| *value > values[best]) {
            best = Some(index);
        }
    }
    best
}

/// Exact match and ROUGE-L of a text against the best of `answers`, regardless of case, punctuation and blanks.
pub(super) fn text_score(text: &str, answers: &[String]) -> Score {
    let words = words(text);
    let best = |f: &dyn Fn(&[String]) -> f64| answers.iter().map(|answer| f(&self::words(answer))).fold(0.0, f64::max);
    Score {
        main: best(&|answer| f64::from(u8::from(answer == words))),
        second: best(&|answer| rouge_l(&words, answer)),
        label: None,
    }
}

/// ROUGE-L: the F-measure of the longest common subsequence of words.
pub fn rouge_l(text: &[String], answer: &[String]) -> f64 {
    let mut row = vec![0usize; answer.len() + 1];
    for word in text {
        let mut diagonal = 0;
        for (index, other) in answer.iter().enumerate() {
            let above = row[index + 1];
            row[index + 1] = if word == other { diagonal + 1 } else { above.max(row[index]) };
            diagonal = above;
        }
    }
    match row[answer.len()] {
        0 => 0.0,
        common => 2.0 * common as f64 / (text.len() + answer.len()) as f64,
    }
}

fn words(text: &str) -> Vec<String> {
    let plain = |word: &str| word.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    text.split_whitespace().map(plain).filter(|word| !word.is_empty()).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let log_sum = log_sum_exp(logits);
    logits.iter().map(|logit| logit - log_sum).collect()
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    max + logits.iter().map(|logit| (logit - max).exp()).sum::<f32>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn accuracy_takes_the_likeliest_choice_and_its_normed_form_divides_by_characters() {
        let choices = strings(&["no", "certainly"]);
        // -2/2 = -1 against -4.5/9 = -0.5
        assert_eq!(rank(&[-2.0, -4.5], &choices, 0), Score { main: 1.0, second: 0.0, label: None });
        assert_eq!(rank(&[-2.0, -4.5], &choices, 1), Score { main: 0.0, second: 1.0, label: None });
        // Characters, not bytes: "é" is one.
        assert_eq!(rank(&[-1.0, -1.5], &strings(&["é", "ab"]), 1), Score { main: 0.0, second: 1.0, label: None });
    }

    #[test]
    fn the_first_of_equal_choices_is_the_answer() {
        assert_eq!(rank(&[-1.0, -1.0], &strings(&["a", "b"]), 0).main, 1.0);
        assert_eq!(rank(&[-1.0, -1.0], &strings(&["a", "b"]), 1).main, 0.0);
    }

    #[test]
    fn texts_match_regardless_of_case_and_punctuation() {
        let answers = strings(&["The cat sat.", "A dog"]);
        assert_eq!(text_score("the cat, sat", &answers), Score { main: 1.0, second: 1.0, label: None });
        let partly = text_score("the cat ran", &answers);
        assert_eq!(partly.main, 0.0);
        assert!((partly.second - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(text_score("", &answers).second, 0.0);
    }
}
