/// What makes bytes an invalid pack: one variant per rule of `docs/pack-format.md`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PackDefect {
    /// The first bytes are not a pack's.
    #[error("the file does not begin with a pack's manifest frame")]
    NotAPack,
    /// The file ends before its own lengths say.
    #[error("the file is cut off: {actual_bytes} bytes of at least {expected_bytes}")]
    Truncated {
        /// Bytes the lengths ask for.
        expected_bytes: u64,
        /// Bytes there are.
        actual_bytes: u64,
    },
    /// The manifest frame's two lengths contradict each other.
    #[error("the manifest frame's lengths contradict each other")]
    FrameLength,
    /// The manifest is longer than [`MANIFEST_SIZE_BYTES_MAX`](super::MANIFEST_SIZE_BYTES_MAX), or empty.
    #[error("the manifest has {actual_bytes} bytes, allowed are 1 to {limit_bytes}")]
    ManifestLength {
        /// The length in the file.
        actual_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The manifest is not the JSON that the format demands.
    #[error("manifest: {reason}")]
    Manifest {
        /// The parser's report.
        reason: String,
    },
    /// A manifest field has a value outside the format's limits.
    #[error("manifest field {field}: {reason}")]
    ManifestField {
        /// Path of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The file has another number of payload bytes than the manifest says; trailing bytes show here.
    #[error("the payload has {actual_bytes} bytes, the manifest says {expected_bytes}")]
    PayloadLength {
        /// `payload.size_bytes` of the manifest.
        expected_bytes: u64,
        /// Bytes behind the manifest frame.
        actual_bytes: u64,
    },
    /// The payload is not exactly one zstd frame of the declared content size.
    #[error("payload: {reason}")]
    Frame {
        /// What is wrong with it.
        reason: String,
    },
    /// The declared decompressed size is more than tensors of the manifest's shapes can need.
    #[error("the payload would decompress to {actual_bytes} bytes, its tensors need at most {limit_bytes}")]
    Expansion {
        /// The declared size.
        actual_bytes: u64,
        /// What the tensors and their header can need.
        limit_bytes: u64,
    },
    /// The decompressed payload is not a safetensors file.
    #[error("payload: not a safetensors file: {reason}")]
    Safetensors {
        /// The parser's report.
        reason: String,
    },
    /// A tensor's name occurs twice.
    #[error("tensor {tensor} occurs twice")]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// Tensors overlap, leave a gap, or do not end with the file.
    #[error("tensor data is not contiguous: {reason}")]
    TensorLayout {
        /// The parser's report.
        reason: String,
    },
    /// A tensor that the manifest does not call for.
    #[error("unexpected tensor {tensor}")]
    UnknownTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor that the manifest calls for is missing.
    #[error("missing tensor {tensor}")]
    MissingTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor's shape is not the one the manifest implies.
    #[error("tensor {tensor}: shape {actual:?}, expected {expected:?}")]
    TensorShape {
        /// The name.
        tensor: String,
        /// Shape implied by the manifest.
        expected: Vec<usize>,
        /// Shape in the payload.
        actual: Vec<usize>,
    },
    /// A tensor's element type is not one the format allows here.
    #[error("tensor {tensor}: element type {actual}")]
    TensorType {
        /// The name.
        tensor: String,
        /// The type in the payload.
        actual: String,
    },
    /// A tensor holds NaN or an infinity.
    #[error("tensor {tensor} holds a value that is not finite")]
    NotFinite {
        /// The name.
        tensor: String,
    },
    /// A tensor holds a value of a magnitude no trained LoRA has.
    #[error("tensor {tensor} holds {value}, the limit is {limit}")]
    ValueRange {
        /// The name.
        tensor: String,
        /// The value.
        value: f32,
        /// Largest allowed magnitude.
        limit: f32,
    },
    /// The file is a pool where a pack is needed, or the reverse.
    #[error("the file is a {actual}, expected was a {expected}")]
    Kind {
        /// What was asked for.
        expected: &'static str,
        /// What the manifest says.
        actual: &'static str,
    },
}
