//! Reading the three data schemas, and keeping held-out tasks out.

use std::io::Write;
use std::path::Path;

use edgeweld_cloud::Error;
use edgeweld_cloud::data::{Splits, Task, read_tasks, read_wordings};
use edgeweld_cloud::train::TrainConfig;
use tempfile::NamedTempFile;

fn file(lines: &str) -> NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
    file.write_all(lines.as_bytes()).unwrap();
    file
}

fn read(lines: &str) -> Result<Vec<Task>, Error> {
    read_tasks(file(lines).path())
}

#[test]
fn reads_tasks_multiple_choice_and_instructions() {
    let lines = r#"{"task":"t1","collection":"c","definition":" Say yes or no. ","examples":[{"input":"a","output":"yes"}],"instances":[{"input":"b","output":["no","nope"]},{"input":"c","output":[]}]}
{"id":"1","task":"boolq","split":"train","context":"Title -- text","question":"Is it?","choices":["yes","no"],"answer":1}
{"id":"2","task":"boolq","split":"train","question":"Was it?","choices":["yes","no"],"answer":0}
{"id":"i1","source":"s","subsets":[],"instruction":"Translate.","input":"chat","output":"cat"}
{"id":"i2","source":"s","subsets":[],"instruction":"Write a poem.","input":"","output":"..."}
"#;
    let tasks = read(lines).unwrap();
    let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(names, ["t1", "boolq", "i1"]);
    assert_eq!(tasks[0].prompt(0), "Say yes or no.");
    assert_eq!(tasks[0].prompt(1), "Say yes or no.\n\nInput: a\nOutput: yes");
    assert_eq!(tasks[0].items.len(), 1, "an item without an answer is left out");
    assert_eq!(tasks[1].items[0].input, "Title -- text\nIs it?\n- yes\n- no");
    assert_eq!(tasks[1].label_set(2), ["no", "yes"]);
    assert!(tasks[1].label_set(1).is_empty());
}

#[test]
fn reads_other_wordings_of_an_instruction() {
    let tasks = read(
        r#"{"task":"t1","definition":"Say yes.","definitions":["Agree."],"instances":[{"input":"b","output":["yes"]}]}"#,
    );
    assert_eq!(tasks.unwrap()[0].wordings, ["Agree."]);
    let wordings = read_wordings(file(r#"{"task":"t1","t2l_id":"x","descriptions":["Nod.","Consent."]}"#).path());
    assert_eq!(wordings.unwrap()["t1"], ["Nod.", "Consent."]);
    let error = read_wordings(file(r#"{"task":"t1"}"#).path()).unwrap_err();
    assert!(matches!(error, Error::InvalidData { line: 1, .. }), "{error}");
}

#[test]
fn rejects_a_line_of_no_known_schema_with_its_number() {
    let error = read("{\"id\":\"i\",\"instruction\":\"x\",\"output\":\"y\"}\n{\"unknown\":1}\n").unwrap_err();
    assert!(matches!(error, Error::InvalidData { line: 2, .. }), "{error}");
    let error = read(r#"{"task":"t","question":"q","choices":["a"],"answer":1}"#).unwrap_err();
    assert!(matches!(error, Error::InvalidData { line: 1, .. }), "{error}");
}

#[test]
fn the_committed_splits_keep_at_least_twenty_tasks_out_of_training() {
    let splits = Splits::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("splits.json")).unwrap();
    assert!(splits.unseen.len() >= 20);
    assert!(splits.dev.iter().all(|name| !splits.unseen.contains(name)), "dev and unseen overlap");
    let task = |name: &str| Task {
        name: name.into(),
        definition: String::new(),
        wordings: vec![],
        examples: vec![],
        items: vec![],
    };
    assert!(!splits.trains_on(&task(&splits.unseen[0])));
    assert!(!splits.trains_on(&task(&splits.dev[0])));
    assert!(splits.trains_on(&task("task190_snli_classification")));
}

#[test]
fn learning_rate_warms_up_and_ends_at_zero() {
    let config = TrainConfig { step_count: 1050, warmup_steps: 50, ..TrainConfig::default() };
    assert!((config.rate(0) - 0.02).abs() < 1e-12);
    assert!((config.rate(49) - 1.0).abs() < 1e-12);
    assert!((config.rate(550) - 0.5).abs() < 1e-12);
    assert!(config.rate(1050) < 1e-12);
}
