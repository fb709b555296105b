use super::*;
use crate::lora::LoraPair;
use crate::quant::{self, QMatrix, WeightBytes};
use crate::threads::ThreadPool;

/// Kernels and their scalar twins sum in another order, in f32.
const TWIN_TOLERANCE: f32 = 2e-5;
/// 16-bit activations against f32: an error of half a step each, relative to the norms.
const QUANTIZED_TOLERANCE: f32 = 3e-5;

fn noise(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 - 0.5
    };
    (0..len).map(|_| next() + next() + next()).collect()
}

fn weight(block_type: BlockType, rows: usize, cols: usize) -> (QMatrix, Vec<f32>) {
    let mut bytes = vec![0; block_type.row_size_bytes(cols).unwrap() * rows];
    quant::quantize(block_type, &noise(7, rows * cols), &mut bytes);
    let mut values = vec![0.0; rows * cols];
    quant::dequantize(block_type, &bytes, &mut values);
    (QMatrix::new(WeightBytes::Owned(bytes.into()), block_type, rows, cols).unwrap(), values)
}

fn product(kernels: Kernels, pool: &ThreadPool, x: &[f32], weight: &QMatrix, side: Option<&SidePath>) -> Vec<f32> {
    let mut activations = Activations::new();
    let mut input = activations.input(x, weight.cols());
    let mut out = vec![f32::NAN; input.rows() * weight.rows()];
    kernels.matmul(pool, &mut input, &mut [Product { weight, bias: None, out: &mut out }], side);
    out
}

/// Largest difference relative to the norms: `|a - b| / (‖x‖·‖w‖)`.
fn difference(a: &[f32], b: &[f32], x: &[f32], w: &[f32], cols: usize) -> f32 {
    let norm =
        |rows: &[f32]| rows.chunks(cols).map(|row| row.iter().map(|v| v * v).sum::<f32>().sqrt()).collect::<Vec<_>>();
    let (x, w) = (norm(x), norm(w));
    let relative = |(index, (a, b)): (usize, (&f32, &f32))| (a - b).abs() / (x[index / w.len()] * w[index % w.len()]);
    a.iter().zip(b).enumerate().map(relative).fold(0.0, f32::max)
}

fn each_kernel(mut check: impl FnMut(Kernels)) {
    Isa::ALL.iter().filter_map(|isa| Kernels::new(*isa)).for_each(&mut check);
}

#[test]
fn every_kernel_multiplies_every_block_type_like_its_scalar_twin_and_the_dequantized_weights() {
    let pool = ThreadPool::new(2);
    let scalar = Kernels::new(Isa::Scalar).unwrap();
    for block_type in BlockType::ALL {
        let block = block_type.block_len().max(32);
        // The widths are those of the real models, as far as the block type has them.
        let widths = [576, 640, 1536, 2048].into_iter().filter(|cols| cols % block == 0);
        let shapes = [(1, block), (16, block * 3), (37, block * 2)].into_iter().chain(widths.map(|cols| (17, cols)));
        for (out, cols) in shapes {
            let (weight, values) = weight(block_type, out, cols);
            for rows in (1..=20).filter(|rows| cols < 500 || [1, 4, 7, 8, 11, 20].contains(rows)) {
                let x = noise(3, rows * cols);
                let exact: Vec<f32> = x
                    .chunks(cols)
                    .flat_map(|x| values.chunks(cols).map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>()))
                    .collect();
                let twin = product(scalar, &pool, &x, &weight, None);
                each_kernel(|kernels| {
                    let actual = product(kernels, &pool, &x, &weight, None);
                    let what = format!("{kernels:?} {block_type} [{out}, {cols}] · {rows} rows");
                    let error = difference(&actual, &twin, &x, &values, cols);
                    assert!(error < TWIN_TOLERANCE, "{what}: {error} from the scalar twin");
                    let error = difference(&actual, &exact, &x, &values, cols);
                    assert!(error < QUANTIZED_TOLERANCE, "{what}: {error} from the dequantized weights");
                });
            }
        }
    }
}

/// 8-bit factors against f32: half a step of 1/127 of the largest value of a block of `a` and of a row of `b`, relative to
/// the delta's own norm. Single outputs differ more than the whole, whose error is below 1%.
const SIDE_PATH_TOLERANCE: f32 = 1e-2;
/// A value of `a·x` that is almost halfway between two of its 16-bit codes may be rounded to either.
const SIDE_PATH_TWIN_TOLERANCE: f32 = 1e-4;

fn pair(seed: u32, out: usize, rank: usize, cols: usize) -> LoraPair {
    let matrix = |seed, rows, cols| ndarray::Array2::from_shape_vec((rows, cols), noise(seed, rows * cols)).unwrap();
    LoraPair { a: matrix(seed, rank, cols), b: matrix(seed + 1, out, rank) }
}

#[test]
fn a_side_path_adds_its_delta_for_one_row_and_for_many() {
    let pool = ThreadPool::new(2);
    // Whole tiles and not, whole pairs of ranks and not, and a width that is no multiple of a block.
    for (out, rank, cols) in [(40, 5, 64), (576, 16, 1536), (32, 16, 64), (48, 3, 40)] {
        let block_type = if cols % 32 == 0 { BlockType::Q8_0 } else { BlockType::F32 };
        let (weight, _) = weight(block_type, out, cols);
        let lora = pair(11, out, rank, cols);
        let delta = lora.b.dot(&lora.a) * 0.5;
        for rows in [1, 2, 11] {
            let x = noise(5, rows * cols);
            let expected: Vec<f32> = x
                .chunks(cols)
                .flat_map(|x| {
                    delta.rows().into_iter().map(move |row| row.iter().zip(x).map(|(d, x)| d * x).sum::<f32>())
                })
                .collect();
            let norm = expected.iter().map(|value| value * value).sum::<f32>().sqrt();
            let scalar = Kernels::new(Isa::Scalar).unwrap();
            let side = |kernels| SidePath::new(&kernels, &SideMemory::default(), &[Some(&lora)], 0.5).unwrap();
            let twin = product(scalar, &pool, &x, &weight, Some(&side(scalar)));
            each_kernel(|kernels| {
                let what = format!("{kernels:?}, [{out}, {rank}, {cols}], {rows} rows");
                let with = product(kernels, &pool, &x, &weight, Some(&side(kernels)));
                let without = product(kernels, &pool, &x, &weight, None);
                let error =
                    with.iter().zip(&without).zip(&expected).map(|((with, without), delta)| with - without - delta);
                let error = error.map(|error| error * error).sum::<f32>().sqrt() / norm;
                assert!(error < SIDE_PATH_TOLERANCE, "{what}: {error} of the delta");
                let largest = twin.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                let error = with.iter().zip(&twin).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest;
                assert!(error < SIDE_PATH_TWIN_TOLERANCE, "{what}: {error} from the scalar twin");
            });
        }
    }
}

#[test]
fn a_gated_product_takes_the_side_paths_of_both_its_parts() {
    let pool = ThreadPool::new(2);
    let ((gate, _), (up, _)) = (weight(BlockType::Q4_0, 72, 96), weight(BlockType::Q4_1, 72, 96));
    let (gate_pair, up_pair) = (pair(21, 72, 7, 96), pair(31, 72, 4, 96));
    for rows in [1, 9] {
        let x = noise(9, rows * 96);
        each_kernel(|kernels| {
            let both =
                SidePath::new(&kernels, &SideMemory::default(), &[Some(&gate_pair), Some(&up_pair)], 0.25).unwrap();
            let alone = [&gate_pair, &up_pair]
                .map(|pair| SidePath::new(&kernels, &SideMemory::default(), &[Some(pair)], 0.25).unwrap());
            let mut expected = product(kernels, &pool, &x, &gate, Some(&alone[0]));
            kernels.gate(Activation::Silu, &mut expected, &product(kernels, &pool, &x, &up, Some(&alone[1])));
            let mut out = vec![f32::NAN; rows * 72];
            let mut activations = Activations::new();
            kernels.gated(&pool, &mut activations.input(&x, 96), [&gate, &up], Activation::Silu, Some(&both), &mut out);
            let error = out.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 1e-4, "{kernels:?}, {rows} rows: {error}");
        });
    }
}

#[test]
fn a_side_path_alone_adds_what_it_adds_in_its_products() {
    let pool = ThreadPool::new(2);
    for (out, cols) in [(72, 96), (40, 72)] {
        let (gate, up) = (pair(21, out, 7, cols), pair(31, out, 4, cols));
        let zeros =
            QMatrix::new(WeightBytes::Owned(vec![0; out * cols * 4].into()), BlockType::F32, out, cols).unwrap();
        for rows in [1, 11] {
            let (x, y) = (noise(9, rows * cols), noise(3, rows * out * 3));
            each_kernel(|kernels| {
                let side = |pairs: &[_]| SidePath::new(&kernels, &SideMemory::default(), pairs, 0.25).unwrap();
                let [of_gate, of_up] =
                    [&gate, &up].map(|pair| product(kernels, &pool, &x, &zeros, Some(&side(&[Some(pair)]))));
                let all = side(&[Some(&gate), None, Some(&up)]);
                for targets in [0..3, 1..3] {
                    let width = targets.len() * out;
                    let mut sum = y[..rows * width].to_vec();
                    kernels.add_side_path(&all, targets.clone(), &x, &mut sum);
                    for (index, (sum, before)) in sum.iter().zip(&y).enumerate() {
                        let (row, target, feature) = (index / width, targets.start + index % width / out, index % out);
                        let delta =
                            [Some(&of_gate), None, Some(&of_up)][target].map_or(0.0, |of| of[row * out + feature]);
                        let error = (sum - before - delta).abs();
                        assert!(error < 1e-5, "{kernels:?}, {rows} rows, {targets:?} at {index}: {error}");
                    }
                }
            });
        }
    }
}

#[test]
fn a_gated_product_equals_its_parts() {
    let pool = ThreadPool::new(2);
    let ((gate, gate_values), (up, _)) = (weight(BlockType::Q4_1, 72, 96), weight(BlockType::Q8_0, 72, 96));
    for (rows, activation) in [(1, Activation::Silu), (10, Activation::GeluTanh)] {
        let x = noise(9, rows * 96);
        each_kernel(|kernels| {
            let mut expected = product(kernels, &pool, &x, &gate, None);
            kernels.gate(activation, &mut expected, &product(kernels, &pool, &x, &up, None));
            let mut out = vec![f32::NAN; rows * 72];
            let mut activations = Activations::new();
            kernels.gated(&pool, &mut activations.input(&x, 96), [&gate, &up], activation, None, &mut out);
            let error = difference(&out, &expected, &x, &gate_values, 96);
            assert!(error < TWIN_TOLERANCE, "{kernels:?}, {rows} rows: {error}");
        });
    }
}

#[test]
fn row_operators_agree_with_f64() {
    let x = noise(1, 83);
    let y = noise(2, 83);
    let close = |a: f32, b: f64| assert!((f64::from(a) - b).abs() < 1e-5 * b.abs().max(1.0), "{a} is not {b}");
    each_kernel(|kernels| {
        let mut silu: Vec<f32> = x.iter().map(|x| x * 40.0).collect();
        kernels.gate(Activation::Silu, &mut silu, &y);
        for (index, silu) in silu.iter().enumerate() {
            let x = f64::from(x[index] * 40.0);
            close(*silu, x / (1.0 + (-x).exp()) * f64::from(y[index]));
        }
        let mut gelu = x.clone();
        kernels.gate(Activation::GeluTanh, &mut gelu, &y);
        for (index, gelu) in gelu.iter().enumerate() {
            let x = f64::from(x[index]);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            close(*gelu, 0.5 * x * (1.0 + inner.tanh()) * f64::from(y[index]));
        }
    });
}

#[test]
fn instruction_sets_are_read_as_they_are_written() {
    for isa in Isa::ALL {
        assert_eq!(isa.to_string().parse(), Ok(*isa));
    }
    let unknown = "sse".parse::<Isa>().unwrap_err();
    assert!(unknown.contains("\"sse\"") && unknown.contains("avx2"), "{unknown}");
}
