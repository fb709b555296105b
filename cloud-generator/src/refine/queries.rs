use std::path::Path;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a query is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Learnt from.
    Train,
    /// Decides when to stop.
    Dev,
    /// Measured at the end, and for nothing else.
    Test,
}

/// One line of a queries file: what a user may send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// The user's turn.
    pub query: String,
    /// What the model should answer; without it, what the prompted model does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// What it is for; where no line says, [`assign_splits`] does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
}

/// Share of queries that [`assign_splits`] keeps for `dev`, and again for `test`.
const HELD_OUT_SHARE: f64 = 0.15;
/// Fewest queries to refine with: below, nothing can be held out.
const QUERIES_MIN: usize = 4;

/// Reads a queries file: JSON lines, `{"query": "…", "answer": "…", "split": "train" | "dev" | "test"}`; `split` is
/// optional, and all lines or none have an `answer`.
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidData`] for a line of another form.
pub fn read_queries(path: &Path) -> Result<Vec<Query>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let mut queries: Vec<Query> = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let invalid = |reason: &str| Error::InvalidData { path: path.into(), line: index + 1, reason: reason.into() };
        let query: Query = serde_json::from_str(line).map_err(|error| invalid(&error.to_string()))?;
        if query.query.trim().is_empty() {
            return Err(invalid("the query is empty"));
        }
        if query.answer.as_ref().is_some_and(|answer| answer.trim().is_empty()) {
            return Err(invalid("the answer is empty"));
        }
        if queries.first().is_some_and(|first| first.answer.is_some() != query.answer.is_some()) {
            return Err(invalid("either all queries have an answer or none"));
        }
        queries.push(query);
    }
    Ok(queries)
}

/// The queries that a prompt shows in its own examples: what follows `Input:`, `User:`, `Query:`, `Question:`, `Q:` or
/// `Message:` at the start of a line.
pub fn from_prompt(prompt: &str) -> Vec<Query> {
    const MARKS: [&str; 6] = ["input:", "user:", "query:", "question:", "q:", "message:"];
    let mut queries: Vec<Query> = Vec::new();
    for line in prompt.lines() {
        let line = line.trim_start_matches(|c: char| c.is_whitespace() || "-*#>".contains(c));
        let Some(mark) = MARKS.iter().find(|mark| line.get(..mark.len()).is_some_and(|s| s.eq_ignore_ascii_case(mark)))
        else {
            continue;
        };
        let text = line[mark.len()..].trim().trim_matches('"');
        if !text.is_empty() && queries.iter().all(|query| query.query != text) {
            queries.push(Query { query: text.to_owned(), answer: None, split: None });
        }
    }
    queries
}

/// Gives every query a split. Queries that have one keep it; if none is `dev` or `test`, a seeded draw among the others
/// decides.
///
/// # Errors
/// [`Error::InvalidOption`] if there are fewer than four, or one of the splits would be empty.
pub fn assign_splits(queries: Vec<Query>, seed: u64) -> Result<Vec<(Query, Split)>> {
    let invalid = |reason: String| Error::InvalidOption { option: "--queries", reason };
    if queries.len() < QUERIES_MIN {
        return Err(invalid(format!("{} queries, at least {QUERIES_MIN} are needed", queries.len())));
    }
    let mut free: Vec<usize> = (0..queries.len()).filter(|&index| queries[index].split.is_none()).collect();
    free.shuffle(&mut StdRng::seed_from_u64(seed));
    let mut splits: Vec<Split> = queries.iter().map(|query| query.split.unwrap_or(Split::Train)).collect();
    for split in [Split::Test, Split::Dev] {
        if queries.iter().all(|query| query.split != Some(split)) {
            let count = ((queries.len() as f64 * HELD_OUT_SHARE) as usize).max(1).min(free.len());
            free.drain(..count).for_each(|index| splits[index] = split);
        }
    }
    for split in [Split::Train, Split::Dev, Split::Test] {
        if !splits.contains(&split) {
            return Err(invalid(format!("no query is left for {split:?}")));
        }
    }
    Ok(queries.into_iter().zip(splits).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str, split: Option<Split>) -> Query {
        Query { query: text.into(), answer: None, split }
    }

    #[test]
    fn every_query_gets_a_split_and_given_ones_stay() {
        let queries: Vec<Query> = (0..20).map(|i| query(&i.to_string(), (i == 3).then_some(Split::Test))).collect();
        let splits = assign_splits(queries.clone(), 7).unwrap();
        let count = |split| splits.iter().filter(|(_, of)| *of == split).count();
        assert_eq!((count(Split::Train), count(Split::Dev), count(Split::Test)), (16, 3, 1));
        assert_eq!(splits[3].1, Split::Test);
        assert_eq!(splits, assign_splits(queries, 7).unwrap());
    }

    #[test]
    fn rejects_too_few_queries_and_an_empty_split() {
        let refused =
            |queries| matches!(assign_splits(queries, 7), Err(Error::InvalidOption { option: "--queries", .. }));
        assert!(refused(vec![query("a", None); 3]));
        assert!(refused(vec![query("a", Some(Split::Train)); 9]));
    }

    #[test]
    fn reads_answers_of_all_lines_or_of_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queries.jsonl");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_queries(&path)
        };
        let queries = read("{\"query\": \"a\", \"answer\": \"b\"}\n\n{\"query\": \"c\", \"answer\": \"d\"}").unwrap();
        assert_eq!(queries.iter().map(|query| query.answer.as_deref()).collect::<Vec<_>>(), [Some("b"), Some("d")]);
        for (text, line) in [
            ("{\"query\": \"a\"}\n{\"query\": \"c\", \"answer\": \"d\"}", 2),
            ("{\"query\": \"a\", \"answer\": \" \"}", 1),
            ("{\"query\": \" \"}", 1),
            ("{\"query\": \"a\", \"anwser\": \"b\"}", 1),
        ] {
            assert!(matches!(read(text), Err(Error::InvalidData { line: at, .. }) if at == line), "{text}");
        }
    }

    #[test]
    fn finds_the_queries_of_a_prompts_examples_once() {
        let queries = from_prompt("Sort.\n- User: \"late?\"\nAnswer: late\nQ: late?\ninput:\nINPUT: where");
        assert_eq!(queries, [query("late?", None), query("where", None)]);
    }
}
