use edgeweld::Error;
use edgeweld::merge::Refusal;

/// What can go wrong, one case per thing an app can do about it.
#[derive(Clone, Debug, PartialEq, thiserror::Error, uniffi::Error)]
pub enum SdkError {
    /// The call's task handle was cancelled; everything is as before the call.
    #[error("cancelled")]
    Cancelled,
    /// An argument is outside its documented range, or this device cannot do what it asks for. A mistake in the app.
    #[error("{argument}: {reason}")]
    InvalidArgument {
        /// The argument's or option's name.
        argument: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused a file operation.
    #[error("{path}: {reason}")]
    File {
        /// The file or folder.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// Ask the user to make room; what was downloaded stays for the next attempt.
    #[error("disk full: {required_bytes} bytes needed, {available_bytes} available")]
    DiskFull {
        /// Bytes that would be written.
        required_bytes: u64,
        /// Bytes free.
        available_bytes: u64,
    },
    /// The network or server failed after all retries. What was downloaded stays for the next attempt.
    #[error("{url}: {reason}")]
    Network {
        /// The URL, without credentials and query.
        url: String,
        /// The HTTP status, if the server answered with one that ends the download.
        status: Option<u16>,
        /// What failed.
        reason: String,
    },
    /// The model file is damaged or of a kind that this library does not run.
    #[error("{reason}")]
    InvalidModel {
        /// What is wrong with it.
        reason: String,
    },
    /// The pack must not be used; nothing of it reached the model.
    #[error("{reason}")]
    PackRefused {
        /// Why, as a value to compare.
        refusal: PackRefusal,
        /// What the device expected, where two values differ.
        expected: Option<String>,
        /// What the pack has instead.
        actual: Option<String>,
        /// Why, as a sentence.
        reason: String,
    },
    /// The conversation does not fit: shorten it, or load the model with a longer context.
    #[error("context full: {required_tokens} tokens needed, {available_tokens} available")]
    ContextFull {
        /// Tokens that would be in the context.
        required_tokens: u64,
        /// The context's length in tokens.
        available_tokens: u64,
    },
    /// The merge that was demanded would lose the pack or take too much memory. The side path always works.
    #[error("{reason}")]
    MergeRefused {
        /// The worst weight, such as `3.up_proj`, if one lost the pack.
        target: Option<String>,
        /// Share of the pack that survived there; 1 is all.
        gain: Option<f64>,
        /// Why, as a sentence.
        reason: String,
    },
    /// Something that no app is expected to handle: an exception in its own listener, or a mistake in this library.
    #[error("{reason}")]
    Internal {
        /// What happened.
        reason: String,
    },
}

/// Why a pack was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum PackRefusal {
    /// The bytes are not those that were promised or signed, or not a pack: download again.
    Damaged,
    /// The pack's format is newer than this library: update the app.
    UnsupportedVersion,
    /// More bytes than the limit.
    TooLarge,
    /// Nobody signed it.
    Unsigned,
    /// Signed by a key that is not trusted; `actual` is the key.
    UntrustedKey,
    /// Signed by a revoked key; `actual` is the key.
    RevokedKey,
    /// The signature does not match.
    BadSignature,
    /// Made for another model, tokenizer or chat template.
    OtherModel,
    /// The expert pool that it needs could not be found; `expected` is the pool's digest.
    PoolMissing,
}

impl From<Error> for SdkError {
    fn from(error: Error) -> Self {
        let reason = error.to_string();
        let refused = |refusal, expected, actual, reason| Self::PackRefused { refusal, expected, actual, reason };
        let invalid = |argument: &str, reason| Self::InvalidArgument { argument: argument.into(), reason };
        match error {
            Error::Cancelled => Self::Cancelled,
            Error::Io { path, source } => Self::File { path: path.display().to_string(), reason: source.to_string() },
            Error::InvalidOption { option, reason } => invalid(option, reason),
            Error::MalformedDigest { .. } => invalid("digest", reason),
            Error::DeviceUnavailable { .. } => invalid("device", reason),
            Error::LibraryMissing { .. } | Error::LibraryTooOld { .. } => invalid("onnx.library", reason),
            Error::ProviderFailed { .. } => invalid("onnx.providers", reason),
            Error::Template { .. } => invalid("messages", reason),
            Error::Constraint { .. } | Error::NoToken => invalid("constraint", reason),
            Error::PrefixMismatch { .. } | Error::InvalidPrefix { .. } => invalid("prefix", reason),
            Error::NotGguf { .. }
            | Error::CorruptGguf { .. }
            | Error::LimitExceeded { .. }
            | Error::InvalidMetadata { .. }
            | Error::UnsupportedArchitecture { .. }
            | Error::UnsupportedBlockType { .. }
            | Error::MissingTensor { .. }
            | Error::UnexpectedTensor { .. }
            | Error::ShapeMismatch { .. }
            | Error::InvalidTokenizer { .. }
            | Error::InvalidGraph { .. } => Self::InvalidModel { reason },
            Error::ContextFull { required, available } => {
                Self::ContextFull { required_tokens: required as u64, available_tokens: available as u64 }
            }
            Error::InvalidPack { .. } => refused(PackRefusal::Damaged, None, None, reason),
            Error::UnsupportedPackVersion { expected, actual } => {
                let (expected, actual) = (Some(expected.to_string()), Some(actual.to_string()));
                refused(PackRefusal::UnsupportedVersion, expected, actual, reason)
            }
            Error::DigestMismatch { expected, actual } => {
                refused(PackRefusal::Damaged, Some(expected.to_string()), Some(actual.to_string()), reason)
            }
            Error::UnsignedPack => refused(PackRefusal::Unsigned, None, None, reason),
            Error::UntrustedKey { key } => refused(PackRefusal::UntrustedKey, None, Some(key), reason),
            Error::RevokedKey { key } => refused(PackRefusal::RevokedKey, None, Some(key), reason),
            Error::BadSignature { .. } => refused(PackRefusal::BadSignature, None, None, reason),
            Error::PoolMissing { digest } => refused(PackRefusal::PoolMissing, Some(digest.to_string()), None, reason),
            Error::BaseModelMismatch { expected, actual, .. } => {
                refused(PackRefusal::OtherModel, Some(expected), Some(actual), reason)
            }
            Error::TargetMissing { target } => refused(PackRefusal::OtherModel, None, Some(target), reason),
            Error::PackNeedsInput { input } => refused(PackRefusal::OtherModel, None, Some(input), reason),
            Error::TooLarge { actual_bytes, limit_bytes } => {
                let (expected, actual) = (Some(limit_bytes.to_string()), Some(actual_bytes.to_string()));
                refused(PackRefusal::TooLarge, expected, actual, reason)
            }
            Error::Network { url, reason } => Self::Network { url, status: None, reason },
            Error::HttpStatus { url, status } => Self::Network { url, status: Some(status), reason },
            Error::DiskFull { required_bytes, available_bytes } => Self::DiskFull { required_bytes, available_bytes },
            Error::MergeRefused { refusal } => match refusal {
                Refusal::Gain { target, gain, .. } => {
                    Self::MergeRefused { target: Some(target), gain: Some(gain), reason }
                }
                _ => Self::MergeRefused { target: None, gain: None, reason },
            },
            Error::MergeLost { target, gain, .. } => {
                Self::MergeRefused { target: Some(target), gain: Some(gain), reason }
            }
            // `Backend`, and what core adds later.
            _ => Self::Internal { reason },
        }
    }
}

impl From<uniffi::UnexpectedUniFFICallbackError> for SdkError {
    fn from(error: uniffi::UnexpectedUniFFICallbackError) -> Self {
        Self::Internal { reason: format!("the listener failed: {}", error.reason) }
    }
}
