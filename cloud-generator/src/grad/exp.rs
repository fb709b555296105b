//! `exp` without a call, so that the loops around it are vectorised; the system's is a call per element.

/// Above it the result would be infinite, below its negative a denormal.
const LIMIT: f32 = 87.0;
/// 1.5 · 2²³: adding it to a small number leaves the nearest whole number in the lowest bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts, the first exact when multiplied by a whole number below 2⁹.
const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);

/// `eˣ` within 2·10⁻⁷ of its value; arguments beyond ±87 count as ±87.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let x = x.clamp(-LIMIT, LIMIT);
    // eˣ = 2ⁿ · eʳ, |r| <= ln 2 / 2
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2.0 - n * LN_2.1;
    // Cephes' polynomial.
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    (p * r * r + r + 1.0) * f32::from_bits(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_systems_exp() {
        for i in -86_999..=86_999 {
            let x = i as f32 * 1e-3;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 2e-7, "{x}: {ours} {exact}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) > 0.0 && exp(1e9).is_finite());
    }
}
