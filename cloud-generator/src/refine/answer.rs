use rand::Rng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::Split;

/// A teacher's likeliest next tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// `(token id, natural-log probability)`, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// What the teacher said to a query, or should have said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The user's turn.
    pub query: String,
    /// What it is for.
    pub split: Split,
    /// Whether the likeliest token was taken at each position.
    pub greedy: bool,
    /// The answer's tokens, the one that ends the turn included if it was reached.
    pub ids: Vec<u32>,
    /// What the teacher expected at each of them.
    pub expected: Vec<Distribution>,
}

impl Distribution {
    /// One token and no other.
    pub fn certain(id: u32) -> Self {
        Self { top: vec![(id, 0.0)] }
    }

    /// The `count` likeliest tokens of `logits`.
    pub fn of(logits: &[f32], count: usize) -> Self {
        let log_sum = log_sum_exp(logits);
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let count = count.min(order.len());
        let descending = |&i: &u32, &j: &u32| logits[j as usize].total_cmp(&logits[i as usize]).then(i.cmp(&j));
        if count < order.len() {
            order.select_nth_unstable_by(count, descending);
            order.truncate(count);
        }
        order.sort_unstable_by(descending);
        Self { top: order.into_iter().map(|id| (id, logits[id as usize] - log_sum)).collect() }
    }

    /// KL(self ‖ softmax(logits)) in nats, where all tokens that are not among the likeliest count as one.
    pub fn divergence(&self, logits: &[f32]) -> f64 {
        let log_sum = f64::from(log_sum_exp(logits));
        let (mut kl, mut mass, mut other_mass) = (0.0, 0.0, 0.0);
        for &(id, log_p) in &self.top {
            let (log_p, log_q) = (f64::from(log_p), f64::from(logits[id as usize]) - log_sum);
            kl += log_p.exp() * (log_p - log_q);
            mass += log_p.exp();
            other_mass += log_q.exp();
        }
        let (rest, other_rest) = (1.0 - mass, (1.0 - other_mass).max(1e-12));
        if rest > 1e-6 { kl + rest * (rest / other_rest).ln() } else { kl }
    }

    /// One of the likeliest tokens at `temperature`.
    pub(super) fn sample(&self, temperature: f32, rng: &mut StdRng) -> u32 {
        let best = self.top[0].1;
        let weight = |log_p: f32| f64::from((log_p - best) / temperature).exp();
        let mut rest = rng.random::<f64>() * self.top.iter().map(|&(_, log_p)| weight(log_p)).sum::<f64>();
        for &(id, log_p) in &self.top {
            rest -= weight(log_p);
            if rest <= 0.0 {
                return id;
            }
        }
        self.top[0].0
    }

    /// Probabilities that sum to 1, `label_weight` of which goes to `label`.
    pub(super) fn target(&self, label: Option<(u32, f32)>) -> Vec<(u32, f32)> {
        let mass: f32 = self.top.iter().map(|&(_, log_p)| log_p.exp()).sum();
        let label_weight = label.map_or(0.0, |(_, weight)| weight);
        let share = (1.0 - label_weight) / mass;
        let mut target: Vec<(u32, f32)> = self.top.iter().map(|&(id, log_p)| (id, share * log_p.exp())).collect();
        if let Some((id, weight)) = label {
            match target.iter_mut().find(|(other, _)| *other == id) {
                Some((_, p)) => *p += weight,
                None => target.push((id, weight)),
            }
        }
        target
    }
}

impl Answer {
    /// The probability the teacher gives this very answer.
    pub fn probability(&self) -> f64 {
        let log_p = |(id, expected): (&u32, &Distribution)| {
            let found = expected.top.iter().find(|(other, _)| other == id);
            found.map_or(f64::NEG_INFINITY, |&(_, log_p)| f64::from(log_p))
        };
        self.ids.iter().zip(&self.expected).map(log_p).sum::<f64>().exp()
    }
}

pub(super) fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    max + logits.iter().map(|x| (x - max).exp()).sum::<f32>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_likeliest_tokens_and_their_probabilities() {
        let logits = [0f32, 3.0, 1.0, 2.0];
        let expected = Distribution::of(&logits, 2);
        let sum: f32 = logits.iter().map(|x| x.exp()).sum();
        assert_eq!(expected.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3]);
        assert!((expected.top[0].1.exp() - 3f32.exp() / sum).abs() < 1e-6);
    }

    #[test]
    fn divergence_is_zero_for_itself_and_exact_when_everything_is_kept() {
        let (p, q) = ([0.5f32, -1.0, 2.0], [1.0f32, 0.0, -0.5]);
        let all = Distribution::of(&p, 3);
        assert!(all.divergence(&p).abs() < 1e-6);
        let softmax = |x: [f32; 3]| x.map(|value| f64::from(value - log_sum_exp(&x)).exp());
        let exact: f64 = softmax(p).iter().zip(softmax(q)).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((all.divergence(&q) - exact).abs() < 1e-6);
        // Merging tokens can only lose divergence.
        let some = Distribution::of(&p, 1).divergence(&q);
        assert!(some > 0.0 && some < exact);
    }

    #[test]
    fn target_sums_to_one_and_favours_the_label() {
        let target = Distribution::of(&[0.0, 1.0, 2.0, 3.0], 2).target(Some((3, 0.5)));
        assert!((target.iter().map(|(_, p)| p).sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(target[0].0 == 3 && target[0].1 > 0.8);
    }
}
