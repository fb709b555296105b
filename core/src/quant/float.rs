//! Unquantised weights: F32, F16, BF16, little-endian.

use super::block::f16_to_f32;

#[inline(always)]
pub(super) fn read_f32(src: &[u8], dst: &mut [f32]) {
    for (value, bytes) in dst.iter_mut().zip(src.as_chunks().0) {
        *value = f32::from_le_bytes(*bytes);
    }
}

#[inline(always)]
pub(super) fn read_f16(src: &[u8], dst: &mut [f32]) {
    for (value, bytes) in dst.iter_mut().zip(src.as_chunks().0) {
        *value = f16_to_f32(u16::from_le_bytes(*bytes));
    }
}

#[inline(always)]
pub(super) fn read_bf16(src: &[u8], dst: &mut [f32]) {
    for (value, bytes) in dst.iter_mut().zip(src.as_chunks().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

pub(super) fn write_f32(src: &[f32], dst: &mut [u8]) {
    for (value, bytes) in src.iter().zip(dst.as_chunks_mut().0) {
        *bytes = value.to_le_bytes();
    }
}

pub(super) fn write_f16(src: &[f32], dst: &mut [u8]) {
    for (value, bytes) in src.iter().zip(dst.as_chunks_mut().0) {
        *bytes = half::f16::from_f32(*value).to_le_bytes();
    }
}

pub(super) fn write_bf16(src: &[f32], dst: &mut [u8]) {
    for (value, bytes) in src.iter().zip(dst.as_chunks_mut().0) {
        *bytes = half::bf16::from_f32(*value).to_le_bytes();
    }
}
