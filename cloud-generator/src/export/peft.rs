use std::path::Path;

use edgeweld::lora::{LoraSet, Target};
use edgeweld::pack::{Manifest, peft_tensor_name};
use edgeweld::quant::BlockType;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use super::{bytes, exact_type};
use crate::files::write_atomically;
use crate::{Error, Result};

/// Writes a folder that `peft.PeftModel.from_pretrained(model, folder)` opens: `adapter_config.json` and
/// `adapter_model.safetensors`. `base_model` is the name that its configuration gives for the base model.
///
/// # Errors
/// [`Error::Io`].
pub fn peft(lora: &LoraSet, manifest: &Manifest, base_model: Option<&str>, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let block_type = exact_type(lora);
    let dtype = if block_type == BlockType::F16 { Dtype::F16 } else { Dtype::F32 };
    let mut tensors = Vec::new();
    for (index, layer) in lora.layers.iter().enumerate() {
        for target in Target::ALL {
            let Some(pair) = layer.pair(target) else { continue };
            for (half, values) in [('A', &pair.a), ('B', &pair.b)] {
                tensors.push((
                    peft_tensor_name(index, target, half),
                    values.shape().to_vec(),
                    bytes(values, block_type),
                ));
            }
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(dtype, shape.clone(), bytes).expect("as many bytes as the shape needs"))
    });
    // peft reads the framework's name from here.
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let file = safetensors::serialize(views, Some(metadata)).expect("names are unique");

    // A mixture's rank may be several experts', its scale is one expert's.
    let rank = lora.layers.iter().find_map(|layer| Target::ALL.into_iter().find_map(|target| layer.pair(target)));
    let rank = rank.map_or(1, |pair| pair.a.nrows());
    let alpha = f64::from(lora.scale) * rank as f64;
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        // peft wants an integer where it is one.
        "lora_alpha": if alpha.fract() == 0.0 { json!(alpha as i64) } else { json!(alpha) },
        "target_modules": manifest.shape.targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "use_rslora": false,
        "inference_mode": true,
    });
    let config = format!("{config:#}\n");
    write_atomically(&folder.join("adapter_model.safetensors"), &file)?;
    write_atomically(&folder.join("adapter_config.json"), config.as_bytes())
}
