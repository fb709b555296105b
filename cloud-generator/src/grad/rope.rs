//! Rotary position embedding on rows of heads.

use edgeweld::model::Rope;

/// Rotates every head of one row by its position, in place.
pub(super) fn rotate(row: &mut [f32], head_dim: usize, rope: &Rope, position: usize) {
    turn(row, head_dim, rope, position, 1.0);
}

/// The transpose of [`rotate`]: turns a gradient back.
pub(super) fn rotate_back(row: &mut [f32], head_dim: usize, rope: &Rope, position: usize) {
    turn(row, head_dim, rope, position, -1.0);
}

fn turn(row: &mut [f32], head_dim: usize, rope: &Rope, position: usize, sign: f32) {
    let (first, step) = if rope.interleaved { (1, 2) } else { (head_dim / 2, 1) };
    for (i, frequency) in rope.inverse_frequencies.iter().enumerate() {
        let (sin, cos) = (position as f32 * frequency).sin_cos();
        let sin = sin * sign;
        for head in row.chunks_mut(head_dim) {
            let (j, k) = (i * step, i * step + first);
            let (x, y) = (head[j], head[k]);
            head[j] = x * cos - y * sin;
            head[k] = x * sin + y * cos;
        }
    }
}
