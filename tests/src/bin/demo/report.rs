//! What the demo shows of one prompt: answers, then figures.

use edgeweld_tests::Table;
use edgeweld_tests::arms::{Answer, Arm, Outcome, median};

use super::case::Case;

/// One arm's results.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) arm: Arm,
    pub(crate) outcome: Outcome,
    pub(crate) peak_bytes: u64,
    /// Bytes on disk per task.
    pub(crate) kept_bytes: Option<u64>,
}

/// Characters of an answer that are shown.
const ANSWER_CHARACTERS: usize = 100;

impl Row {
    fn median(&self, figure: impl Fn(&Answer) -> f64) -> f64 {
        median(self.outcome.answers.iter().map(figure))
    }

    /// Answers that are the same as `other`'s, letter by letter.
    fn same_answers(&self, other: &Self) -> usize {
        let pairs = self.outcome.answers.iter().zip(&other.outcome.answers);
        pairs.filter(|(a, b)| a.text.trim() == b.text.trim()).count()
    }
}

pub(crate) fn print(case: &Case, rows: &[Row]) {
    if case.shows_answers {
        let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        for (index, question) in case.questions.iter().enumerate() {
            println!("  \u{201c}{}\u{201d}", one_line(question, ANSWER_CHARACTERS));
            for row in rows {
                println!("    {:<width$}  {}", row.name, one_line(&row.outcome.answers[index].text, ANSWER_CHARACTERS));
            }
        }
        println!();
    } else {
        println!("  Answers are not shown: the pack has learnt nothing. The figures are real.\n");
    }
    println!("{}", table(case, rows));
    for line in comparison(rows) {
        println!("  {line}");
    }
    // Every session says what answers, and why.
    for row in rows.iter().filter(|row| row.arm == Arm::Specialized) {
        let arm = row.outcome.answers.first().map_or("", |answer| answer.arm.as_str());
        println!("  The runtime said: {arm}.");
    }
}

fn table(case: &Case, rows: &[Row]) -> Table {
    let mut table = Table::new([
        "arm",
        if rows.iter().any(|row| row.arm == Arm::Taught) {
            "answers as with the prompt, examples as turns"
        } else {
            "answers as with the prompt"
        },
        "prompt tokens",
        "first token, ms",
        "restore, ms",
        "decode, tok/s",
        "KV cache, KB",
        "peak memory, MB",
        "kept per task",
    ]);
    // What a pack stands for: a refined one for the prompt as its teacher saw it.
    let find = |arm| rows.iter().find(|row| row.arm == arm);
    let prompted = find(Arm::Taught).or(find(Arm::Prompted));
    for row in rows {
        let restore = row.outcome.answers.iter().filter_map(|answer| answer.restore_ms);
        let same = prompted.map(|prompted| format!("{} of {}", row.same_answers(prompted), case.questions.len()));
        table.row([
            row.name.clone(),
            same.filter(|_| case.shows_answers).unwrap_or_default(),
            format!("{:.0}", row.median(|answer| answer.prompt_tokens as f64)),
            format!("{:.0}", row.median(|answer| answer.time_to_first_token_ms)),
            if row.arm == Arm::Restored { format!("{:.0}", median(restore)) } else { String::new() },
            format!("{:.0}", row.outcome.decode_tokens_per_second),
            format!("{:.0}", row.median(|answer| answer.cache_size_bytes as f64) / 1e3),
            format!("{:.0}", row.peak_bytes as f64 / 1e6),
            row.kept_bytes.map(bytes).unwrap_or_default(),
        ]);
    }
    table
}

/// The specialised arms beside the prompted and the restored one.
fn comparison(rows: &[Row]) -> Vec<String> {
    let find = |arm| rows.iter().find(|row| row.arm == arm);
    let (Some(prompted), Some(restored)) = (find(Arm::Prompted), find(Arm::Restored)) else { return Vec::new() };
    let line = |row: &Row| {
        let first = |row: &Row| row.median(|answer| answer.time_to_first_token_ms);
        let cache = |row: &Row| row.median(|answer| answer.cache_size_bytes as f64);
        format!(
            "{}: first token {:.0}x sooner than with the prompt in context, {:.2}x the restored prefix's time; decode {:.2}x; KV cache 1/{:.0}.",
            row.name,
            first(prompted) / first(row),
            first(row) / first(restored),
            row.outcome.decode_tokens_per_second / restored.outcome.decode_tokens_per_second,
            cache(prompted) / cache(row),
        )
    };
    rows.iter().filter(|row| row.arm == Arm::Specialized).map(line).collect()
}

fn bytes(count: u64) -> String {
    match count {
        0..100_000 => format!("{:.1} KB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

fn one_line(text: &str, characters_max: usize) -> String {
    let line: Vec<&str> = text.split_whitespace().collect();
    let line = line.join(" ");
    match line.char_indices().nth(characters_max) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(arm: Arm, text: &str, first_token: f64, cache: usize) -> Row {
        let answer = Answer {
            text: text.to_owned(),
            arm: String::new(),
            prompt_tokens: 30,
            time_to_first_token_ms: first_token,
            restore_ms: (arm == Arm::Restored).then_some(7.0),
            cache_size_bytes: cache,
        };
        let outcome = Outcome { answers: vec![answer], decode_tokens_per_second: 100.0, peak_rss_bytes: None };
        Row { name: arm.name().to_owned(), arm, outcome, peak_bytes: 1, kept_bytes: None }
    }

    #[test]
    fn specialised_arms_are_compared_with_both_prompted_ones() {
        let rows = [
            row(Arm::Prompted, " late", 1000.0, 30_000),
            row(Arm::Restored, "late", 50.0, 30_000),
            row(Arm::Specialized, "late", 25.0, 1_000),
        ];
        let lines = comparison(&rows);
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0].contains("40x sooner") && lines[0].contains("0.50x") && lines[0].contains("1/30"),
            "{lines:?}"
        );
        assert_eq!(rows[2].same_answers(&rows[0]), 1);
    }

    #[test]
    fn long_answers_become_one_short_line() {
        assert_eq!(one_line("a\n b\tc", 10), "a b c");
        assert_eq!(one_line("éé éé", 3), "éé …");
    }
}
