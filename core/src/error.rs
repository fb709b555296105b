use std::path::PathBuf;

use crate::Digest;
use crate::pack::PackDefect;

/// Result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, one variant per thing a caller can act on. Fields are facts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // --- anywhere ---
    /// The caller's [`CancelToken`](crate::CancelToken) was cancelled; the previous state is whole.
    #[error("cancelled")]
    Cancelled,
    /// The operating system refused a file operation.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// An option has a value outside its documented range.
    #[error("invalid option {option}: {reason}")]
    InvalidOption {
        /// The option's name as written in the API.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A digest is not `sha256:` and 64 lower-case hex digits.
    #[error("malformed digest {text:?}")]
    MalformedDigest {
        /// The first 100 characters of the text.
        text: String,
    },
    /// The device (Metal, CUDA, …) is missing, or its feature was not compiled in.
    #[error("device {device} is not available: {reason}")]
    DeviceUnavailable {
        /// The device that was asked for.
        device: &'static str,
        /// Why it cannot be used.
        reason: String,
    },
    /// The tensor library under a backend failed.
    #[error("backend {backend} failed: {reason}")]
    Backend {
        /// `cpu`, `candle` or `onnx`.
        backend: &'static str,
        /// What it said.
        reason: String,
    },

    /// ONNX Runtime's shared library cannot be loaded.
    #[error("cannot load ONNX Runtime from {path}: {reason}")]
    LibraryMissing {
        /// The file or name that was tried.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// ONNX Runtime's shared library is older than what this build needs.
    #[error("ONNX Runtime at {path} is {actual}, {required} or newer is needed")]
    LibraryTooOld {
        /// The file that was tried.
        path: PathBuf,
        /// Its version.
        actual: String,
        /// The oldest version that works.
        required: String,
    },
    /// An execution provider of ONNX Runtime failed while it computed.
    #[error("execution provider {provider} failed: {reason}")]
    ProviderFailed {
        /// The provider that was preferred.
        provider: &'static str,
        /// What it said.
        reason: String,
    },
    /// An ONNX graph, or a file beside it, cannot be used.
    #[error("{path}: {reason}")]
    InvalidGraph {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: crate::model::GraphDefect,
    },

    /// The model's graph, made by another program, has no inputs for the pack's pairs.
    #[error("the pack needs the graph input {input}, which this model does not have")]
    PackNeedsInput {
        /// The first input that is missing.
        input: String,
    },

    // --- model file ---
    /// No file of the folder fits a model's name, and it is no path of a file either.
    #[error("no model file fits {model:?} in {folder}, and it is not the path of a file")]
    ModelNotFound {
        /// The name.
        model: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// Several files fit a model's name.
    #[error("{model:?} could be any of {candidates:?}")]
    ModelAmbiguous {
        /// The name.
        model: String,
        /// The files' names.
        candidates: Vec<String>,
    },
    /// The file is not a GGUF file of a version we read.
    #[error("not a readable GGUF file: {reason}")]
    NotGguf {
        /// What was found instead.
        reason: String,
    },
    /// The GGUF file is cut off or refers to bytes it does not have.
    #[error("GGUF file is damaged at byte {offset}: {reason}")]
    CorruptGguf {
        /// Byte offset in the file.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// A count or length in a file exceeds the limit that protects memory.
    #[error("{what} is {actual}, more than the limit of {limit}")]
    LimitExceeded {
        /// What is counted.
        what: &'static str,
        /// The count in the file.
        actual: u64,
        /// The limit.
        limit: u64,
    },
    /// A metadata key that the model needs is missing or has another type or value.
    #[error("model metadata {key}: {reason}")]
    InvalidMetadata {
        /// The GGUF key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The decoder does not know this architecture.
    #[error("unsupported architecture {architecture:?}")]
    UnsupportedArchitecture {
        /// `general.architecture` of the file.
        architecture: String,
    },
    /// A tensor uses a block type that this build cannot read.
    #[error("tensor {tensor}: unsupported block type {block_type}")]
    UnsupportedBlockType {
        /// The tensor's name.
        tensor: String,
        /// The ggml type number.
        block_type: u32,
    },
    /// The file lacks a tensor.
    #[error("missing tensor {tensor}")]
    MissingTensor {
        /// The tensor's name.
        tensor: String,
    },
    /// The file has a tensor that the decoder of this architecture would ignore, and so compute another model.
    #[error("unexpected tensor {tensor}")]
    UnexpectedTensor {
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor has another shape than the configuration demands.
    #[error("tensor {tensor}: shape {actual:?}, expected {expected:?}")]
    ShapeMismatch {
        /// The tensor's name.
        tensor: String,
        /// Expected shape, row-major (`[out, in]`).
        expected: Vec<usize>,
        /// Shape in the file.
        actual: Vec<usize>,
    },

    // --- tokenizer, template, generation ---
    /// The tokenizer's data cannot be used.
    #[error("tokenizer: {reason}")]
    InvalidTokenizer {
        /// What is wrong.
        reason: String,
    },
    /// The chat template failed, looped or does not parse.
    #[error("chat template: {reason}")]
    Template {
        /// The template engine's report.
        reason: String,
    },
    /// The JSON schema or regular expression of a constraint cannot be used.
    #[error("output constraint: {reason}")]
    Constraint {
        /// What is wrong.
        reason: String,
    },
    /// No token is allowed by the output constraint and has a logit above -∞.
    #[error("no token can follow: every logit is -∞, NaN or excluded by the output constraint")]
    NoToken,
    /// The tokens do not fit the context.
    #[error("context full: {required} tokens needed, {available} available")]
    ContextFull {
        /// Tokens that would be in the context.
        required: usize,
        /// The context's length in tokens.
        available: usize,
    },
    /// A saved prefix belongs to another model, pack or mode.
    #[error("prefix file is for {field} {actual}, this session has {expected}")]
    PrefixMismatch {
        /// Which part of the key differs.
        field: &'static str,
        /// The session's value.
        expected: String,
        /// The file's value.
        actual: String,
    },
    /// A saved prefix file is damaged or of another version.
    #[error("prefix file: {reason}")]
    InvalidPrefix {
        /// What is wrong.
        reason: String,
    },

    // --- pack ---
    /// The bytes are not a pack, or a part of it is malformed.
    #[error("not a valid pack: {reason}")]
    InvalidPack {
        /// The rule that is broken.
        reason: PackDefect,
    },
    /// The pack's format version is not one this build reads.
    #[error("pack format version {actual} is not supported (this build reads {expected})")]
    UnsupportedPackVersion {
        /// The version this build reads.
        expected: u32,
        /// The version in the manifest.
        actual: u32,
    },
    /// A digest differs from the one promised.
    #[error("digest mismatch: expected {expected}, got {actual}")]
    DigestMismatch {
        /// The promised digest.
        expected: Digest,
        /// The digest of what arrived.
        actual: Digest,
    },
    /// Nobody signed the pack, and the policy demands a signature.
    #[error("the pack is not signed")]
    UnsignedPack,
    /// The pack names a signing key that is not on the trusted list.
    #[error("signing key {key} is not trusted")]
    UntrustedKey {
        /// The key.
        key: String,
    },
    /// A gates pack needs the expert pool with this digest.
    #[error("the pack needs expert pool {digest}")]
    PoolMissing {
        /// Digest of the pool's file.
        digest: Digest,
    },
    /// A key is malformed or weak, or the signature does not match.
    #[error("bad signature: {reason}")]
    BadSignature {
        /// What is wrong with it.
        reason: String,
    },
    /// The signing key is on the revoked list.
    #[error("signing key {key} is revoked")]
    RevokedKey {
        /// The key.
        key: String,
    },
    /// The pack was made for another base model, tokenizer or chat template.
    #[error("pack is for another {field}: expected {expected}, got {actual}")]
    BaseModelMismatch {
        /// Which part of the identity differs.
        field: &'static str,
        /// The loaded model's value.
        expected: String,
        /// The pack's value.
        actual: String,
    },
    /// More bytes than the cap allows.
    #[error("too large: {actual_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// The size that was declared or reached.
        actual_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },

    // --- download ---
    /// The network or server failed, after the retries it deserved.
    #[error("{url}: {reason}")]
    Network {
        /// The URL without credentials.
        url: String,
        /// What failed.
        reason: String,
    },
    /// The server answered with a status that ends the download.
    #[error("{url}: HTTP status {status}")]
    HttpStatus {
        /// The URL without credentials.
        url: String,
        /// The status code.
        status: u16,
    },
    /// The disk has not enough room.
    #[error("disk full: {required_bytes} bytes needed, {available_bytes} available")]
    DiskFull {
        /// Bytes that would be written.
        required_bytes: u64,
        /// Bytes free.
        available_bytes: u64,
    },

    // --- merge ---
    /// The pack has a delta for a target that the model does not have.
    #[error("merge target {target} does not exist in this model")]
    TargetMissing {
        /// The target's name.
        target: String,
    },
    /// The merge was demanded and its proof failed, or it does not fit the memory budget.
    #[error("merge refused: {refusal}")]
    MergeRefused {
        /// Why.
        refusal: crate::merge::Refusal,
    },
    /// The merge did not keep the delta, and falling back was not allowed.
    #[error("merge lost the delta of {target}: gain {gain:.2}, the limit is {limit:.2}")]
    MergeLost {
        /// The worst target.
        target: String,
        /// Share of the delta that survived.
        gain: f64,
        /// The smallest accepted share.
        limit: f64,
    },
}

impl Error {
    /// Wraps an [`std::io::Error`] with the path it concerns.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

impl From<PackDefect> for Error {
    fn from(reason: PackDefect) -> Self {
        Self::InvalidPack { reason }
    }
}
