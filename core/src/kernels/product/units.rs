use std::ops::Range;

use super::{GROUP, TILE};
use crate::threads::{Shares, ThreadPool};

/// Rows that are multiplied with a panel before the next panel is unpacked: few enough for their codes to stay in
/// the second-level cache.
const ROWS_PER_PASS: usize = 256;
/// The last chunks of a region are this part of a worker's share: so long may one wait for the others.
const LEAST_PER_WORKER: usize = 64;

/// How rows × tiles are cut: a unit is one tile for one pass of rows; passes are the outer order, so that
/// neighbouring units read neighbouring weights.
pub(super) struct Units {
    rows: usize,
    rows_per_pass: usize,
}

impl Units {
    pub(super) fn new(rows: usize, features: usize, pool: &ThreadPool) -> Self {
        // With few tiles per worker (`a·x` of a side path), rows are cut smaller so that all workers have some.
        let tiles = features.div_ceil(TILE).max(1);
        let passes = (pool.worker_count() * 4).div_ceil(tiles);
        let rows_per_pass = rows.div_ceil(passes).next_multiple_of(GROUP).min(ROWS_PER_PASS);
        Self { rows, rows_per_pass }
    }

    pub(super) fn chunks(&self, tiles: usize, pool: &ThreadPool) -> Shares {
        let (units, workers) = (tiles * self.rows.div_ceil(self.rows_per_pass), pool.worker_count());
        let least = if workers == 1 { units } else { units / (workers * LEAST_PER_WORKER) };
        // One row's cost is reading weights, and one stretch of memory per worker is read fastest; more rows' workers
        // share what they unpack from.
        Shares::new(units, least, if self.rows == 1 { workers } else { 1 }, workers)
    }

    /// Calls `run(rows, tiles)` for each pass that `units` touches.
    pub(super) fn split(&self, units: Range<usize>, tiles: usize, mut run: impl FnMut(Range<usize>, Range<usize>)) {
        let mut unit = units.start;
        while unit < units.end {
            let pass = unit / tiles;
            let end = ((pass + 1) * tiles).min(units.end);
            let first = pass * self.rows_per_pass;
            run(first..(first + self.rows_per_pass).min(self.rows), unit % tiles..unit % tiles + end - unit);
            unit = end;
        }
    }
}
