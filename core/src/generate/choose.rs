use super::engine::Engine;
use super::options::GenerateOptions;
use crate::Result;
#[cfg(feature = "constrain")]
use crate::sample::ConstraintState;
use crate::sample::{Sampled, Sampler};

/// Chooses one turn's tokens: the sampler, within the constraint if there is one.
pub(super) struct Chooser {
    sampler: Sampler,
    #[cfg(feature = "constrain")]
    constraint: Option<ConstraintState>,
}

impl Chooser {
    /// # Errors
    /// [`Error::InvalidOption`](crate::Error::InvalidOption), [`Error::Constraint`](crate::Error::Constraint).
    pub(super) fn new(engine: &Engine, options: &GenerateOptions) -> Result<Self> {
        #[cfg(not(feature = "constrain"))]
        let _ = engine;
        Ok(Self {
            sampler: Sampler::new(options.sampler.clone())?,
            #[cfg(feature = "constrain")]
            constraint: options.constraint.as_ref().map(|wanted| engine.compile(wanted)).transpose()?,
        })
    }

    /// The token that follows `history`, from its `logits`.
    pub(super) fn choose(&mut self, logits: &mut [f32], history: &[u32]) -> Result<Sampled> {
        #[cfg(feature = "constrain")]
        let mask = self.constraint.as_mut().map(ConstraintState::mask).transpose()?;
        #[cfg(not(feature = "constrain"))]
        let mask = None;
        self.sampler.sample(logits, history, mask.as_ref())
    }

    /// Takes note that token `id` is part of the answer.
    pub(super) fn accept(&mut self, id: u32) -> Result<()> {
        #[cfg(feature = "constrain")]
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(id)?;
        }
        #[cfg(not(feature = "constrain"))]
        let _ = id;
        Ok(())
    }
}
