//! How ggml's reference quantisers choose the step and min of a K-quant group. The order of the float operations is
//! theirs, so that the bytes are too.

use super::block::{Block, GROUPS_MAX, nearest_int};

/// Groups whose weights are all smaller than this are zero.
pub(super) const SMALLEST: f32 = 1e-15;

/// Step and (negated) min that minimise the weighted error (`absolute` or squared) over `tries + 1` candidate steps.
pub(super) fn fit_affine(
    code_max: i32,
    x: &[f32],
    weights: &[f32],
    codes: &mut [u8],
    first: f32,
    tries: i32,
    absolute: bool,
) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (&x, w) in x.iter().zip(weights).skip(1) {
        min = if x < min { x } else { min };
        max = if x > max { x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max == min {
        codes.fill(0);
        return (0.0, -min);
    }
    let error = |step: f32, min: f32, codes: &[u8]| {
        x.iter().zip(weights).zip(codes).fold(0.0, |sum, ((x, w), &code)| {
            let difference = step * f32::from(code) + min - x;
            sum + w * if absolute { difference.abs() } else { difference * difference }
        })
    };
    let inverse = code_max as f32 / (max - min);
    let mut step = 1.0 / inverse;
    codes.iter_mut().zip(x).for_each(|(c, &x)| *c = nearest_int(inverse * (x - min)).clamp(0, code_max) as u8);
    let mut best_error = error(step, min, codes);
    let mut candidate = [0; 32];
    let candidate = &mut candidate[..x.len()];
    for attempt in 0..=tries {
        // `min` moves with the best fit, as in ggml.
        let inverse = (first + 0.1 * attempt as f32 + code_max as f32) / (max - min);
        let best_min = min;
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
        for ((c, &x), w) in candidate.iter_mut().zip(x).zip(weights) {
            *c = nearest_int(inverse * (x - best_min)).clamp(0, code_max) as u8;
            let l = f32::from(*c);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_step = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_step = sum_xl / sum_l2;
            }
            let this_error = error(this_step, this_min, candidate);
            if this_error < best_error {
                codes.copy_from_slice(candidate);
                (best_error, step, min) = (this_error, this_step, this_min);
            }
        }
    }
    (step, -min)
}

/// Step of a symmetric group (Q6_K), weighted by `x²`, over 19 candidates.
pub(super) fn fit_symmetric(half: i32, x: &[f32], codes: &mut [u8]) -> f32 {
    let max = largest(x);
    if max.abs() < SMALLEST {
        codes.fill(0);
        return 0.0;
    }
    let code = |inverse: f32, x: f32| nearest_int(inverse * x).clamp(-half, half - 1);
    let sums = |inverse: f32| {
        x.iter().fold((0.0, 0.0), |(sum_lx, sum_l2), &x| {
            let (w, l) = (x * x, code(inverse, x) as f32);
            (sum_lx + w * x * l, sum_l2 + w * l * l)
        })
    };
    let mut assign = |inverse: f32| {
        codes.iter_mut().zip(x).for_each(|(c, &x)| *c = (code(inverse, x) + half) as u8);
    };
    let inverse = -half as f32 / max;
    assign(inverse);
    let (sum_lx, sum_l2) = sums(inverse);
    let mut step = if sum_l2 != 0.0 { sum_lx / sum_l2 } else { 0.0 };
    let mut best = step * sum_lx;
    for attempt in (-9..=9).filter(|&attempt| attempt != 0) {
        let inverse = -(half as f32 + 0.1 * attempt as f32) / max;
        let (sum_lx, sum_l2) = sums(inverse);
        if sum_l2 > 0.0 && sum_lx * sum_lx > best * sum_l2 {
            assign(inverse);
            step = sum_lx / sum_l2;
            best = step * sum_lx;
        }
    }
    step
}

/// Step of a Q3_K group: nearest codes, then up to five rounds of coordinate descent on them.
pub(super) fn fit_q3(x: &[f32], codes: &mut [u8]) -> f32 {
    let max = largest(x);
    if max.abs() < SMALLEST {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -4.0 / max;
    let mut levels = [0; 16];
    let (mut sum_lx, mut sum_l2) = (0.0, 0.0);
    for (level, &x) in levels.iter_mut().zip(x) {
        *level = nearest_int(inverse * x).clamp(-4, 3);
        let (w, l) = (x * x, *level as f32);
        sum_lx += w * x * l;
        sum_l2 += w * l * l;
    }
    for _ in 0..5 {
        let mut changed = false;
        for (level, &x) in levels.iter_mut().zip(x) {
            let (w, l) = (x * x, *level as f32);
            let mut lx = sum_lx - w * x * l;
            if lx > 0.0 {
                let mut l2 = sum_l2 - w * l * l;
                let new = nearest_int(x * l2 / lx).clamp(-4, 3);
                if new != *level {
                    lx += w * x * new as f32;
                    l2 += w * new as f32 * new as f32;
                    if l2 > 0.0 && lx * lx * sum_l2 > sum_lx * sum_lx * l2 {
                        (*level, sum_lx, sum_l2) = (new, lx, l2);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    codes.iter_mut().zip(levels).for_each(|(code, level)| *code = (level + 4) as u8);
    if sum_l2 > 0.0 { sum_lx / sum_l2 } else { 0.0 }
}

/// Nearest codes for the steps that `block` ended up with. Groups whose step became 0 keep theirs.
pub(super) fn nearest_codes<B: Block>(block: &B, x: &[f32], codes: &mut [u8]) {
    let (mut steps, mut mins) = ([0.0; GROUPS_MAX], [0.0; GROUPS_MAX]);
    block.steps(&mut steps, &mut mins);
    let groups = x.chunks(B::GROUP).zip(codes.chunks_mut(B::GROUP));
    for ((x, codes), (step, min)) in groups.zip(steps.into_iter().zip(mins)) {
        if step == 0.0 {
            continue;
        }
        for (code, x) in codes.iter_mut().zip(x) {
            let level = nearest_int((x - min) / step) + i32::from(B::ZERO);
            *code = level.clamp(i32::from(*B::CODES.start()), i32::from(*B::CODES.end())) as u8;
        }
    }
}

/// The value of largest magnitude, with its sign.
pub(super) fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |largest: f32, &x| if x.abs() > largest.abs() { x } else { largest })
}
