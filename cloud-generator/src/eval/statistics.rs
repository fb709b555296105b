use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Score;

/// Half the width of a 95% interval, in standard errors.
const INTERVAL: f64 = 1.96;

/// A mean with its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Values it is the mean of.
    pub n: usize,
}

impl Estimate {
    /// Mean of `values` and the standard error that lm-evaluation-harness reports: the sample's deviation over √n.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n.max(1) as f64;
        let square: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let standard_error = if n > 1 { (square / (n - 1) as f64 / n as f64).sqrt() } else { 0.0 };
        Self { mean, standard_error, n }
    }

    /// Bounds of the 95% interval.
    pub fn interval(&self) -> (f64, f64) {
        (self.mean - INTERVAL * self.standard_error, self.mean + INTERVAL * self.standard_error)
    }
}

/// Balanced accuracy: the mean over labels of the accuracy on their items, so that a model which always gives one answer
/// scores one part of the labels, however common that answer is. `None` for items that share no label set.
pub fn balanced(scores: &[Score]) -> Option<Estimate> {
    let mut labels: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for score in scores {
        labels.entry(score.label?).or_default().push(score.main);
    }
    let labels: Vec<Estimate> = labels.values().map(|hits| Estimate::of(hits)).collect();
    (!labels.is_empty()).then(|| macro_mean(&labels))
}

/// The mean over tasks, each alike; the standard error is that of drawing other items of the same tasks.
pub fn macro_mean(tasks: &[Estimate]) -> Estimate {
    let count = tasks.len().max(1) as f64;
    let mean = tasks.iter().map(|task| task.mean).sum::<f64>() / count;
    let square: f64 = tasks.iter().map(|task| task.standard_error.powi(2)).sum();
    Estimate { mean, standard_error: square.sqrt() / count, n: tasks.iter().map(|task| task.n).sum() }
}

/// Mean of `a − b`, item by item of the same items.
pub fn paired(a: &[f64], b: &[f64]) -> Estimate {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    Estimate::of(&differences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_error_is_the_sample_deviation_over_the_root_of_n() {
        let estimate = Estimate::of(&[1.0, 0.0, 1.0, 1.0]);
        assert_eq!(estimate.mean, 0.75);
        // lm-evaluation-harness: sqrt(p(1-p)/(n-1)) for zeros and ones.
        assert!((estimate.standard_error - (0.75f64 * 0.25 / 3.0).sqrt()).abs() < 1e-12);
        let (low, high) = estimate.interval();
        assert!(((high - low) / 2.0 - 1.96 * estimate.standard_error).abs() < 1e-12);
    }

    #[test]
    fn macro_mean_counts_tasks_alike_whatever_their_size() {
        let tasks =
            [Estimate { mean: 1.0, standard_error: 0.03, n: 10 }, Estimate { mean: 0.0, standard_error: 0.04, n: 90 }];
        let mean = macro_mean(&tasks);
        assert_eq!((mean.mean, mean.n), (0.5, 100));
        assert!((mean.standard_error - 0.025).abs() < 1e-12);
    }

    #[test]
    fn balanced_accuracy_gives_nothing_for_the_commonest_answer() {
        let score = |label, main| Score { main, second: 0.0, label };
        let always_first = [score(Some(0), 1.0), score(Some(0), 1.0), score(Some(0), 1.0), score(Some(1), 0.0)];
        let estimate = balanced(&always_first).unwrap();
        assert_eq!((estimate.mean, estimate.n), (0.5, 4));
        assert_eq!(balanced(&[score(Some(0), 1.0), score(None, 1.0)]), None);
        assert_eq!(balanced(&[]), None);
    }

    #[test]
    fn paired_difference_of_equal_answers_is_certain() {
        let estimate = paired(&[1.0, 0.0, 1.0], &[1.0, 0.0, 1.0]);
        assert_eq!((estimate.mean, estimate.standard_error), (0.0, 0.0));
    }
}
