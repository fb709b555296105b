//! The side path of products that share their input, as one node of our own.
//!
//! Of standard operators it takes three per target, each of one thread, two graph inputs, and every factor in f32: a small
//! model's token then is a tenth longer. This one runs on the CPU backend's kernels, and finds all pairs through one input.

use std::ops::Range;
use std::{ptr, slice};

use ort::AsPointer;
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput};
use ort::sys::{OrtKernelContext, OrtTensorTypeAndShapeInfo, OrtValue};
use ort::value::TensorElementType;

use super::proto::OWN;
use super::side_path::{OnnxLora, Place};

/// The operator's name.
pub(super) const SIDE_PATH: &str = "SidePath";
/// Its attributes: the layer, the first of its targets, and how many.
pub(super) const ATTRIBUTES: [&str; 3] = ["layer", "first_target", "targets"];
/// Rows that kernels compute at once: no thread takes fewer.
const LEAST_ROWS: usize = 8;
/// Extents of a tensor, at most.
const EXTENTS_MAX: usize = 4;

/// Inputs: `x` (`[…, in]`), `y` (`[…, targets · out]`) and the [place of the pairs](super::side_path::PLACE). Output: `y + b·(a·x)`.
struct SidePath {
    threads: usize,
}

/// [`SidePath`] at one node.
struct SidePathKernel {
    threads: usize,
    layer: usize,
    targets: Range<usize>,
}

/// What sessions of graphs with a side path need.
pub(super) fn domain(threads: usize) -> ort::Result<OperatorDomain> {
    OperatorDomain::new(OWN)?.add(SidePath { threads })
}

impl Operator for SidePath {
    type Kernel<'attr> = SidePathKernel;

    /// `y` becomes the output.
    const INPLACES: &[(u32, u32)] = &[(1, 0)];

    fn name(&self) -> &str {
        SIDE_PATH
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [TensorElementType::Float32, TensorElementType::Float32, TensorElementType::Int64].map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, context: &KernelContext<'attr>) -> ort::Result<SidePathKernel> {
        let attribute = |name| context.get::<i64>(name).ok_or_else(|| ort::Error::new(format!("no attribute {name}")));
        let [layer, first, targets] = ATTRIBUTES.map(attribute);
        let (layer, first, targets) = (layer? as usize, first? as usize, targets? as usize);
        Ok(SidePathKernel { threads: self.threads, layer, targets: first..first + targets })
    }
}

impl Kernel for SidePathKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let call = Call(context.ptr().cast_mut());
        let [x, y, place] = [call.input(0)?, call.input(1)?, call.input(2)?];
        let (dims, rank) = extents(y)?;
        let dims = &dims[..rank];
        let (width, rows) = dims.split_last().map_or((0, 0), |(width, rows)| (*width, rows.iter().product::<i64>()));
        let (width, rows) = (width as usize, rows as usize);
        let output = call.output(0, dims)?;
        let [x, y, place, output] = [data(x)?, data(y)?, data(place)?, data(output)?];
        if output != y {
            // SAFETY: both are of one shape, and no one else writes either now.
            unsafe { output.copy_from_nonoverlapping(y, rows * width) };
        }
        // SAFETY: the runner says where its layers' pairs are, whose shapes it checked, and keeps them as long as the sequence.
        let lora = unsafe { layers(*place.cast()) };
        let Some(layer) = lora.get(self.layer).filter(|_| rows > 0) else { return Ok(()) };
        let Some(cols) = layer.cols(self.targets.clone()) else { return Ok(()) };
        if !layer.is_kept() {
            context.par_for(lora.len(), self.threads, |layer| _ = lora[layer].keep())?;
        }
        let operands = Operands { x, y: output };
        let add = |rows: Range<usize>| {
            // SAFETY: these rows are in both tensors, and no other thread has them.
            let (x, y) = unsafe { operands.rows(rows, cols, width) };
            layer.add(self.targets.clone(), x, y);
        };
        // A parallel region costs more than the arithmetic of a lone row.
        let per_thread = rows.div_ceil(self.threads).next_multiple_of(LEAST_ROWS);
        let parts = rows.div_ceil(per_thread);
        if parts == 1 {
            add(0..rows);
            return Ok(());
        }
        context.par_for(parts, self.threads, |part| add(part * per_thread..rows.min((part + 1) * per_thread)))
    }
}

/// The layers' pairs; none if there is no pack.
///
/// # Safety
/// `place` is of as many layers, which outlive what is returned.
unsafe fn layers<'a>([address, count]: Place) -> &'a [OnnxLora] {
    if address == 0 {
        return &[];
    }
    // SAFETY: as the caller says.
    unsafe { slice::from_raw_parts(ptr::with_exposed_provenance(address as usize), count as usize) }
}

/// What threads read and write rows of.
struct Operands {
    x: *const f32,
    y: *mut f32,
}

// SAFETY: every row is given to one thread.
unsafe impl Sync for Operands {}
// SAFETY: as above.
unsafe impl Send for Operands {}

impl Operands {
    /// Some rows, of `cols` and of `width` values.
    ///
    /// # Safety
    /// They are within the memory, and nobody else has a part of those of `y`.
    #[expect(clippy::mut_from_ref, reason = "the caller gives each row to one thread")]
    unsafe fn rows(&self, rows: Range<usize>, cols: usize, width: usize) -> (&[f32], &mut [f32]) {
        // SAFETY: as the caller says.
        unsafe {
            let x = slice::from_raw_parts(self.x.add(rows.start * cols), rows.len() * cols);
            (x, slice::from_raw_parts_mut(self.y.add(rows.start * width), rows.len() * width))
        }
    }
}

/// A node's tensors by ONNX Runtime's own functions: `ort` describes each value whole, in a dozen allocations, whenever it is
/// asked for, which takes as long as a lone row's arithmetic.
struct Call(*mut OrtKernelContext);

impl Call {
    fn input(&self, index: usize) -> ort::Result<*mut OrtValue> {
        let mut value = ptr::null();
        // SAFETY: the context is that of the call that is running.
        ort::ortsys![@ort: unsafe KernelContext_GetInput(self.0, index, &mut value) as Result]?;
        if value.is_null() { Err(ort::Error::new("an input is missing")) } else { Ok(value.cast_mut()) }
    }

    fn output(&self, index: usize, dims: &[i64]) -> ort::Result<*mut OrtValue> {
        let mut value = ptr::null_mut();
        // SAFETY: as above; the shape has the length that is given.
        ort::ortsys![@ort: unsafe KernelContext_GetOutput(self.0, index, dims.as_ptr(), dims.len(), &mut value) as Result]?;
        if value.is_null() { Err(ort::Error::new("nobody reads the output")) } else { Ok(value) }
    }
}

/// Where a tensor's values lie.
fn data(tensor: *mut OrtValue) -> ort::Result<*mut f32> {
    let mut at = ptr::null_mut();
    // SAFETY: the running call's value, a tensor on the CPU.
    ort::ortsys![@ort: unsafe GetTensorMutableData(tensor, &mut at) as Result]?;
    Ok(at.cast())
}

/// A tensor's extents, and how many it has.
fn extents(tensor: *const OrtValue) -> ort::Result<([i64; EXTENTS_MAX], usize)> {
    let (mut extents, mut count) = ([0; EXTENTS_MAX], 0);
    let mut info: *mut OrtTensorTypeAndShapeInfo = ptr::null_mut();
    // SAFETY: the running call's value, a tensor.
    ort::ortsys![@ort: unsafe GetTensorTypeAndShape(tensor, &mut info) as Result]?;
    // SAFETY: what describes it was just made.
    let read = ort::ortsys![@ort: unsafe GetDimensionsCount(info, &mut count) as Result].and_then(|()| {
        // SAFETY: as above; there is room for as many extents.
        ort::ortsys![@ort: unsafe GetDimensions(info, extents.as_mut_ptr(), count.min(EXTENTS_MAX)) as Result]
    });
    // SAFETY: its last use.
    ort::ortsys![@ort: unsafe ReleaseTensorTypeAndShapeInfo(info)];
    read?;
    if count > EXTENTS_MAX {
        return Err(ort::Error::new(format!("{count} extents")));
    }
    Ok((extents, count))
}
