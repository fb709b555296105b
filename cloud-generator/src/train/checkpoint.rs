use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Learner, TrainConfig, Trainer};
use crate::generator::GeneratorInfo;
use crate::{Error, Result};

const PARAMETERS: &str = "parameters.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const AVERAGE: &str = "average.safetensors";
const STATE: &str = "state.json";
/// The finished checkpoint; written beside it first, so that a kill leaves the previous one.
const FOLDER: &str = "checkpoint";

fn file_name(learner: &Learner, part: &str) -> String {
    format!("{}.{part}", learner.name)
}

#[derive(Serialize, Deserialize)]
struct State {
    step: u64,
    config: TrainConfig,
    cloud: String,
    edge: String,
}

impl Trainer {
    /// Writes a checkpoint into `folder`, replacing the previous one once it is whole.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let temporary = folder.join(format!("{FOLDER}.tmp"));
        if temporary.exists() {
            std::fs::remove_dir_all(&temporary).map_err(Error::io(&temporary))?;
        }
        std::fs::create_dir_all(&temporary).map_err(Error::io(&temporary))?;
        let mut files = Vec::new();
        for learner in &self.learners {
            let parameters = learner.generator.parameters.iter();
            let parameters = parameters.map(|(name, var)| (name.to_owned(), var.as_detached_tensor())).collect();
            let moments = learner.optimizer.moments.iter();
            let moments =
                moments.flat_map(|(name, (m, v))| [(format!("{name}.m"), m.clone()), (format!("{name}.v"), v.clone())]);
            let average = learner.average.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
            let parts: [(&str, HashMap<String, Tensor>); 3] =
                [(PARAMETERS, parameters), (OPTIMIZER, moments.collect()), (AVERAGE, average)];
            for (part, tensors) in parts {
                let path = temporary.join(file_name(learner, part));
                candle_core::safetensors::save(&tensors, &path)?;
                files.push(path);
            }
        }
        let state = State {
            step: self.step,
            config: self.config.clone(),
            cloud: self.cloud.digest.to_string(),
            edge: self.items.edge.digest.to_string(),
        };
        let path = temporary.join(STATE);
        let text = serde_json::to_string_pretty(&state).expect("plain values");
        let mut file = std::fs::File::create(&path).map_err(Error::io(&path))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::io(&path))?;
        for path in files {
            std::fs::File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io(&path))?;
        }
        let (current, previous) = (folder.join(FOLDER), folder.join(format!("{FOLDER}.old")));
        if previous.exists() {
            std::fs::remove_dir_all(&previous).map_err(Error::io(&previous))?;
        }
        if current.exists() {
            std::fs::rename(&current, &previous).map_err(Error::io(&current))?;
        }
        std::fs::rename(&temporary, &current).map_err(Error::io(&temporary))
    }

    /// Writes each learner as a generator folder, `folder/generator` and `folder/baseline`, with its averaged weights
    /// if there are any; named after `folder` and its steps.
    pub fn save_generator(&self, folder: &Path) -> Result<()> {
        let run = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        for learner in &self.learners {
            let suffix = if learner.name == "generator" { String::new() } else { format!("-{}", learner.name) };
            let info = GeneratorInfo {
                name: format!("{run}{suffix}-{}-steps", self.step),
                cloud: self.cloud.digest.to_string(),
                edge: self.items.edge.digest.to_string(),
                step_count: self.step,
                generator: learner.generator.config.clone(),
            };
            learner.with_average(|generator| generator.save(&folder.join(learner.name), &info))?;
        }
        Ok(())
    }

    /// Continues from the checkpoint in `folder`, or from the one before it if a kill came between the two.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for a checkpoint of other models or sizes.
    pub fn resume(&mut self, folder: &Path) -> Result<()> {
        let current = folder.join(FOLDER);
        let checkpoint = if current.exists() { current } else { folder.join(format!("{FOLDER}.old")) };
        let path = checkpoint.join(STATE);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let invalid = |reason: String| Error::InvalidFile { path: path.clone(), reason };
        let state: State = serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        let (cloud, edge) = (self.cloud.digest.to_string(), self.items.edge.digest.to_string());
        if state.cloud != cloud || state.edge != edge {
            return Err(invalid(format!("made with cloud {} and edge {}", state.cloud, state.edge)));
        }
        if state.config.generator != self.config.generator || state.config.baseline != self.config.baseline {
            return Err(invalid("made with another generator or baseline configuration".into()));
        }
        for learner in &mut self.learners {
            let file = |part: &str| checkpoint.join(file_name(learner, part));
            let device = learner.generator.pool().a[0].device().clone();
            let mut moments = candle_core::safetensors::load(file(OPTIMIZER), &device)?;
            let average = candle_core::safetensors::load(file(AVERAGE), &device)?;
            let parameters = file(PARAMETERS);
            learner.generator.parameters.load(&parameters, &device)?;
            learner.average = average.into_iter().collect();
            learner.optimizer.moments.clear();
            let names: Vec<String> = learner.generator.parameters.trained().map(|(name, _)| name.to_owned()).collect();
            for name in names {
                let mut take = |suffix: &str| moments.remove(&format!("{name}.{suffix}"));
                if let (Some(m), Some(v)) = (take("m"), take("v")) {
                    learner.optimizer.moments.insert(name, (m, v));
                }
            }
        }
        self.step = state.step;
        Ok(())
    }
}
