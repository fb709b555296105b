//! Training and evaluation on a tiny model (the Llama of `core/tests/fixtures/tiny`, with a tokenizer of letters).

mod refine;
mod refined_packs;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use edgeweld::CancelToken;
use edgeweld::gguf::{GgufFile, GgufWriter, Value};
use edgeweld::lora::LoraSet;
use edgeweld_cloud::data::{Item, Question, Task};
use edgeweld_cloud::edge_model::EdgeModel;
use edgeweld_cloud::eval::{
    Arm, EvalOptions, EvalTask, Format, PackSources, Packs, Report, Request, TokenRouted, evaluate, log_likelihoods,
    lorahub, select,
};
use edgeweld_cloud::generator::{Generator, GeneratorConfig, LanguageModel, Reading, Routing};
use edgeweld_cloud::method::Composition;
use edgeweld_cloud::train::{Input, Sample, Sampler, Schedule, Step, StepReport, TrainConfig, Trainer};
use edgeweld_cloud::{Error, Result};

const TEMPLATE: &str = "{% for message in messages %}{{ message.content }}\n{% endfor %}";

/// Writes the tiny model with a tokenizer of lower-case letters, blank, line break and a few marks.
fn model(folder: &Path) -> PathBuf {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/fixtures/tiny/llama-tied.gguf");
    let file = GgufFile::open(&tiny).unwrap();
    let letters = ('a'..='z').map(String::from).chain(["Ġ", "Ċ", ".", ",", "?", "<end>"].map(String::from));
    let mut kinds = vec![1; 32];
    kinds[31] = 3;
    let mut writer = GgufWriter::new();
    writer.copy_metadata(&file, &[]).unwrap();
    for (key, value) in [
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.pre", Value::String("smollm".into())),
        ("tokenizer.ggml.tokens", Value::Strings(letters.collect())),
        ("tokenizer.ggml.token_type", Value::I32s(kinds)),
        ("tokenizer.ggml.merges", Value::Strings(Vec::new())),
        ("tokenizer.ggml.eos_token_id", Value::U32(31)),
        ("tokenizer.chat_template", Value::String(TEMPLATE.into())),
    ] {
        writer.metadata(key, &value).unwrap();
    }
    for tensor in file.tensors() {
        let shape: Vec<u32> = tensor.shape().to_vec();
        writer.tensor(tensor.name(), tensor.block_type(), &shape, tensor.weight_bytes()).unwrap();
    }
    let path = folder.join("tiny.gguf");
    writer.save(&path, &CancelToken::new()).unwrap();
    path
}

fn task(name: &str, definition: &str, labels: [&str; 2]) -> Task {
    let item = |index: usize| Item {
        input: ["the cat ran", "a dog sat", "one red hat", "my old car"][index % 4]
            .chars()
            .cycle()
            .skip(index)
            .take(9)
            .collect(),
        outputs: vec![labels[index % 2].into()],
        choices: Vec::new(),
        question: None,
    };
    let (name, definition) = (name.into(), definition.into());
    Task { name, definition, wordings: Vec::new(), examples: Vec::new(), items: (0..12).map(item).collect() }
}

fn tasks() -> Vec<Task> {
    vec![task("t", "say yes or no", ["yes", "no"]), task("u", "is it up or down", ["up", "down"])]
}

fn config(generator: GeneratorConfig) -> TrainConfig {
    TrainConfig {
        step_count: 4,
        prompts_per_pass: 2,
        items_per_prompt: 2,
        examples_max: 0,
        learning_rate: 1e-2,
        pool_learning_rate: 1e-2,
        warmup_steps: 1,
        schedule: Schedule::Constant,
        weight_average: 0.5,
        choice_weight: 0.5,
        dropout: 0.1,
        instruction_share: 0.0,
        baseline: Some(blind(generator.first_layer)),
        generator,
        ..TrainConfig::default()
    }
}

/// Everything beyond the paper at once.
fn extended() -> GeneratorConfig {
    GeneratorConfig {
        expert_count: 3,
        top_k: 2,
        shared_expert: true,
        rank: 2,
        composition: Composition::ProductSum,
        routing: Routing::Gumbel,
        reading: Reading::Pooled,
        first_layer: 1,
        router_hidden_size: 8,
        cloud_rank: 0,
        ..GeneratorConfig::default()
    }
}

fn paper() -> GeneratorConfig {
    GeneratorConfig {
        expert_count: 3,
        top_k: 2,
        rank: 2,
        router_hidden_size: 8,
        cloud_rank: 2,
        ..GeneratorConfig::default()
    }
}

/// Plain multi-task LoRA.
fn blind(first_layer: usize) -> GeneratorConfig {
    GeneratorConfig {
        expert_count: 0,
        top_k: 0,
        shared_expert: true,
        rank: 2,
        reading: Reading::None,
        first_layer,
        cloud_rank: 0,
        ..GeneratorConfig::default()
    }
}

/// Two experts per layer that each token chooses from; with `top_k` 2 LoRAMoE, with 1 MixLoRA.
fn by_token(first_layer: usize, top_k: usize) -> GeneratorConfig {
    let reading = Reading::Token;
    GeneratorConfig { expert_count: 2, top_k, shared_expert: false, reading, ..blind(first_layer) }
}

/// The weights straight from the meta tokens.
fn direct() -> GeneratorConfig {
    GeneratorConfig { expert_count: 4, top_k: 4, routing: Routing::Direct, ..paper() }
}

fn trainer(model: &Path, config: TrainConfig) -> Result<Trainer> {
    let load = || LanguageModel::load(model, &Device::Cpu).unwrap();
    let sampler = Sampler::new(tasks(), &config, |_| true);
    Trainer::new(config, load(), load(), sampler, &Device::Cpu)
}

/// The pass of `tests/fixtures/make_torch_gradients.py`.
fn torch_pass() -> Vec<Step> {
    let step = |prompt: &str, choices: [&str; 2], items: [(&str, &str); 2]| Step {
        prompt: prompt.into(),
        recurs: true,
        samples: items
            .map(|(input, answer)| Sample {
                input: Input::Turn(input.into()),
                answer: answer.into(),
                choices: choices.map(String::from).into(),
            })
            .into(),
    };
    vec![
        step("say yes or no", ["yes", "no"], [("the cat ran", "yes"), ("a dog sat", "no")]),
        step("is it up or down", ["up", "down"], [("one red hat", "down"), ("my old car", "up")]),
    ]
}

#[test]
fn gradients_of_every_trained_tensor_agree_with_pytorch() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let product_sum =
        GeneratorConfig { shared_expert: true, composition: Composition::ProductSum, cloud_rank: 0, ..paper() };
    for (name, generator) in [("average", paper()), ("product-sum", product_sum)] {
        let path = format!("{}/tests/fixtures/torch-gradients-{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let fixture = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let config = TrainConfig { dropout: 0.0, load_balance: 0.3, baseline: None, ..config(generator) };
        let mut trainer = trainer(&model, config).unwrap();
        let trained: Vec<String> =
            trainer.learners[0].generator.parameters.trained().map(|(name, _)| name.to_owned()).collect();
        for name in &trained {
            let value = &fixture[&format!("parameter.{name}")];
            trainer.learners[0].generator.parameters.var(name).set(value).unwrap();
        }
        let mut report = StepReport { learners: vec![Default::default()], ..Default::default() };
        trainer.learn(&torch_pass(), 0, &mut report, &CancelToken::new()).unwrap();
        let gradients = trainer.learners[0].gradients();
        assert_eq!(gradients.len(), trained.len(), "{name}");
        for (parameter, gradient) in gradients {
            let expected = &fixture[&format!("gradient.{parameter}")];
            let largest = |tensor: &Tensor| {
                tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
            };
            let difference = largest(&gradient.sub(expected).unwrap());
            // The bias before a batch norm has no effect: its gradient is zero but for rounding.
            let scale = if parameter == "router.f2.bias" { 1.0 } else { largest(expected) };
            assert!(scale > 0.05, "{name} {parameter}: nothing to compare");
            assert!(difference < 1e-4 * scale, "{name} {parameter}: differs by {difference} of {scale}");
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences_where_weights_are_generated_directly_or_tokens_choose() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    for generator in [direct(), by_token(0, 2)] {
        let config = TrainConfig { dropout: 0.0, load_balance: 0.3, baseline: None, ..config(generator) };
        let mut trainer = trainer(&model, config).unwrap();
        // b is no longer zero after some steps.
        steps(&mut trainer, 5);
        let loss = |trainer: &mut Trainer| {
            let mut report = StepReport { learners: vec![Default::default()], ..Default::default() };
            trainer.learn(&torch_pass(), 0, &mut report, &CancelToken::new()).unwrap();
            let learner = report.learners[0];
            learner.loss + 0.5 * learner.choice_loss + 0.3 * learner.load_balance
        };
        trainer.learners[0].forget();
        loss(&mut trainer);
        let gradients = trainer.learners[0].gradients().clone();
        assert_eq!(gradients.len(), trainer.learners[0].generator.parameters.trained().count());
        for (name, gradient) in gradients {
            let norm = gradient.sqr().unwrap().sum_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
            if name == "router.f2.bias" {
                // The bias before a batch norm has no effect.
                assert!(norm < 1e-4, "{norm}");
                continue;
            }
            assert!(norm > 1e-3, "{name}: nothing to compare");
            let value = trainer.learners[0].generator.parameters.tensor(&name).copy().unwrap();
            let step = 3e-3;
            let mut at = |side: f64| {
                let moved = (gradient.affine(side * step / f64::from(norm), 0.0).unwrap() + &value).unwrap();
                trainer.learners[0].generator.parameters.var(&name).set(&moved).unwrap();
                loss(&mut trainer)
            };
            let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
            trainer.learners[0].generator.parameters.var(&name).set(&value).unwrap();
            let error = (slope / f64::from(norm) - 1.0).abs();
            assert!(error < 0.02, "{name}: slope {slope}, gradient {norm}");
        }
    }
}

#[test]
fn a_multiple_choice_item_is_learnt_as_the_harness_asks_it() {
    let question = Some(Question { context: None, text: "what is red".into() });
    let choices = vec!["a hat".into(), "the sea".into()];
    let item =
        Item { input: "what is red\n- a hat\n- the sea".into(), outputs: vec!["a hat".into()], choices, question };
    let task = Task { name: "arc_easy".into(), items: vec![item; 2], ..tasks().remove(0) };
    let config = TrainConfig { harness_share: 1.0, ..config(extended()) };
    let steps = Sampler::new(vec![task], &config, |_| true).pass(&config, 0);
    let sample = &steps[0].samples[0];
    assert!(matches!(&sample.input, Input::Text(text) if text == "Question: what is red\nAnswer:"));
    assert_eq!(
        (sample.answer.as_str(), sample.choices.as_slice()),
        (" a hat", &[" a hat".into(), " the sea".into()][..])
    );
}

#[test]
fn a_prompt_in_context_stands_before_every_turn_and_is_not_cut() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let tokens = |prompt_in_context: bool, item_tokens_max: usize| {
        let config = TrainConfig { prompt_in_context, item_tokens_max, baseline: None, ..config(blind(0)) };
        let mut trainer = trainer(&model, config).unwrap();
        let mut report = StepReport { learners: vec![Default::default()], ..Default::default() };
        trainer.learn(&torch_pass(), 0, &mut report, &CancelToken::new()).unwrap();
        report.tokens
    };
    // Each prompt stands before two items, with two line breaks behind it; a letter is a token.
    let prompts = 2 * ("say yes or no".len() + 2) + 2 * ("is it up or down".len() + 2);
    assert_eq!(tokens(true, 2048), tokens(false, 2048) + prompts);
    assert!(tokens(false, 10) < tokens(false, 2048));
    assert_eq!(tokens(true, 10), tokens(false, 10) + prompts);
}

fn weights(trainer: &Trainer) -> Vec<(String, Vec<f32>)> {
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let of = |learner: &edgeweld_cloud::train::Learner| {
        let parameters =
            learner.generator.parameters.iter().map(|(name, var)| (name.to_owned(), values(var.as_tensor())));
        let average = learner.average.iter().map(|(name, tensor)| (format!("average {name}"), values(tensor)));
        parameters.chain(average).collect::<Vec<_>>()
    };
    trainer.learners.iter().flat_map(of).collect()
}

fn steps(trainer: &mut Trainer, count: usize) {
    for _ in 0..count {
        trainer.advance(&CancelToken::new()).unwrap();
    }
}

#[test]
fn a_resumed_run_continues_bit_for_bit() {
    for generator in [extended(), paper(), direct(), by_token(0, 1)] {
        let folder = tempfile::tempdir().unwrap();
        let model = model(folder.path());
        let mut whole = trainer(&model, config(generator.clone())).unwrap();
        whole.fit_reading(&CancelToken::new()).unwrap();
        steps(&mut whole, 4);

        let mut first = trainer(&model, config(generator.clone())).unwrap();
        first.fit_reading(&CancelToken::new()).unwrap();
        steps(&mut first, 2);
        first.save(folder.path()).unwrap();
        drop(first);
        let mut second = trainer(&model, config(generator.clone())).unwrap();
        second.resume(folder.path()).unwrap();
        assert_eq!(second.step, 2);
        steps(&mut second, 2);
        assert_eq!(weights(&whole), weights(&second), "{generator:?}");
    }
}

#[test]
fn training_lowers_the_loss_of_generator_and_baseline() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    for (generator, baseline) in [(extended(), blind(1)), (direct(), by_token(0, 2)), (extended(), by_token(1, 1))] {
        let baseline = Some(baseline);
        let config = TrainConfig { dropout: 0.0, prompts_per_pass: 4, baseline, ..config(generator) };
        let mut trainer = trainer(&model, config).unwrap();
        trainer.fit_reading(&CancelToken::new()).unwrap();
        let first = trainer.advance(&CancelToken::new()).unwrap();
        steps(&mut trainer, 40);
        let last = trainer.advance(&CancelToken::new()).unwrap();
        for (first, last) in first.learners.iter().zip(&last.learners) {
            assert!(last.loss < 0.7 * first.loss, "{} -> {}", first.loss, last.loss);
            assert!(first.choice_loss > 0.0 && last.choice_loss < first.choice_loss);
        }
    }
}

#[test]
fn an_interrupted_step_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(&model(folder.path()), config(extended())).unwrap();
    steps(&mut trainer, 1);
    let before = weights(&trainer);
    let cancel = CancelToken::new();
    cancel.cancel();
    let error = trainer.advance(&cancel).unwrap_err();
    assert!(matches!(error, Error::Edge(edgeweld::Error::Cancelled)), "{error}");
    assert_eq!((trainer.step, weights(&trainer)), (1, before));
}

#[test]
fn rejects_configurations_by_the_name_of_the_option() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let generator = |change: fn(&mut GeneratorConfig)| {
        let mut generator = extended();
        change(&mut generator);
        let baseline = None;
        TrainConfig { baseline, ..config(generator) }
    };
    let run = |change: fn(&mut TrainConfig)| {
        let mut config = config(extended());
        change(&mut config);
        config
    };
    for (option, config) in [
        ("first_layer", generator(|g| g.first_layer = 2)),
        ("top_k", generator(|g| g.top_k = 4)),
        ("top_k", generator(|g| g.top_k = 0)),
        ("expert_count", generator(|g| (g.expert_count, g.top_k, g.shared_expert) = (0, 0, false))),
        ("reading", generator(|g| (g.expert_count, g.top_k) = (0, 0))),
        ("cloud_rank", generator(|g| g.cloud_rank = 2)),
        ("rank", generator(|g| g.rank = 0)),
        ("top_k", generator(|g| g.routing = Routing::Direct)),
        ("shared_expert", generator(|g| g.reading = Reading::Token)),
        ("routing", generator(|g| (g.reading, g.shared_expert) = (Reading::Token, false))),
        ("baseline", run(|c| c.baseline.as_mut().unwrap().first_layer = 0)),
        ("step_count", run(|c| c.step_count = 0)),
        ("items_per_prompt", run(|c| c.items_per_prompt = 0)),
        ("weight_average", run(|c| c.weight_average = 1.0)),
        ("dropout", run(|c| c.dropout = 1.0)),
        ("label_share", run(|c| c.label_share = Some(1.5))),
        ("harness_share", run(|c| c.harness_share = -0.5)),
    ] {
        match trainer(&model, config).err() {
            Some(Error::InvalidOption { option: actual, .. }) => assert_eq!(actual, option),
            other => panic!("{option}: {other:?}"),
        }
    }
    assert!(toml::from_str::<TrainConfig>("expert_cuont = 3").is_err(), "a misspelt option is not ignored");
}

#[test]
fn a_checkpoint_of_another_generator_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    trainer(&model, config(extended())).unwrap().save(folder.path()).unwrap();
    let mut other = trainer(&model, config(GeneratorConfig { top_k: 1, ..extended() })).unwrap();
    assert!(matches!(other.resume(folder.path()), Err(Error::InvalidFile { .. })));
}

#[test]
fn gates_are_zero_below_the_first_layer_and_one_for_the_shared_expert() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = LanguageModel::load(&model(folder.path()), &Device::Cpu).unwrap();
    let config = &cloud.decoder.config;
    let generator = Generator::new(extended(), config, config, 1, &Device::Cpu).unwrap();
    let ids = vec![cloud.encode("say yes").unwrap(), cloud.encode("up or down").unwrap()];
    let gates = generator.gates(&generator.meta(&cloud, &ids, &CancelToken::new()).unwrap()).unwrap();
    for prompt in 0..2 {
        let weights = gates.of_prompt(prompt).unwrap().weights;
        assert_eq!(weights.dim(), (2, 3 + 1), "two layers; three routed experts and one shared");
        assert!(weights.row(0).iter().all(|gate| *gate == 0.0));
        assert_eq!(weights[[1, 3]], 1.0);
        assert!((weights.row(1).iter().take(3).sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(weights.row(1).iter().filter(|gate| **gate > 0.0).count(), 2 + 1);
    }
}

/// The folder of `generator` after some steps.
fn saved(model: &Path, folder: &Path, generator: GeneratorConfig) -> PathBuf {
    let mut trainer = trainer(model, TrainConfig { baseline: None, ..config(generator) }).unwrap();
    steps(&mut trainer, 4);
    trainer.save_generator(folder).unwrap();
    folder.join("generator")
}

fn evaluated(model: &Path, folder: &Path) -> (EdgeModel, Packs, Vec<EvalTask>, EvalOptions) {
    let mut trainer = trainer(model, config(extended())).unwrap();
    trainer.fit_reading(&CancelToken::new()).unwrap();
    steps(&mut trainer, 4);
    trainer.save_generator(folder).unwrap();
    let edge = EdgeModel::load(model, Some(1)).unwrap();
    let (generator, baseline) = (folder.join("generator"), folder.join("baseline"));
    let by_token_folder = saved(model, &folder.join("by-token"), by_token(1, 1));
    let sources = PackSources {
        generator: Some((&generator, model)),
        lora: Some(&baseline),
        lora_prompt: Some(&baseline),
        token_routed: Some(&by_token_folder),
        refine: None,
    };
    let packs = Packs::load(model, sources).unwrap();
    let tasks = select(tasks(), 5, 4, false);
    let options =
        EvalOptions { arms: Arm::ALL.to_vec(), shots: 2, pack_examples: 0, format: Format::Chat, answer_tokens_max: 4 };
    (edge, packs, tasks, options)
}

#[test]
fn evaluation_runs_every_arm_on_the_same_items_and_continues_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let (edge, packs, tasks, options) = evaluated(&model, folder.path());
    let mut runs = 0;
    let all = evaluate(&edge, &packs, &tasks, &options, Vec::new(), &CancelToken::new(), &mut |_| {
        runs += 1;
        Ok(())
    })
    .unwrap();
    // No other task has the labels of either, and neither has examples that LoraHub could fit.
    assert_eq!((runs, all.len()), (16, 16));
    assert!(all.iter().all(|outcome| outcome.scores.len() == 5 && outcome.ranked));
    let of = |task: &str, arm: Arm| all.iter().find(|outcome| outcome.task == task && outcome.arm == arm).unwrap();
    assert_eq!(of("t", Arm::Pack).pack_of.as_deref(), Some("t"));
    assert_eq!(of("t", Arm::PackMismatched).pack_of.as_deref(), Some("u"));
    assert_eq!(of("t", Arm::None).prompt_tokens, 0.0);
    for arm in [Arm::Prompt, Arm::LoraPrompt] {
        assert_eq!(of("t", arm).prompt_tokens, "say yes or no\n".len() as f64, "a letter is a token");
    }

    let again = evaluate(&edge, &packs, &tasks, &options, all[..8].to_vec(), &CancelToken::new(), &mut |_| {
        runs += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(runs, 16 + 8, "what was done is not run again");
    let scores = |outcomes: &[edgeweld_cloud::eval::Outcome]| {
        outcomes.iter().map(|outcome| (outcome.task.clone(), outcome.arm, outcome.scores.clone())).collect::<Vec<_>>()
    };
    assert_eq!(scores(&all), scores(&again));
    let report = Report::of(&all, serde_json::Value::Null);
    assert!(edgeweld_cloud::eval::html(&report).contains("pack-mismatched"));
}

#[test]
fn the_likeliest_choice_is_that_of_a_forward_pass_over_context_and_answer() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let (edge, packs, tasks, options) = evaluated(&model, folder.path());
    let options = EvalOptions { arms: vec![Arm::None], ..options };
    let all = evaluate(&edge, &packs, &tasks, &options, Vec::new(), &CancelToken::new(), &mut |_| Ok(())).unwrap();
    let vocab_size = edge.decoder.config.vocab_size;
    for (task, outcome) in tasks.iter().zip(&all) {
        for (item, score) in task.task.items.iter().zip(&outcome.scores) {
            let requests = Format::Chat.requests(&edge, "t", None, item, &task.labels).unwrap();
            let likelihood = |request: &edgeweld_cloud::eval::Request| -> f64 {
                let mut reader = edge.reader(64, None).unwrap();
                let logits = reader.predictions(&request.ids, 1, &CancelToken::new()).unwrap();
                let rows = logits.chunks(vocab_size).zip(&request.ids[1..]).skip(request.first - 1);
                let log_p = |(row, &id): (&[f32], &u32)| {
                    let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
                    f64::from(row[id as usize]) - sum.ln()
                };
                rows.map(log_p).sum()
            };
            let values: Vec<f64> = requests.iter().map(likelihood).collect();
            let right = task.labels.iter().position(|label| *label == item.outputs[0]).unwrap();
            assert_eq!(score.main == 1.0, values[right] > values[1 - right], "{values:?}");
        }
    }
}

#[test]
fn an_arm_refuses_a_generator_that_has_no_place_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let reader = saved(&model, &folder.path().join("reader"), extended());
    let by_token = saved(&model, &folder.path().join("by-token"), by_token(1, 1));
    let refusal = |sources: PackSources| Packs::load(&model, sources).err().map(|error| error.to_string()).unwrap();
    for (sources, reason) in [
        (PackSources { lora: Some(&reader), ..PackSources::default() }, "it is no baseline"),
        (PackSources { lora: Some(&by_token), ..PackSources::default() }, "its arm is lora-tokens"),
        (PackSources { generator: Some((&by_token, &model)), ..PackSources::default() }, "no LoRA to make packs of"),
        (PackSources { token_routed: Some(&reader), ..PackSources::default() }, "not token-routed"),
    ] {
        let text = refusal(sources);
        assert!(text.contains(reason), "{text}");
    }
}

#[test]
fn a_single_expert_chosen_by_every_token_answers_as_the_same_lora_on_the_edge_runtime() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let single = GeneratorConfig { expert_count: 1, ..by_token(1, 1) };
    let mut trainer = trainer(&model, TrainConfig { weight_average: 0.0, ..config(single) }).unwrap();
    steps(&mut trainer, 20);
    let pools = |learner: usize| {
        let parameters = &trainer.learners[learner].generator.parameters;
        parameters.trained().filter(|(name, _)| name.starts_with("pool.")).collect::<Vec<_>>()
    };
    for ((name, var), (_, routed)) in pools(1).into_iter().zip(pools(0)) {
        var.set(&routed.as_tensor().copy().unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    trainer.save_generator(folder.path()).unwrap();

    let language_model = || LanguageModel::load(&model, &Device::Cpu).unwrap();
    let routed = TokenRouted::load(&folder.path().join("generator"), language_model()).unwrap();
    let edge = EdgeModel::load(&model, Some(1)).unwrap();
    let sources = PackSources { lora: Some(&folder.path().join("baseline")), ..PackSources::default() };
    let packs = Packs::load(&model, sources).unwrap();
    let tasks = select(tasks(), 5, 4, false);
    let mut largest_effect = 0f64;
    for item in &tasks[0].task.items {
        let requests = Format::Chat.requests(&edge, "t", None, item, &tasks[0].labels).unwrap();
        let by_token = routed.log_likelihoods(&requests, &CancelToken::new()).unwrap();
        let on_the_edge = |lora: Option<&LoraSet>| {
            let mut reader = edge.reader(64, lora.map(|lora| edge.side_path(lora).unwrap())).unwrap();
            log_likelihoods(&mut reader, &requests, &CancelToken::new()).unwrap()
        };
        let (with, without) = (on_the_edge(Some(packs.lora().unwrap())), on_the_edge(None));
        for ((by_token, with), without) in by_token.iter().zip(with).zip(without) {
            largest_effect = largest_effect.max((with - without).abs());
            assert!((by_token - with).abs() < 0.02 * with.abs(), "{by_token} {with} {without}");
        }
    }
    assert!(largest_effect > 0.5, "{largest_effect}");
}

#[test]
fn lorahub_finds_weights_that_fit_the_shots_better_than_none() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    let generator = GeneratorConfig { shared_expert: false, routing: Routing::KeepTop, ..extended() };
    let config = TrainConfig { baseline: None, dropout: 0.0, ..config(generator) };
    let mut trainer = trainer(&model, config).unwrap();
    steps(&mut trainer, 20);
    let edge = EdgeModel::load(&model, Some(1)).unwrap();
    let task = &select(tasks(), 4, 4, false)[0];
    let shots: Vec<Request> = task
        .task
        .items
        .iter()
        .flat_map(|item| Format::Chat.requests(&edge, "t", None, item, &item.outputs).unwrap())
        .collect();
    let found = || lorahub(&edge, &trainer.learners[0].generator, &shots, &CancelToken::new()).unwrap();
    let likelihood = |lora: Option<&LoraSet>| -> f64 {
        let mut reader = edge.reader(64, lora.map(|lora| edge.side_path(lora).unwrap())).unwrap();
        log_likelihoods(&mut reader, &shots, &CancelToken::new()).unwrap().iter().sum()
    };
    let lora = found();
    assert!(likelihood(Some(&lora)) > likelihood(None) + 0.1, "{} {}", likelihood(Some(&lora)), likelihood(None));
    assert_eq!(lora, found(), "the search is repeatable");
    assert!(lora.layers[0].gate.is_none(), "layers below the first with a delta get none");
}
