use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::GzDecoder;
use serde::Deserialize;

use super::{Item, Question, Task};
use crate::{Error, Result};

#[derive(Deserialize)]
#[serde(untagged)]
enum Record {
    Task {
        task: String,
        definition: String,
        #[serde(default)]
        definitions: Vec<String>,
        #[serde(default)]
        examples: Vec<Example>,
        instances: Vec<Instance>,
    },
    MultipleChoice {
        task: String,
        context: Option<String>,
        question: String,
        choices: Vec<String>,
        answer: usize,
    },
    Instruction {
        id: String,
        instruction: String,
        #[serde(default)]
        input: String,
        output: String,
    },
}

#[derive(Deserialize)]
struct Example {
    input: String,
    output: String,
}

#[derive(Deserialize)]
struct Instance {
    input: String,
    output: Vec<String>,
    #[serde(default)]
    choices: Vec<String>,
}

/// The instruction of multiple-choice items, which come without one.
const MULTIPLE_CHOICE_DEFINITION: &str =
    "Answer the question. Choose one of the options and reply with the text of the correct option only.";

#[derive(Deserialize)]
struct Wordings {
    task: String,
    descriptions: Vec<String>,
}

/// Reads other wordings of tasks' instructions by the task's name: lines of `{"task", "descriptions": […]}`.
///
/// # Errors
/// As [`read_tasks`].
pub fn read_wordings(path: &Path) -> Result<HashMap<String, Vec<String>>> {
    let mut wordings = HashMap::new();
    each_line(path, |line| {
        let line: Wordings = serde_json::from_str(line)?;
        wordings.insert(line.task, line.descriptions);
        Ok(())
    })?;
    Ok(wordings)
}

/// Reads the tasks of one file: a *task* line is a task, all *mc* lines of one name together are one, and each
/// *instr* line with an input is one with a single item.
///
/// # Errors
/// [`Error::Io`], and [`Error::InvalidData`] for a line of none of these schemas.
pub fn read_tasks(path: &Path) -> Result<Vec<Task>> {
    let mut tasks: Vec<Task> = Vec::new();
    each_line(path, |line| {
        let record = serde_json::from_str(line)?;
        match record {
            Record::Task { task, definition, definitions, examples, instances } => tasks.push(Task {
                name: task,
                definition: definition.trim().to_owned(),
                wordings: definitions,
                examples: examples.into_iter().map(|example| (example.input, example.output)).collect(),
                items: instances.into_iter().filter(|item| !item.output.is_empty()).map(item).collect(),
            }),
            Record::MultipleChoice { task, context, question, choices, answer } => {
                let Some(right) = choices.get(answer).cloned() else {
                    return Err(serde::de::Error::custom(format!("no choice {answer}")));
                };
                let before = context.as_ref().map(|context| format!("{context}\n")).unwrap_or_default();
                let options: String = choices.iter().map(|choice| format!("\n- {choice}")).collect();
                let input = format!("{before}{question}{options}");
                let question = Some(Question { context, text: question });
                let item = Item { input, outputs: vec![right], choices, question };
                match tasks.last_mut() {
                    Some(last) if last.name == task => last.items.push(item),
                    _ => tasks.push(Task {
                        name: task,
                        definition: MULTIPLE_CHOICE_DEFINITION.into(),
                        wordings: Vec::new(),
                        examples: Vec::new(),
                        items: vec![item],
                    }),
                }
            }
            Record::Instruction { id, instruction, input, output } if !input.trim().is_empty() => tasks.push(Task {
                name: id,
                definition: instruction,
                wordings: Vec::new(),
                examples: Vec::new(),
                items: vec![Item { input, outputs: vec![output], choices: Vec::new(), question: None }],
            }),
            Record::Instruction { .. } => {}
        }
        Ok(())
    })?;
    Ok(tasks)
}

// Calls `take` with every line that is not blank.
fn each_line(path: &Path, mut take: impl FnMut(&str) -> serde_json::Result<()>) -> Result<()> {
    let file = File::open(path).map_err(Error::io(path))?;
    let reader: Box<dyn Read> = match path.extension() {
        Some(extension) if extension == "gz" => Box::new(GzDecoder::new(file)),
        _ => Box::new(file),
    };
    for (index, line) in BufReader::new(reader).lines().enumerate() {
        let line = line.map_err(Error::io(path))?;
        if !line.trim().is_empty() {
            take(&line).map_err(|error| Error::InvalidData {
                path: path.into(),
                line: index + 1,
                reason: error.to_string(),
            })?;
        }
    }
    Ok(())
}

fn item(instance: Instance) -> Item {
    Item { input: instance.input, outputs: instance.output, choices: instance.choices, question: None }
}
