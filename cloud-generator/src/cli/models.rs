use std::path::PathBuf;

use clap::Args;
use edgeweld::model::find_file;
use edgeweld_cloud::Result;

/// Where models lie that are given by name.
#[derive(Args)]
pub(super) struct Models {
    /// Folder of GGUF files, for models given by name (smollm2-135m-instruct, gemma3-270m).
    #[arg(long = "models", env = "EDGEWELD_MODELS", default_value = "models", value_name = "DIR")]
    folder: PathBuf,
}

impl Models {
    /// The file of a model given by name or path.
    pub(super) fn find(&self, model: &str) -> Result<PathBuf> {
        Ok(find_file(model, &self.folder)?)
    }
}
