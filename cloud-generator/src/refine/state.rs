use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use edgeweld::Digest;
use serde::{Deserialize, Serialize};

use super::{Answer, Student};
use crate::{Error, Result};

const ANSWERS: &str = "answers.json";
const STATE: &str = "state.json";

/// The folder beside the pack that an interrupted run continues from.
pub(super) struct Folder {
    path: PathBuf,
    key: Digest,
}

#[derive(Serialize, Deserialize)]
struct Keyed<T> {
    // What the contents depend on: another prompt, model or option makes them worthless.
    key: Digest,
    value: T,
}

/// Where training is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) step: u64,
    pub(super) seconds: f64,
    pub(super) best_divergence: f64,
    pub(super) best_step: u64,
    pub(super) stale_count: u64,
}

impl Folder {
    pub(super) fn new(path: PathBuf, key: Digest) -> Self {
        Self { path, key }
    }

    pub(super) fn answers(&self) -> Option<Vec<Answer>> {
        self.read(ANSWERS)
    }

    pub(super) fn save_answers(&self, answers: &[Answer]) -> Result<()> {
        self.write(ANSWERS, &answers)
    }

    /// Writes student and best LoRA, then the state that names them, so that a kill leaves the previous state whole.
    pub(super) fn save(&self, state: &State, student: &Student, best: &HashMap<String, Tensor>) -> Result<()> {
        let mut tensors: HashMap<String, Tensor> =
            best.iter().map(|(name, tensor)| (format!("best.{name}"), tensor.clone())).collect();
        for (name, var) in student.parameters.iter() {
            tensors.insert(format!("now.{name}"), var.as_detached_tensor());
            if let Some((m, v)) = student.optimizer.moments.get(name) {
                tensors.insert(format!("m.{name}"), m.clone());
                tensors.insert(format!("v.{name}"), v.clone());
            }
        }
        std::fs::create_dir_all(&self.path).map_err(Error::io(&self.path))?;
        candle_core::safetensors::save(&tensors, self.tensors(state.step))?;
        self.write(STATE, state)?;
        for entry in std::fs::read_dir(&self.path).map_err(Error::io(&self.path))?.flatten() {
            let old = entry.path().extension().is_some_and(|extension| extension == "safetensors")
                && entry.path() != self.tensors(state.step);
            if old {
                std::fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
            }
        }
        Ok(())
    }

    /// Puts the saved values into `student`; returns the state and the best LoRA's tensors.
    pub(super) fn resume(&self, student: &mut Student) -> Result<Option<(State, HashMap<String, Tensor>)>> {
        let Some(state) = self.read::<State>(STATE) else { return Ok(None) };
        let path = self.tensors(state.step);
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
        let mut best = HashMap::new();
        for (name, var) in student.parameters.iter() {
            let mut take = |part: &str| tensors.remove(&format!("{part}.{name}"));
            let missing = || Error::InvalidFile { path: path.clone(), reason: format!("no tensor {name}") };
            var.set(&take("now").ok_or_else(missing)?)?;
            best.insert(name.to_owned(), take("best").ok_or_else(missing)?);
            if let (Some(m), Some(v)) = (take("m"), take("v")) {
                student.optimizer.moments.insert(name.to_owned(), (m, v));
            }
        }
        Ok(Some((state, best)))
    }

    pub(super) fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&self.path)(error)),
            _ => Ok(()),
        }
    }

    fn tensors(&self, step: u64) -> PathBuf {
        self.path.join(format!("step-{step}.safetensors"))
    }

    // What is missing, damaged or of another key is as good as absent: the run starts over.
    fn read<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Option<T> {
        let bytes = std::fs::read(self.path.join(name)).ok()?;
        let keyed: Keyed<T> = serde_json::from_slice(&bytes).ok()?;
        (keyed.key == self.key).then_some(keyed.value)
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        std::fs::create_dir_all(&self.path).map_err(Error::io(&self.path))?;
        let bytes = serde_json::to_vec(&Keyed { key: self.key, value }).expect("plain values");
        write_whole(&self.path.join(name), &bytes)
    }
}

/// A sibling temporary file, synced and renamed: a kill leaves the old file or the new one.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(Error::io(folder))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(Error::io(path))?;
    file.persist(path).map_err(|error| Error::io(path)(error.error))?;
    Ok(())
}
