//! Dense f32 products on slices, and slices of tensors.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// A strided view, element `(i, j)` at `i · row_stride + j · col_stride`.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Row-major `[rows, cols]`.
    pub(super) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `cols` columns of rows that start `row_stride` elements apart.
    pub(super) fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, without a copy.
    pub(super) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// `cols` columns from `start` on.
    pub(super) fn columns(self, start: usize, cols: usize) -> Self {
        Self { data: self.data.get(start * self.col_stride..).unwrap_or_default(), cols, ..self }
    }

    fn fits(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < self.data.len()
    }
}

/// Where a product goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Into {
    /// Replaces the destination.
    Overwrite,
    /// Is added to it.
    Accumulate,
}

/// `dst (+)= factor · lhs · rhs`, where `dst`'s rows start `dst_stride` elements apart.
pub(super) fn matmul(dst: &mut [f32], dst_stride: usize, into: Into, factor: f32, lhs: Mat, rhs: Mat) {
    product(dst, dst_stride, into, factor, lhs, rhs, gemm::Parallelism::Rayon(rayon::current_num_threads()));
}

/// [`matmul`] on the calling thread only, for use inside a parallel loop.
pub(super) fn matmul_serial(dst: &mut [f32], dst_stride: usize, into: Into, factor: f32, lhs: Mat, rhs: Mat) {
    product(dst, dst_stride, into, factor, lhs, rhs, gemm::Parallelism::None);
}

fn product(
    dst: &mut [f32],
    dst_stride: usize,
    into: Into,
    factor: f32,
    lhs: Mat,
    rhs: Mat,
    parallelism: gemm::Parallelism,
) {
    let (m, k, n) = (lhs.rows, lhs.cols, rhs.cols);
    if m == 0 || n == 0 {
        return;
    }
    assert_eq!(k, rhs.rows, "inner sizes differ");
    assert!(lhs.fits() && rhs.fits(), "operand out of bounds");
    assert!(n <= dst_stride && (m - 1) * dst_stride + n <= dst.len(), "destination out of bounds");
    let accumulate = into == Into::Accumulate;
    // SAFETY: the three matrices lie inside their slices (asserted above), the destination's rows do not overlap
    // (n <= dst_stride), and the destination is borrowed mutably.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            dst_stride as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// The contiguous f32 elements of an operator's argument.
pub(super) fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        _ => bail!("operator needs contiguous f32 on the CPU"),
    }
}

/// Calls `f` with the elements of `tensor`, row-major.
pub(super) fn with_elements<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(elements(storage, layout)?),
        _ => bail!("operator needs contiguous f32 on the CPU"),
    }
}
