use edgeweld::CancelToken;
use edgeweld::chat::Message;
use edgeweld::lora::LoraSet;
use serde::{Deserialize, Serialize};

use super::Answer;
use super::teacher::decode;
use crate::Result;
use crate::edge_model::EdgeModel;

/// Probability of its own greedy answer from which on a teacher counts as consistent: sampled, it would give that very
/// answer at least every other time.
const CONSISTENT: f64 = 0.5;

/// How like the prompted model another one behaves, or how well it knows the answers that were given; as a device computes
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// KL(teacher ‖ student) at the tokens of the teacher's greedy answers: mean nats per token.
    pub divergence: f64,
    /// Share of these tokens where both find the same one likeliest.
    pub top1: f64,
    /// Queries.
    pub query_count: u32,
    /// Share of queries whose greedy answers are equal.
    pub greedy: f64,
    /// Queries where the teacher's greedy answer has a probability of at least one half.
    pub consistent_count: u32,
    /// Share of these whose greedy answers are equal.
    pub consistent_greedy: f64,
}

/// Compares the model with `lora`, after `context`, to what the teacher said. Sampled answers are left out.
/// Without `decode_answers`, only [`divergence`](Fidelity::divergence) and [`top1`](Fidelity::top1) are measured.
pub fn measure(
    edge: &EdgeModel,
    lora: Option<&LoraSet>,
    context: &[Message],
    answers: &[&Answer],
    decode_answers: bool,
    cancel: &CancelToken,
) -> Result<Fidelity> {
    let side_path = lora.map(|lora| edge.side_path(lora)).transpose()?;
    let answers: Vec<&Answer> = answers.iter().copied().filter(|answer| answer.greedy).collect();
    let turn = |answer: &&Answer| edge.encode(&[context, &[Message::user(&answer.query)]].concat());
    let turns: Vec<Vec<u32>> = answers.iter().map(turn).collect::<Result<_>>()?;
    let capacity = turns.iter().zip(&answers).map(|(turn, answer)| turn.len() + answer.ids.len()).max().unwrap_or(1);
    let mut reader = edge.reader(capacity + 8, side_path)?;
    let mut fidelity = Fidelity { query_count: answers.len() as u32, ..Fidelity::default() };
    let (mut tokens, mut equal, mut consistent_equal) = (0usize, 0u32, 0u32);
    for (turn, answer) in turns.into_iter().zip(answers) {
        let ids: Vec<u32> = turn.iter().chain(&answer.ids).copied().collect();
        let vocab_size = reader.vocab_size();
        let logits = reader.predictions(&ids, turn.len(), cancel)?;
        for (logits, expected) in logits.chunks(vocab_size).zip(&answer.expected) {
            fidelity.divergence += expected.divergence(logits);
            fidelity.top1 += f64::from(argmax(logits) == expected.top[0].0);
            tokens += 1;
        }
        if decode_answers {
            let said = decode(edge, &mut reader, turn, answer.ids.len(), cancel, argmax)?;
            let same = u32::from(same_answer(edge, &said, &answer.ids));
            equal += same;
            if answer.probability() >= CONSISTENT {
                fidelity.consistent_count += 1;
                consistent_equal += same;
            }
        }
    }
    let share = |count: u32, of: u32| f64::from(count) / f64::from(of.max(1));
    fidelity.divergence /= tokens.max(1) as f64;
    fidelity.top1 /= tokens.max(1) as f64;
    fidelity.greedy = share(equal, fidelity.query_count);
    fidelity.consistent_greedy = share(consistent_equal, fidelity.consistent_count);
    Ok(fidelity)
}

// The same text, or the same JSON whatever its white space.
fn same_answer(edge: &EdgeModel, a: &[u32], b: &[u32]) -> bool {
    let text = |ids: &[u32]| {
        let end = ids.len() - usize::from(ids.last().is_some_and(|id| edge.tokenizer.is_end(*id)));
        edge.tokenizer.decode(&ids[..end]).trim().to_owned()
    };
    let (a, b) = (text(a), text(b));
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    a == b || json(&a).is_some_and(|a| json(&b).is_some_and(|b| a == b))
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|(i, a), (j, b)| a.total_cmp(b).then(j.cmp(i)));
    best.map_or(0, |(index, _)| index as u32)
}
