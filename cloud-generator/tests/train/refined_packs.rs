//! Packs that an evaluation refines on items that it does not score.

use std::path::Path;

use edgeweld::CancelToken;
use edgeweld_cloud::data::{Item, Task};
use edgeweld_cloud::edge_model::EdgeModel;
use edgeweld_cloud::eval::{
    Arm, EvalOptions, EvalProgress, Evaluation, Format, PackSources, Packs, RefineSource, evaluate, select,
};
use edgeweld_cloud::refine::RefineOptions;
use edgeweld_cloud::{Error, Result};

use super::model;

const EVALUATED: usize = 5;
const REST: usize = 21;

/// A task whose first item alone has the second label.
fn task(name: &str, [usual, other]: [&str; 2]) -> Task {
    let item = |index: usize| Item {
        input: "the red cat sat on my old hat".chars().cycle().skip(index).take(8).collect(),
        outputs: vec![if index == 0 { other } else { usual }.into()],
        choices: Vec::new(),
        question: None,
    };
    Task {
        name: name.into(),
        definition: format!("say {usual}"),
        wordings: Vec::new(),
        examples: Vec::new(),
        items: (0..EVALUATED + REST).map(item).collect(),
    }
}

/// The outcomes, and how often a refinement was heard of.
fn run(folder: &Path, example_count: usize) -> Result<(Evaluation, usize)> {
    let path = model(folder);
    let refine = RefineOptions {
        rank: 4,
        alpha: 8.0,
        step_count: 60,
        batch_tokens: 64,
        learning_rate: 2e-2,
        eval_steps: 10,
        ..RefineOptions::default()
    };
    let packs = folder.join("packs");
    let refine = RefineSource { example_count, options: &refine, folder: &packs };
    let packs = Packs::load(&path, PackSources { refine: Some(refine), ..PackSources::default() })?;
    let edge = EdgeModel::load(&path, Some(1))?;
    let tasks = [task("of/t", ["no", "yes"]), task("u", ["up", "down"])];
    let tasks = select(tasks.to_vec(), EVALUATED, 4, false);
    let arms = vec![Arm::None, Arm::Pack, Arm::PackMismatched];
    let options = EvalOptions { arms, shots: 0, pack_examples: 0, format: Format::Chat, answer_tokens_max: 4 };
    let mut heard = 0;
    let evaluation = evaluate(&edge, &packs, &tasks, &options, Vec::new(), &CancelToken::new(), &mut |progress| {
        heard += usize::from(matches!(progress, EvalProgress::Refining { .. }));
        Ok(())
    })?;
    Ok((evaluation, heard))
}

#[test]
fn packs_learn_the_items_that_are_not_evaluated_and_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (first, heard) = run(folder.path(), REST).unwrap();
    assert!(heard > 2 * 60, "a step each at least: {heard}");
    for outcome in first.iter().filter(|outcome| outcome.arm == Arm::Pack) {
        let right: Vec<f64> = outcome.scores.iter().map(|score| score.main).collect();
        assert_eq!(right, [0.0, 1.0, 1.0, 1.0, 1.0], "the usual label of {}, and no evaluated item's", outcome.task);
    }
    assert!(folder.path().join("packs/of-t.pack").exists() && folder.path().join("packs/u.pack").exists());

    let (again, heard) = run(folder.path(), REST).unwrap();
    assert_eq!(heard, 0, "packs that were kept are not refined again");
    assert!(first.iter().zip(&again).all(|(first, again)| first.scores == again.scores));
}

#[test]
fn rejects_more_examples_than_there_are_and_too_few() {
    let folder = tempfile::tempdir().unwrap();
    for count in [REST + 1, 1] {
        let refused = run(folder.path(), count);
        let invalid = |error: &Error| matches!(error, Error::InvalidOption { option: "--refine-examples", .. });
        assert!(refused.is_err_and(|error| invalid(&error)), "{count}");
    }
}
