//! How much a row's delta must be amplified before rounding, so that its gain is 1.
//!
//! Within a row a rank-16 delta is a sum of many parts, so nearly normal with deviation `σ = ‖Δ‖/√cols`. Rounding `μ·Δ` to
//! whole steps `d` moves a weight by one step more at each odd multiple of `t·σ`, with `t = d / 2μσ`. A normal variable
//! beyond a threshold `z` has the mean magnitude `σ·2φ(z)`, so the row keeps
//! `<Δ, u> / ‖Δ‖² = d/σ · Σ 2φ((2k−1)·t)`: a function of one variable, inverted by a table. What real rows differ from
//! a normal one by (tails, unequal steps, codes at their ends) is learnt from the rows before.

/// Keeps a run of rows at gain 1.
#[derive(Default)]
pub(super) struct Amplification {
    /// `Σ (‖Δ‖² − <Δ, W'−W>)` of the rows so far: the next ones make up for it. A row of coarse steps comes only near its
    /// own share, and where one step is more than a row's whole delta, some rows take none.
    owed: f64,
    /// What the rows so far should have kept by the formula, and what they kept; the older the less they count.
    foreseen: f64,
    kept: f64,
}

/// Runs of rows over which what is owed is spread, that what was foreseen and kept is remembered for, and of the
/// formula's own that they start with.
const SPREAD: f64 = 2.0;
const MEMORY: f64 = 16.0;
const TRUSTED: f64 = 4.0;
/// No run makes up for more than its own share: where steps are coarse, one that did would be mostly noise.
const WANTED_MAX: f64 = 2.0;
/// The formula is not believed to be farther off than this.
const BIAS: std::ops::RangeInclusive<f64> = 0.25..=16.0;

impl Amplification {
    /// The gain to ask the formula for, in rows with `Σ ‖Δ‖² = norm`.
    #[inline(always)]
    pub(super) fn asked(&mut self, norm: f64) -> f64 {
        if self.foreseen == 0.0 {
            (self.foreseen, self.kept) = (TRUSTED * norm, TRUSTED * norm);
        }
        let wanted = 1.0 + self.owed / (SPREAD * norm);
        // Not `clamp`: NaN, from rows without a delta, asks for nothing.
        let wanted = if wanted > 0.0 { wanted.min(WANTED_MAX) } else { 0.0 };
        wanted / (self.kept / self.foreseen).clamp(*BIAS.start(), *BIAS.end())
    }

    /// Takes note of what these rows kept.
    #[inline(always)]
    pub(super) fn note(&mut self, norm: f64, asked: f64, kept: f64) {
        self.owed += norm - kept;
        // Rows that were asked for nothing teach nothing.
        if asked > 0.0 {
            self.foreseen += asked * norm - self.foreseen / MEMORY;
            self.kept += kept - self.kept / MEMORY;
        }
    }
}

/// The `μ` for a gain of `asked` where the steps are `step` wide and the delta's deviation is `deviation`.
#[inline(always)]
pub(super) fn factor(asked: f32, deviation: f32, step: f32) -> f32 {
    if asked > 0.0 { 0.5 * step / (threshold(asked * deviation / step) * deviation) } else { 0.0 }
}

/// The `t` with [`kept`]`(t) = share`.
#[inline(always)]
fn threshold(share: f32) -> f32 {
    let place = share.to_bits().wrapping_sub(SMALLEST_BITS);
    let (index, part) = (place >> PART_BITS, place & ((1 << PART_BITS) - 1));
    if share >= LARGEST {
        // Many steps: rounding is linear.
        0.5 / share
    } else if (index as usize) < THRESHOLDS.len() - 1 {
        let (left, right) = (THRESHOLDS[index as usize], THRESHOLDS[index as usize + 1]);
        left + (right - left) * (part as f32 / (1 << PART_BITS) as f32)
    } else {
        THRESHOLDS[0]
    }
}

/// The table's shares are `2^-26 · 2^(i/8)`, but straight within each doubling, as the bits of a float count; up to
/// [`LARGEST`].
const SMALLEST_BITS: u32 = (127 - 26) << 23;
const PART_BITS: u32 = 20;
const LARGEST: f32 = 2.0;
static THRESHOLDS: [f32; 27 * 8 + 1] = {
    let mut table = [0.0; 27 * 8 + 1];
    // Down the shares, `t` only grows.
    let (mut t, mut i) = (0.25, table.len());
    let mut next = kept(t + STEP);
    let mut last = kept(t);
    while i > 0 {
        i -= 1;
        let share = f32::from_bits(SMALLEST_BITS + ((i as u32) << PART_BITS)) as f64;
        while next > share {
            (last, t) = (next, t + STEP);
            next = kept(t + STEP);
        }
        table[i] = (t + STEP * (last - share) / (last - next)) as f32;
    }
    table
};
const STEP: f64 = 1.0 / 32.0;

/// `Σ 2φ((2k−1)·t)`, `φ` being the normal density.
const fn kept(t: f64) -> f64 {
    let mut sum = 0.0;
    let mut multiple = 1.0;
    while multiple * t < 9.0 {
        sum += 2.0 * normal_density(multiple * t);
        multiple += 2.0;
    }
    sum
}

// The table is computed by the compiler, which has no `exp`; so every machine has the same one.
const fn normal_density(z: f64) -> f64 {
    // e^x = (e^(x/1024))^1024
    let x = -0.5 * z * z / 1024.0;
    let mut power = 1.0 + x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0))));
    let mut squarings = 0;
    while squarings < 10 {
        power *= power;
        squarings += 1;
    }
    power * 0.398_942_280_401_432_7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_density_is_the_normal_one() {
        for z in [0.0_f64, 0.3, 1.0, 2.5, 6.0] {
            let expected = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
            assert!((normal_density(z) - expected).abs() < 1e-9 * expected, "{z}");
        }
    }

    #[test]
    fn the_threshold_inverts_what_is_kept() {
        for share in [1e-6_f32, 1e-4, 0.01, 0.1, 0.5, 1.0, 1.9, 2.0, 2.1, 50.0] {
            let found = kept(f64::from(threshold(share)));
            assert!((found / f64::from(share) - 1.0).abs() < 0.01, "{share}: {found}");
        }
        assert!(threshold(0.0).is_finite());
    }

    #[test]
    fn what_a_row_keeps_too_little_the_next_ones_make_up_for() {
        let mut amplification = Amplification::default();
        let mut kept = 0.0;
        for _ in 0..200 {
            let asked = amplification.asked(2.0);
            // A row that keeps a fifth less than the formula says.
            let row = 0.8 * asked * 2.0;
            amplification.note(2.0, asked, row);
            kept += row;
        }
        assert!((kept / 400.0 - 1.0).abs() < 0.005, "{kept}");
    }
}
