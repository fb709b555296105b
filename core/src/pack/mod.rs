//! The pack: one signed file that specialises one edge model for one prompt. Bytes ⇄ values, no I/O.
//!
//! `docs/pack-format.md` is the normative text. Everything read here is still hostile: only
//! [`verify`](crate::verify) turns a [`RawPack`] into values a model may use.

mod defect;
mod frame;
mod key;
mod manifest;
mod payload;
mod pool;
mod tensors;
mod write;

pub use defect::PackDefect;
pub use frame::{MANIFEST_SIZE_BYTES_MAX, PACK_VERSION, RawPack, Signature};
pub use key::{PublicKey, SecretKey};
pub use manifest::{
    Composition, Content, GeneratorInfo, LoraShape, Manifest, Measurement, ModelIdentity, PayloadDescriptor,
    PromptInfo, RESIDUAL_PROMPT_TOKENS_MAX, ResidualPrompt,
};
pub use payload::{VALUE_MAX, peft_tensor_name, pool_tensor_name};
pub use pool::{ExpertPair, ExpertPool, Gates};
pub use write::{PackInfo, Precision, write_dense, write_gates, write_pool};

pub(crate) use payload::{decode_dense, decode_gates, decode_pool, payload_size_limit};
pub(crate) use tensors::decompress;
