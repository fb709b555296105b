/// What is wrong with an ONNX graph or the files beside it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphDefect {
    /// The file is no ONNX model.
    #[error("not an ONNX model: {reason}")]
    NotOnnx {
        /// What the parser said.
        reason: String,
    },
    /// The graph needs newer operators than are supported.
    #[error("opset {version} of domain {domain:?} is not supported, at most {supported}")]
    UnsupportedOpset {
        /// Empty for the standard domain.
        domain: String,
        /// The graph's version.
        version: i64,
        /// The newest that is supported.
        supported: i64,
    },
    /// The graph lacks an input.
    #[error("missing input {name}")]
    MissingInput {
        /// Its name.
        name: String,
    },
    /// The graph has an input without a default that nothing is known to give.
    #[error("input {name}: what it should be given is not known")]
    UnknownInput {
        /// Its name.
        name: String,
    },
    /// An input or output has an element type that is not supported in its place.
    #[error("{name} has element type {element} of ONNX, which is not supported there")]
    UnsupportedType {
        /// Its name.
        name: String,
        /// ONNX's number of the type.
        element: i32,
    },
    /// An input or output has a shape that is not supported in its place.
    #[error("{name} {reason}")]
    WrongShape {
        /// Its name.
        name: String,
        /// What it is and what it should be.
        reason: String,
    },
    /// The graph lacks an output.
    #[error("missing output {name}")]
    MissingOutput {
        /// Its name.
        name: String,
    },
    /// The graph lacks a constant, or has it in another type or shape than the model needs.
    #[error("constant {name}: {reason}")]
    WrongConstant {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// External data would be read from outside the model's folder.
    #[error("the data of {name} lies outside the folder: {location:?}")]
    OutsideFolder {
        /// The constant.
        name: String,
        /// Where its data would be.
        location: String,
    },
    /// A file of external data ends before the data does.
    #[error("the data of {name} ends at byte {end} of {location:?}, which has {actual} bytes")]
    TooShort {
        /// The constant.
        name: String,
        /// The file.
        location: String,
        /// Where the data should end.
        end: u64,
        /// Bytes in the file.
        actual: u64,
    },
    /// The folder's graph was made from another model file.
    #[error("was made from another model file than the one beside it: {expected}, not {actual}")]
    OtherModel {
        /// Digest of the file it was made from.
        expected: crate::Digest,
        /// Digest of the file beside it.
        actual: crate::Digest,
    },
    /// A JSON file of the folder lacks a value, or has it in another form.
    #[error("{key}: {reason}")]
    Configuration {
        /// Where in the file.
        key: String,
        /// What is wrong.
        reason: String,
    },
}
