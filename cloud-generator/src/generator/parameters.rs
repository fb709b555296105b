use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};

use crate::{Error, Result};

/// Named tensors that training changes. Clones of a tensor share its storage, so they see updates.
#[derive(Default)]
pub struct Parameters {
    vars: BTreeMap<String, Var>,
}

impl Parameters {
    /// Adds a tensor in f32.
    pub fn insert(&mut self, name: impl Into<String>, tensor: &Tensor) -> Result<()> {
        self.vars.insert(name.into(), Var::from_tensor(&tensor.to_dtype(DType::F32)?.contiguous()?)?);
        Ok(())
    }

    /// The tensor called `name`.
    ///
    /// # Panics
    /// If there is none: names are fixed when a generator is made or loaded.
    pub fn tensor(&self, name: &str) -> Tensor {
        self.var(name).as_tensor().clone()
    }

    /// The variable called `name`.
    ///
    /// # Panics
    /// As [`tensor`](Self::tensor).
    pub fn var(&self, name: &str) -> &Var {
        self.vars.get(name).unwrap_or_else(|| panic!("no parameter {name}"))
    }

    /// All variables, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// Variables that the optimiser changes: all but running statistics.
    pub fn trained(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.iter().filter(|(name, _)| !name.contains("running_"))
    }

    /// Replaces every tensor's values by those in a safetensors file with the same names and shapes.
    pub fn load(&mut self, path: &Path, device: &Device) -> Result<()> {
        let stored: HashMap<String, Tensor> = candle_core::safetensors::load(path, device)?;
        for (name, var) in &self.vars {
            let tensor = stored.get(name).filter(|tensor| tensor.dims() == var.dims()).ok_or_else(|| {
                Error::InvalidFile { path: path.into(), reason: format!("no tensor {name} of shape {:?}", var.dims()) }
            })?;
            var.set(&tensor.to_dtype(DType::F32)?)?;
        }
        Ok(())
    }
}
