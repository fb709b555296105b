//! Execution providers in a session: registering them, and whose failure a failed run is.

use std::num::NonZeroUsize;

use ort::ep::{CUDA, CoreML, ExecutionProvider, NNAPI, QNN, XNNPACK};
use ort::session::builder::SessionBuilder;

use crate::Error;
use crate::model::{Provider, ProviderOutcome};

impl Provider {
    /// Registers it with a session that is being built; why that failed, if it did.
    pub(super) fn register(self, builder: &mut SessionBuilder, threads: usize) -> Result<(), String> {
        match self {
            Self::Cpu => Ok(()),
            Self::Xnnpack => {
                let threads = NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN);
                register(&XNNPACK::default().with_intra_op_num_threads(threads), builder)
            }
            Self::Nnapi => register(&NNAPI::default(), builder),
            Self::Qnn => register(&QNN::default(), builder),
            Self::CoreMl => register(&CoreML::default(), builder),
            Self::Cuda => register(&CUDA::default(), builder),
        }
    }
}

fn register<P: ExecutionProvider>(provider: &P, builder: &mut SessionBuilder) -> Result<(), String> {
    match P::is_available() {
        Ok(true) => provider.register(builder).map_err(|error| error.message().to_owned()),
        Ok(false) => Err("not in this build of ONNX Runtime".to_owned()),
        Err(error) => Err(error.message().to_owned()),
    }
}

/// What a failed run means: the preferred provider's failure where one is in use.
pub(super) fn run_failed(providers: &[ProviderOutcome], reason: &str) -> Error {
    let reason = reason.to_owned();
    match providers.iter().find(|outcome| outcome.refusal.is_none()) {
        Some(ProviderOutcome { provider, .. }) if *provider != Provider::Cpu => {
            Error::ProviderFailed { provider: provider.name(), reason }
        }
        _ => Error::Backend { backend: "onnx", reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(provider: Provider, refusal: Option<&str>) -> ProviderOutcome {
        ProviderOutcome { provider, refusal: refusal.map(str::to_owned) }
    }

    #[test]
    fn a_failed_run_names_the_provider_in_use() {
        let providers = [outcome(Provider::Nnapi, Some("absent")), outcome(Provider::Qnn, None)];
        let error = run_failed(&providers, "device lost");
        assert_eq!(error.to_string(), "execution provider QNNExecutionProvider failed: device lost");
        assert!(matches!(error, Error::ProviderFailed { provider: "QNNExecutionProvider", .. }));
        for providers in [&[][..], &[outcome(Provider::Cpu, None)], &[outcome(Provider::Qnn, Some("absent"))]] {
            let error = run_failed(providers, "device lost");
            assert!(matches!(&error, Error::Backend { reason, .. } if reason == "device lost"), "{error}");
        }
    }
}
