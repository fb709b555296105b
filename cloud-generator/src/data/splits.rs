use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Task;
use crate::{Error, Result};

/// Which tasks are kept out of training: splits are by task, never by item.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Splits {
    /// For tuning decisions.
    pub dev: Vec<String>,
    /// For the final figures only.
    pub unseen: Vec<String>,
}

impl Splits {
    /// Reads `splits.json`.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        serde_json::from_str(&text).map_err(|error| Error::InvalidFile { path: path.into(), reason: error.to_string() })
    }

    /// Whether `task` may be trained on.
    pub fn trains_on(&self, task: &Task) -> bool {
        !self.dev.contains(&task.name) && !self.unseen.contains(&task.name)
    }
}
