use std::path::Path;

use candle_core::{Device, Tensor};
use edgeweld::CancelToken;
use edgeweld::model::Decoder;

use super::Request;
use crate::generator::{Generator, GeneratorInfo, LanguageModel, Reading};
use crate::grad::{Batch, Grad, head_loss};
use crate::{Error, Result};

/// LoRA experts that every token chooses from (LoRAMoE, MixLoRA). The edge runtime cannot run them, since they are no
/// LoRA of any weight: they answer on the trainer's forward pass, in f32 on the dequantised weights.
pub struct TokenRouted {
    generator: Generator,
    edge: LanguageModel,
    // The layers with experts.
    upper: Decoder<Grad>,
}

impl TokenRouted {
    /// Loads a generator folder of [`Reading::Token`].
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if it is malformed or for another edge model; [`Error::InvalidOption`] if it is of another
    /// reading.
    pub fn load(folder: &Path, edge: LanguageModel) -> Result<Self> {
        let info = GeneratorInfo::load(folder)?;
        if info.generator.reading != Reading::Token {
            let reason = format!("{} is not token-routed", info.name);
            return Err(Error::InvalidOption { option: "--token-baseline", reason });
        }
        let (generator, _) = Generator::load_blind(folder, &edge, &Device::Cpu)?;
        let upper = edge.layers(generator.config.first_layer..edge.decoder.config.layer_count());
        Ok(Self { generator, edge, upper })
    }

    /// Natural log-probabilities of the requests' answers.
    ///
    /// # Errors
    /// [`edgeweld::Error::Cancelled`].
    pub fn log_likelihoods(&self, requests: &[Request], cancel: &CancelToken) -> Result<Vec<f64>> {
        let (mut states, mut lengths, mut rows, mut targets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for request in requests {
            // Nothing is predicted from the last token.
            let ids = &request.ids[..request.ids.len() - 1];
            states.push(self.edge.states(ids, self.generator.config.first_layer, cancel)?);
            for row in request.first - 1..ids.len() {
                rows.push((start + row) as u32);
                targets.push(vec![(request.ids[row + 1], 1.0)]);
            }
            lengths.push(ids.len());
            start += ids.len();
        }
        let thetas = self.generator.token_thetas(None)?;
        let mut batch = Batch::packed(&lengths, vec![None; lengths.len()]);
        let h = self.upper.hidden(Tensor::cat(&states, 0)?, &mut batch, Some(&thetas), cancel)?;
        let count = rows.len();
        let h = h.index_select(&Tensor::from_vec(rows, count, h.device())?, 0)?;
        let (head, softcap) = (self.upper.head.dense()?, self.upper.config.logit_softcap);
        let losses: Vec<f32> = head_loss(&self.upper.output_norm(&h)?, &head, softcap, targets)?.to_vec1()?;
        let mut losses = losses.into_iter().map(f64::from);
        let sum = |request: &Request| -losses.by_ref().take(request.ids.len() - request.first).sum::<f64>();
        Ok(requests.iter().map(sum).collect())
    }
}
