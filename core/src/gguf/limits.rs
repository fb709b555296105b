//! What a file may ask for. Each limit is far above every real model and small enough to be harmless; counts and
//! lengths are moreover compared with the bytes that are left in the file before anything is allocated.

/// Metadata entries. Real files have 20 to 80; the index takes 24 bytes per entry.
pub const METADATA_COUNT_MAX: u64 = 4096;

/// Tensors. Real files of dense models have 150 to 1,500; the index takes 40 bytes per tensor.
pub const TENSOR_COUNT_MAX: u64 = 65_536;

/// Bytes of a metadata key: the format's own limit.
pub const KEY_BYTES_MAX: u64 = 65_535;

/// Bytes of a tensor name: the format's own limit, and ggml's.
pub const TENSOR_NAME_BYTES_MAX: u64 = 64;

/// Bytes of a string value. The longest real ones are embedded `tokenizer.json` files of 10 to 30 MB.
pub const STRING_BYTES_MAX: u64 = 64 << 20;

/// Elements of an array. The longest real ones are merge lists with about a million.
pub const ARRAY_LEN_MAX: u64 = 1 << 24;

/// Arrays within arrays. No known file nests them; the limit bounds the reader's recursion.
pub const ARRAY_DEPTH_MAX: u64 = 4;

/// Dimensions of a tensor: ggml's limit.
pub const DIMENSIONS_MAX: u64 = 4;

/// Length of one dimension: what kernels can index with 31 bits.
pub const DIMENSION_MAX: u64 = i32::MAX as u64;

/// Smallest `general.alignment`: the format wants a multiple of 8.
pub const ALIGNMENT_MIN: u64 = 8;

/// Largest `general.alignment`: the largest page size in use; more would only be padding.
pub const ALIGNMENT_MAX: u64 = 65_536;

/// `general.alignment` of a file that does not say.
pub const ALIGNMENT_DEFAULT: u64 = 32;
