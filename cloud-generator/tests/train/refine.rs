//! Refinement, from a teacher with the prompt and from given answers.

use std::path::Path;

use candle_core::Device;
use edgeweld::CancelToken;
use edgeweld::chat::Message;
use edgeweld_cloud::edge_model::EdgeModel;
use edgeweld_cloud::generator::LanguageModel;
use edgeweld_cloud::refine::{Progress, Query, RefineOptions, Refined, Split, refine};
use edgeweld_cloud::{Error, Result};

use super::model;

struct Case {
    edge: EdgeModel,
    grad: LanguageModel,
    queries: Vec<(Query, Split)>,
    options: RefineOptions,
}

impl Case {
    fn new(folder: &Path, answer: impl Fn(usize) -> Option<String>) -> Self {
        let path = model(folder);
        let query = |index: usize| {
            let split = [Split::Train, Split::Train, Split::Train, Split::Dev, Split::Test][index % 5];
            let query = ["the red cat", "a dog ran", "old hats", "my car sat"][index % 4].chars().cycle();
            (Query { query: query.skip(index % 3).take(8).collect(), answer: answer(index), split: Some(split) }, split)
        };
        Self {
            edge: EdgeModel::load(&path, Some(1)).unwrap(),
            grad: LanguageModel::load(&path, &Device::Cpu).unwrap(),
            queries: (0..30).map(query).collect(),
            options: RefineOptions {
                rank: 4,
                alpha: 8.0,
                step_count: 60,
                batch_tokens: 64,
                learning_rate: 2e-2,
                answer_tokens_max: 4,
                eval_steps: 10,
                ..RefineOptions::default()
            },
        }
    }

    fn run(&self, folder: &Path, cancel: &CancelToken, listener: &mut dyn FnMut(Progress)) -> Result<Refined> {
        let context = [Message::system("say no.")];
        let folder = folder.join("task.refine");
        refine(&self.edge, &self.grad, &context, &self.queries, None, &self.options, folder, cancel, listener)
    }
}

#[test]
fn learns_the_prompted_models_answers() {
    let folder = tempfile::tempdir().unwrap();
    let refined = Case::new(folder.path(), |_| None).run(folder.path(), &CancelToken::new(), &mut |_| {}).unwrap();
    let (base, specialized) = (refined.base, refined.specialized);
    assert_eq!(base.query_count, 6);
    assert!(specialized.divergence < 0.5 * base.divergence, "{} of {}", specialized.divergence, base.divergence);
    // The teacher is the prompted model itself.
    assert!(refined.prompted.divergence < 1e-3 && refined.prompted.greedy == 1.0, "{:?}", refined.prompted);
    assert!(!folder.path().join("task.refine").exists());
}

#[test]
fn learns_given_answers_that_the_prompted_model_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    let case = Case::new(folder.path(), |_| Some("yes".into()));
    let refined = case.run(folder.path(), &CancelToken::new(), &mut |progress| {
        assert!(!matches!(progress, Progress::Teaching { .. }), "no teacher runs");
    });
    let refined = refined.unwrap();
    assert_eq!((refined.base.greedy, refined.prompted.greedy), (0.0, 0.0));
    assert_eq!(refined.specialized.greedy, 1.0, "{:?}", refined.specialized);
    assert!(refined.specialized.divergence < 0.2, "{:?}", refined.specialized);
}

#[test]
fn an_interrupted_run_ends_as_an_uninterrupted_one() {
    let whole = tempfile::tempdir().unwrap();
    let case = Case::new(whole.path(), |index| Some(["yes", "no"][index % 2].into()));
    let expected = case.run(whole.path(), &CancelToken::new(), &mut |_| {}).unwrap();
    let parts = tempfile::tempdir().unwrap();
    let cancel = CancelToken::new();
    let stopped = case.run(parts.path(), &cancel.clone(), &mut |progress| {
        if matches!(progress, Progress::Step { step: 25, .. }) {
            cancel.cancel();
        }
    });
    assert!(matches!(stopped, Err(Error::Edge(edgeweld::Error::Cancelled))));
    let mut resumed_at = None;
    let resumed = case.run(parts.path(), &CancelToken::new(), &mut |progress| {
        if let Progress::Resumed { step } = progress {
            resumed_at = Some(step);
        }
    });
    assert_eq!(resumed_at, Some(25));
    let resumed = resumed.unwrap();
    assert_eq!((resumed.step_count, resumed.best_step), (expected.step_count, expected.best_step));
    for (resumed, expected) in resumed.lora.layers.iter().zip(&expected.lora.layers) {
        assert_eq!(resumed.gate.as_ref().unwrap().b, expected.gate.as_ref().unwrap().b);
    }
}

#[test]
fn sampling_makes_no_sense_beside_given_answers() {
    let folder = tempfile::tempdir().unwrap();
    let mut case = Case::new(folder.path(), |_| Some("yes".into()));
    case.options.sampled_answers = 2;
    let refused = case.run(folder.path(), &CancelToken::new(), &mut |_| {});
    assert!(matches!(refused, Err(Error::InvalidOption { option: "--queries", .. })));
    case.options.sampled_answers = 0;
    case.queries[3].0.answer = None;
    let refused = case.run(folder.path(), &CancelToken::new(), &mut |_| {});
    assert!(matches!(refused, Err(Error::InvalidOption { option: "--queries", .. })));
}
