use std::path::PathBuf;

/// Result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong on the server side, one variant per thing a caller can act on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A part shared with the edge failed.
    #[error(transparent)]
    Edge(#[from] edgeweld::Error),
    /// The tensor library failed.
    #[error("tensor library: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The operating system refused a file operation.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A configuration or command line value is outside its documented range.
    #[error("invalid option {option}: {reason}")]
    InvalidOption {
        /// The option's name as the user writes it.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A configuration, generator or checkpoint file does not say what it must.
    #[error("{path}: {reason}")]
    InvalidFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A line of a data file is not of a known schema.
    #[error("{path}, line {line}: {reason}")]
    InvalidData {
        /// The data file.
        path: PathBuf,
        /// One-based line number.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A file to be published fails a check that every device makes.
    #[error("{path}: {source}")]
    FileRefused {
        /// The file.
        path: PathBuf,
        /// What a device would say.
        source: Box<edgeweld::Error>,
    },
    /// The prompt holds nothing but white space.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt has more tokens than the generator takes.
    #[error("the prompt has {actual} tokens, the generator takes {limit}")]
    PromptTooLong {
        /// Tokens in the prompt.
        actual: usize,
        /// Most tokens the generator takes.
        limit: usize,
    },
    /// The text that is to stay in the context has more tokens than the pack format allows.
    #[error("the residual prompt has {actual} tokens, a pack takes {limit}")]
    ResidualPromptTooLong {
        /// Tokens in it.
        actual: usize,
        /// Most tokens a pack takes.
        limit: usize,
    },
    /// A key file exists already, and keys are never overwritten.
    #[error("{path} exists: keys are never overwritten")]
    KeyExists {
        /// The file.
        path: PathBuf,
    },
    /// The server cannot listen on its address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the operating system said, such as that the port is in use.
        source: std::io::Error,
    },
}

impl Error {
    /// Wraps an [`std::io::Error`] with the path it concerns.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
