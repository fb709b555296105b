/// A ggml block type: how a run of [`block_len`](Self::block_len) weights is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are ggml's own")]
#[allow(non_camel_case_types, reason = "the names are ggml's own")]
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
}

impl BlockType {
    /// Every block type, in the order of ggml's numbers.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q8_1,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::Q8_K,
        Self::BF16,
    ];

    /// `(ggml number, weights per block, bytes per block, name)`
    const fn facts(self) -> (u32, usize, usize, &'static str) {
        match self {
            Self::F32 => (0, 1, 4, "F32"),
            Self::F16 => (1, 1, 2, "F16"),
            Self::Q4_0 => (2, 32, 18, "Q4_0"),
            Self::Q4_1 => (3, 32, 20, "Q4_1"),
            Self::Q5_0 => (6, 32, 22, "Q5_0"),
            Self::Q5_1 => (7, 32, 24, "Q5_1"),
            Self::Q8_0 => (8, 32, 34, "Q8_0"),
            Self::Q8_1 => (9, 32, 36, "Q8_1"),
            Self::Q2_K => (10, 256, 84, "Q2_K"),
            Self::Q3_K => (11, 256, 110, "Q3_K"),
            Self::Q4_K => (12, 256, 144, "Q4_K"),
            Self::Q5_K => (13, 256, 176, "Q5_K"),
            Self::Q6_K => (14, 256, 210, "Q6_K"),
            Self::Q8_K => (15, 256, 292, "Q8_K"),
            Self::BF16 => (30, 1, 2, "BF16"),
        }
    }

    /// The type with this ggml number, if we read it.
    pub fn from_ggml(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|block_type| block_type.ggml_number() == number)
    }

    /// ggml's number of this type, as GGUF files store it.
    pub const fn ggml_number(self) -> u32 {
        self.facts().0
    }

    /// Weights per block; a row's length must be a multiple of it.
    pub const fn block_len(self) -> usize {
        self.facts().1
    }

    /// Bytes per block.
    pub const fn block_size_bytes(self) -> usize {
        self.facts().2
    }

    /// ggml's name, such as `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.facts().3
    }

    /// Bytes of one row of `cols` weights; `None` if the row is not a whole number of blocks or overflows.
    pub const fn row_size_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_size_bytes())
    }
}

impl std::fmt::Display for BlockType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
