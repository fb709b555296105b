use std::fmt::Write;

use serde::Serialize;

use super::{Arm, Estimate, Outcome, Score, balanced, macro_mean, paired};

/// What an evaluation found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was evaluated: models, generator, settings.
    pub settings: serde_json::Value,
    /// Tasks with choices: accuracy, and accuracy by length-normed log-likelihood.
    pub ranked: Section,
    /// Open tasks: exact match, and ROUGE-L.
    pub open: Section,
}

/// The tasks of one metric.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    /// By arm, over all tasks that the arm has.
    pub arms: Vec<ArmSummary>,
    /// Arm `pack` (or else the first) against each other, on the tasks that both have.
    pub differences: Vec<Difference>,
    /// By task.
    pub tasks: Vec<TaskSummary>,
}

/// One arm over all its tasks, each alike.
#[derive(Clone, Debug, Serialize)]
pub struct ArmSummary {
    /// The arm.
    pub arm: Arm,
    /// Tasks.
    pub task_count: usize,
    /// AVE: the mean over tasks; its error is that of other items of the same tasks.
    pub main: Estimate,
    /// The same of the second metric.
    pub second: Estimate,
    /// Balanced accuracy, the mean over the tasks with a label set: what is left of the first metric without the labels'
    /// frequencies.
    pub balanced: Option<Estimate>,
    /// HAR: the harmonic mean over tasks of the first metric.
    pub harmonic: f64,
    /// Tokens in the context that are not the item's.
    pub prompt_tokens: f64,
    /// Milliseconds to compute these once.
    pub prompt_ms: f64,
    /// Milliseconds per item after that.
    pub item_ms: f64,
    /// Milliseconds to make a pack, once per prompt.
    pub pack_ms: f64,
}

/// How much better one arm is than another.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// The one.
    pub arm: Arm,
    /// The other.
    pub than: Arm,
    /// Tasks that both have.
    pub task_count: usize,
    /// Mean over tasks of the paired difference; the error is that of other items of the same tasks.
    pub items: Estimate,
    /// The same mean; the error is that of other tasks.
    pub tasks: Estimate,
}

/// One task.
#[derive(Clone, Debug, Serialize)]
pub struct TaskSummary {
    /// Its name.
    pub task: String,
    /// Per arm: the arm, both metrics, and whose prompt its pack was made of.
    pub arms: Vec<(Arm, Estimate, Estimate, Option<String>)>,
}

impl Report {
    /// Sums up outcomes.
    pub fn of(outcomes: &[Outcome], settings: serde_json::Value) -> Self {
        let section = |ranked| Section::of(&outcomes.iter().filter(|o| o.ranked == ranked).collect::<Vec<_>>());
        Self { settings, ranked: section(true), open: section(false) }
    }

    /// A table for the terminal.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (section, main, second) in [(&self.ranked, "acc", "acc_norm"), (&self.open, "exact", "ROUGE-L")] {
            if !section.tasks.is_empty() {
                section.write_table(&mut text, main, second);
            }
        }
        text
    }
}

fn column(scores: &[Score], f: impl Fn(&Score) -> f64) -> Vec<f64> {
    scores.iter().map(f).collect()
}

impl Section {
    fn of(outcomes: &[&Outcome]) -> Self {
        let mut names: Vec<&str> = Vec::new();
        for outcome in outcomes {
            if !names.contains(&outcome.task.as_str()) {
                names.push(&outcome.task);
            }
        }
        let of_arm = |arm: Arm| outcomes.iter().filter(move |outcome| outcome.arm == arm);
        let present: Vec<Arm> = Arm::ALL.into_iter().filter(|arm| of_arm(*arm).next().is_some()).collect();
        let main = |outcome: &Outcome| column(&outcome.scores, |score| score.main);
        let second = |outcome: &Outcome| column(&outcome.scores, |score| score.second);
        let arms = present.iter().map(|&arm| {
            let mains: Vec<Estimate> = of_arm(arm).map(|outcome| Estimate::of(&main(outcome))).collect();
            let seconds: Vec<Estimate> = of_arm(arm).map(|outcome| Estimate::of(&second(outcome))).collect();
            let balanced_of: Vec<Estimate> = of_arm(arm).filter_map(|outcome| balanced(&outcome.scores)).collect();
            let mean =
                |f: &dyn Fn(&Outcome) -> f64| of_arm(arm).map(|outcome| f(outcome)).sum::<f64>() / mains.len() as f64;
            ArmSummary {
                arm,
                task_count: mains.len(),
                harmonic: mains.len() as f64 / mains.iter().map(|task| 1.0 / task.mean.max(1e-9)).sum::<f64>(),
                main: macro_mean(&mains),
                second: macro_mean(&seconds),
                balanced: (!balanced_of.is_empty()).then(|| macro_mean(&balanced_of)),
                prompt_tokens: mean(&|outcome| outcome.prompt_tokens),
                prompt_ms: 1e3 * mean(&|outcome| outcome.prompt_seconds),
                item_ms: 1e3 * mean(&|outcome| outcome.item_seconds),
                pack_ms: 1e3 * mean(&|outcome| outcome.pack_seconds),
            }
        });
        let reference = if present.contains(&Arm::Pack) { Some(Arm::Pack) } else { present.first().copied() };
        let differences = present.iter().filter(|arm| Some(**arm) != reference).filter_map(|&than| {
            let arm = reference?;
            let pairs: Vec<Estimate> = of_arm(than)
                .filter_map(|other| {
                    let own = of_arm(arm).find(|own| own.task == other.task)?;
                    Some(paired(&main(own), &main(other)))
                })
                .collect();
            let means: Vec<f64> = pairs.iter().map(|pair| pair.mean).collect();
            let (items, tasks) = (macro_mean(&pairs), Estimate::of(&means));
            Some(Difference { arm, than, task_count: pairs.len(), items, tasks })
        });
        let tasks = names.iter().map(|name| TaskSummary {
            task: (*name).to_owned(),
            arms: outcomes
                .iter()
                .filter(|outcome| outcome.task == *name)
                .map(|outcome| {
                    let (main, second) = (Estimate::of(&main(outcome)), Estimate::of(&second(outcome)));
                    (outcome.arm, main, second, outcome.pack_of.clone())
                })
                .collect(),
        });
        Self { arms: arms.collect(), differences: differences.collect(), tasks: tasks.collect() }
    }

    fn write_table(&self, text: &mut String, main: &str, second: &str) {
        let percent =
            |estimate: &Estimate| format!("{:5.1} ±{:4.1}", 100.0 * estimate.mean, 196.0 * estimate.standard_error);
        let name = "arm";
        let _ = writeln!(
            text,
            "{name:<17} {:>5} {:>6} {main:>11} {second:>11} {:>11} {:>6} {:>8} {:>10} {:>8} {:>8}",
            "tasks", "items", "balanced", "HAR", "tokens", "prompt ms", "item ms", "pack ms"
        );
        for arm in &self.arms {
            let _ = writeln!(
                text,
                "{:<17} {:>5} {:>6} {:>11} {:>11} {:>11} {:>6.1} {:>8.0} {:>10.0} {:>8.0} {:>8.0}",
                arm.arm.name(),
                arm.task_count,
                arm.main.n,
                percent(&arm.main),
                percent(&arm.second),
                arm.balanced.as_ref().map_or_else(|| "–".to_owned(), percent),
                100.0 * arm.harmonic,
                arm.prompt_tokens,
                arm.prompt_ms,
                arm.item_ms,
                arm.pack_ms
            );
        }
        let _ = writeln!(text, "\ndifference (95% for other items; for other tasks)");
        for difference in &self.differences {
            let _ = writeln!(
                text,
                "{:>17} {:>+5.1} ±{:.1} ±{:.1}  on {} tasks",
                format!("{} − {}", difference.arm.name(), difference.than.name()),
                100.0 * difference.items.mean,
                196.0 * difference.items.standard_error,
                196.0 * difference.tasks.standard_error,
                difference.task_count
            );
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(task: &str, arm: Arm, hits: &[u8]) -> Outcome {
        let score = |&hit: &u8| Score { main: f64::from(hit), second: 0.0, label: None };
        Outcome {
            task: task.into(),
            arm,
            ranked: true,
            scores: hits.iter().map(score).collect(),
            prompt_tokens: 0.0,
            prompt_seconds: 0.0,
            item_seconds: 0.0,
            pack_seconds: 0.0,
            pack_of: None,
        }
    }

    #[test]
    fn arms_are_compared_item_by_item_on_the_tasks_that_both_have() {
        let outcomes = [
            outcome("t1", Arm::Prompt, &[1, 0, 0, 0]),
            outcome("t1", Arm::Pack, &[1, 1, 1, 0]),
            outcome("t2", Arm::Prompt, &[0, 1]),
            outcome("t2", Arm::Pack, &[0, 1]),
            outcome("t3", Arm::Pack, &[1, 1]),
        ];
        let report = Report::of(&outcomes, serde_json::Value::Null);
        let pack = report.ranked.arms.iter().find(|arm| arm.arm == Arm::Pack).unwrap();
        assert!((pack.main.mean - (0.75 + 0.5 + 1.0) / 3.0).abs() < 1e-12);
        assert!((pack.harmonic - 3.0 / (1.0 / 0.75 + 2.0 + 1.0)).abs() < 1e-9);
        let [difference] = report.ranked.differences.as_slice() else { panic!("one other arm") };
        assert_eq!((difference.arm, difference.than, difference.task_count), (Arm::Pack, Arm::Prompt, 2));
        assert!((difference.items.mean - 0.25).abs() < 1e-12);
        assert!(difference.tasks.standard_error > difference.items.standard_error);
        assert!(report.table().contains("pack − prompt"), "{}", report.table());
    }
}
