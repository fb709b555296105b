use std::collections::HashSet;
use std::sync::Arc;

use super::backend::Backend;
use super::config::Config;
use super::decoder::{Decoder, Layer, Linear};
use crate::gguf::GgufFile;
use crate::quant::QMatrix;
use crate::{CancelToken, Error, Result};

/// Told how far loading is: `(layers loaded, layers in the model)`.
pub type LoadProgress<'a> = &'a mut dyn FnMut(usize, usize);

impl<B: Backend> Decoder<B> {
    /// Loads the model of `file` onto `backend`. Backends that read weights in place keep the file mapped.
    ///
    /// # Errors
    /// Those of [`Config::from_gguf`]; [`Error::MissingTensor`], [`Error::ShapeMismatch`],
    /// [`Error::UnexpectedTensor`] for a tensor that this decoder would ignore; [`Error::Cancelled`] within one layer
    /// of the cancellation; those of the backend.
    pub fn load(file: &GgufFile, backend: Arc<B>, cancel: &CancelToken, progress: LoadProgress<'_>) -> Result<Self> {
        let config = Config::from_gguf(file)?;
        let mut loader = Loader { file, backend: &*backend, taken: HashSet::new() };
        let layer_count = config.layer_count();
        progress(0, layer_count);

        let embedding = loader.matrix("token_embd.weight", config.vocab_size, config.hidden_size)?;
        let output_norm = loader.vector("output_norm.weight", config.hidden_size)?;
        let head = match file.opt_tensor("output.weight") {
            Some(_) => loader.matrix("output.weight", config.vocab_size, config.hidden_size)?,
            None => embedding.clone(),
        };
        let mut layers = Vec::with_capacity(layer_count);
        for index in 0..layer_count {
            cancel.check()?;
            layers.push(loader.layer(index, &config)?);
            progress(index + 1, layer_count);
        }
        loader.refuse_ignored_tensors()?;
        log::info!(
            "loaded a {} model: {layer_count} layers, hidden {}, vocabulary {}",
            config.family.architecture(),
            config.hidden_size,
            config.vocab_size
        );
        Ok(Self { backend, config, embedding, layers, output_norm, head })
    }
}

struct Loader<'a, B> {
    file: &'a GgufFile,
    backend: &'a B,
    taken: HashSet<String>,
}

impl<B: Backend> Loader<'_, B> {
    fn layer(&mut self, index: usize, config: &Config) -> Result<Layer<B>> {
        let attention = &config.attention[index];
        let (hidden, ffn, head_dim) = (config.hidden_size, config.ffn_size, attention.head_dim);
        let (q_size, kv_size) = (attention.head_count * head_dim, attention.kv_head_count * head_dim);
        let family = config.family;
        let name = |part: &str| format!("blk.{index}.{part}");
        let bias = family.requires_qkv_bias();
        Ok(Layer {
            attn_norm: self.vector(&name("attn_norm.weight"), hidden)?,
            q: self.linear(&name("attn_q"), q_size, hidden, bias)?,
            k: self.linear(&name("attn_k"), kv_size, hidden, bias)?,
            v: self.linear(&name("attn_v"), kv_size, hidden, bias)?,
            o: self.linear(&name("attn_output"), hidden, q_size, false)?,
            q_norm: self.vector_if(family.has_qk_norm(), &name("attn_q_norm.weight"), head_dim)?,
            k_norm: self.vector_if(family.has_qk_norm(), &name("attn_k_norm.weight"), head_dim)?,
            post_attn_norm: self.vector_if(family.has_post_norms(), &name("post_attention_norm.weight"), hidden)?,
            ffn_norm: self.vector(&name("ffn_norm.weight"), hidden)?,
            gate: self.matrix(&name("ffn_gate.weight"), ffn, hidden)?,
            up: self.matrix(&name("ffn_up.weight"), ffn, hidden)?,
            down: self.matrix(&name("ffn_down.weight"), hidden, ffn)?,
            post_ffn_norm: self.vector_if(family.has_post_norms(), &name("post_ffw_norm.weight"), hidden)?,
        })
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize, requires_bias: bool) -> Result<Linear<B>> {
        let weight = self.matrix(&format!("{name}.weight"), rows, cols)?;
        let bias_name = format!("{name}.bias");
        let bias = requires_bias || self.file.opt_tensor(&bias_name).is_some();
        Ok(Linear { weight, bias: self.vector_if(bias, &bias_name, rows)? })
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<B::Matrix> {
        let matrix: QMatrix = self.file.matrix(name)?;
        self.check_shape(name, &[rows, cols], &[matrix.rows(), matrix.cols()])?;
        self.backend.matrix(matrix)
    }

    fn vector_if(&mut self, present: bool, name: &str, len: usize) -> Result<Option<B::Vector>> {
        present.then(|| self.vector(name, len)).transpose()
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<B::Vector> {
        let shape: Vec<usize> = self.file.tensor(name)?.shape().iter().map(|length| *length as usize).collect();
        self.check_shape(name, &[len], &shape)?;
        self.backend.vector(self.file.vector(name)?)
    }

    fn check_shape(&mut self, name: &str, expected: &[usize], actual: &[usize]) -> Result<()> {
        self.taken.insert(name.to_owned());
        if expected != actual {
            let (expected, actual) = (expected.to_vec(), actual.to_vec());
            return Err(Error::ShapeMismatch { tensor: name.to_owned(), expected, actual });
        }
        Ok(())
    }

    /// A tensor nobody reads means that the model computes something this decoder does not.
    fn refuse_ignored_tensors(&self) -> Result<()> {
        // `Config` reads the first; converters before 2024 wrote the second, which follows from the metadata.
        let harmless = |name: &str| name == "rope_freqs.weight" || name.ends_with(".attn_rot_embd.weight");
        match self
            .file
            .tensors()
            .map(|tensor| tensor.name())
            .find(|name| !self.taken.contains(*name) && !harmless(name))
        {
            Some(name) => Err(Error::UnexpectedTensor { tensor: name.to_owned() }),
            None => Ok(()),
        }
    }
}
