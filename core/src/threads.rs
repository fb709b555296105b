//! A persistent worker pool for parallel regions that last microseconds.
//!
//! Why not rayon? A decoder layer is five to seven regions of 20 to 200 µs each; waking sleeping workers for every
//! one costs as much as the work. These workers spin for a while after each region, then park.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};

/// Spins before a worker parks: some 100 µs, longer than the serial code between two regions of a token.
const SPINS_BEFORE_PARK: u32 = 4_000;
/// Spins between two yields while the caller waits for the last worker, which may have lost its core.
const SPINS_BEFORE_YIELD: u32 = 2_000;

thread_local! {
    static IN_REGION: Cell<bool> = const { Cell::new(false) };
}

type Job = *const (dyn Fn(usize, usize) + Sync);

struct Shared {
    /// Counts regions; a change is the signal to start.
    epoch: AtomicU32,
    /// Workers that have not finished the current region.
    running: AtomicUsize,
    stop: AtomicBool,
    parked: Box<[AtomicBool]>,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    worker_count: usize,
}

// SAFETY: `job` is written only by the caller that holds the region lock while no worker runs, and read by workers
// only between the release-store of `epoch` and their decrement of `running`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is only followed while the region's closure is borrowed by `run`.
unsafe impl Send for Shared {}

/// A fixed set of threads that run one closure together, again and again.
///
/// Any number of threads may share a pool; their regions run one after the other.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
    region: Mutex<()>,
}

impl ThreadPool {
    /// A pool of `threads` workers in all (at least one); the thread that calls [`run`](Self::run) is the first,
    /// so `threads - 1` are started. If the system refuses a thread, the pool is smaller.
    pub fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        let mut parked: Vec<AtomicBool> = Vec::with_capacity(threads);
        parked.resize_with(threads, || AtomicBool::new(false));
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            running: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            parked: parked.into(),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            worker_count: threads,
        });
        let mut workers = Vec::with_capacity(threads - 1);
        for worker in 1..threads {
            let shared = shared.clone();
            let name = format!("edgeweld-{worker}");
            match std::thread::Builder::new().name(name).spawn(move || work(&shared, worker)) {
                Ok(handle) => workers.push((handle.thread().clone(), Some(handle))),
                Err(error) => {
                    log::warn!("thread {worker} of {threads} could not be started: {error}");
                    break;
                }
            }
        }
        Self { shared, workers, region: Mutex::new(()) }
    }

    /// Threads that take part in a region, the caller included.
    pub fn worker_count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(worker, worker_count)` once on every worker, the caller being worker 0, and returns when all are
    /// done. Allocates nothing. Called from inside a region, it runs `job(0, 1)` alone.
    ///
    /// # Panics
    /// With the first panic of a worker, after every worker has finished; the pool stays usable.
    pub fn run<F: Fn(usize, usize) + Sync>(&self, job: F) {
        if self.workers.is_empty() || IN_REGION.get() {
            return job(0, 1);
        }
        let _region = lock(&self.region);
        let shared = &*self.shared;
        let count = self.worker_count();
        // Workers that could not be started have no part; the job sees only those that exist.
        let job = |worker: usize, _: usize| job(worker, count);
        let erased: *const (dyn Fn(usize, usize) + Sync + '_) = &job;
        // SAFETY: only the lifetime changes; `run` does not return before `running` is zero, so no worker follows the
        // pointer after `job` is gone. No worker reads `job` now, because the last region has ended.
        unsafe {
            *shared.job.get() = Some(std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync + '_), Job>(erased))
        };
        shared.running.store(self.workers.len(), Ordering::Relaxed);
        // SeqCst orders this store against the load of `parked`, as `work` orders the opposite pair.
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (index, (thread, _)) in self.workers.iter().enumerate() {
            if shared.parked[index + 1].load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        IN_REGION.set(true);
        let own = catch_unwind(AssertUnwindSafe(|| job(0, count)));
        IN_REGION.set(false);
        let mut spins = 0;
        while shared.running.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins % SPINS_BEFORE_YIELD == 0 {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        let theirs = lock(&shared.panic).take();
        if let Some(panic) = own.err().or(theirs) {
            drop(_region);
            resume_unwind(panic);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                // A worker catches every panic of a job, so joining cannot fail.
                let _ = handle.join();
            }
        }
    }
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPool").field("worker_count", &self.worker_count()).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(shared: &Shared, worker: usize) {
    IN_REGION.set(true);
    let mut seen = 0;
    loop {
        seen = wait_for_change(shared, worker, seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the epoch has changed, so the caller has stored a job and waits in `run` until `running` is zero.
        let job = unsafe { &*(*shared.job.get()).expect("a region has a job") };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(worker, shared.worker_count))) {
            lock(&shared.panic).get_or_insert(panic);
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }
}

/// Waits until the epoch differs from `seen`, and returns it. The caller cannot start the region after that one
/// before this worker has finished it, so none is missed.
fn wait_for_change(shared: &Shared, worker: usize, seen: u32) -> u32 {
    for _ in 0..SPINS_BEFORE_PARK {
        let epoch = shared.epoch.load(Ordering::Acquire);
        if epoch != seen {
            return epoch;
        }
        std::hint::spin_loop();
    }
    shared.parked[worker].store(true, Ordering::SeqCst);
    let epoch = loop {
        let epoch = shared.epoch.load(Ordering::SeqCst);
        if epoch != seen {
            break epoch;
        }
        std::thread::park();
    };
    shared.parked[worker].store(false, Ordering::SeqCst);
    epoch
}

/// Hands out `0..total` in chunks to whoever asks first, so that a slow core gets less.
#[derive(Debug)]
pub struct Chunks {
    next: AtomicUsize,
    total: usize,
    chunk: usize,
}

impl Chunks {
    /// Chunks of `chunk` items (at least one); the last may be shorter.
    pub fn new(total: usize, chunk: usize) -> Self {
        Self { next: AtomicUsize::new(0), total, chunk: chunk.max(1) }
    }

    /// The next chunk, or `None` when all are taken.
    pub fn take(&self) -> Option<Range<usize>> {
        let start = self.next.fetch_add(self.chunk, Ordering::Relaxed);
        (start < self.total).then(|| start..(start + self.chunk).min(self.total))
    }
}

/// Hands out `0..total` to each worker first from its own share, a stretch of neighbouring items, and then from what the
/// others have left. Chunks get smaller towards the end of a share: large ones are read fastest, and with small ones all
/// workers end together.
#[derive(Debug)]
pub struct Shares {
    next: [Next; SHARES_MAX],
    total: usize,
    least: usize,
    count: usize,
    /// Workers per share, rounded up.
    crowd: usize,
}

/// More workers than this have shares in common.
const SHARES_MAX: usize = 16;

/// First item of a share that is not handed out. On a cache line of its own, because each is one worker's as a rule.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Next(AtomicUsize);

impl Shares {
    /// `shares` equal shares (at least one) for `workers` workers, handed out in chunks of at least `least` items, but for
    /// the last of a share.
    pub fn new(total: usize, least: usize, shares: usize, workers: usize) -> Self {
        let count = shares.clamp(1, SHARES_MAX);
        let mut next: [Next; SHARES_MAX] = Default::default();
        for (share, next) in next[..count].iter_mut().enumerate() {
            *next = Next(AtomicUsize::new(total * share / count));
        }
        Self { next, total, least: least.max(1), count, crowd: workers.div_ceil(count).max(1) }
    }

    /// The next chunk for `worker`, or `None` when all are taken.
    pub fn take(&self, worker: usize) -> Option<Range<usize>> {
        (0..self.count).find_map(|offset| {
            let share = (worker + offset) % self.count;
            let end = self.total * (share + 1) / self.count;
            let next = &self.next[share].0;
            let chunk = |start: usize| ((end - start) / (2 * self.crowd)).max(self.least).min(end - start);
            let taken = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |start| {
                (start < end).then(|| start + chunk(start))
            });
            taken.ok().map(|start| start..start + chunk(start))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_every_worker_once_per_region() {
        let pool = ThreadPool::new(3);
        for _ in 0..1000 {
            let calls: [AtomicUsize; 3] = Default::default();
            pool.run(|worker, count| {
                assert_eq!(count, 3);
                calls[worker].fetch_add(1, Ordering::Relaxed);
            });
            assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn wakes_workers_that_have_parked() {
        let pool = ThreadPool::new(2);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(30));
            let sum = AtomicUsize::new(0);
            pool.run(|worker, _| _ = sum.fetch_add(worker + 1, Ordering::Relaxed));
            assert_eq!(sum.into_inner(), 3);
        }
    }

    #[test]
    fn chunks_cover_the_whole_range_without_overlap() {
        let pool = ThreadPool::new(4);
        let seen: Vec<AtomicUsize> = (0..1003).map(|_| AtomicUsize::new(0)).collect();
        let chunks = Chunks::new(seen.len(), 10);
        pool.run(|_, _| {
            while let Some(range) = chunks.take() {
                seen[range].iter().for_each(|item| _ = item.fetch_add(1, Ordering::Relaxed));
            }
        });
        assert!(seen.iter().all(|item| item.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn shares_cover_the_whole_range_without_overlap_whoever_asks() {
        for (total, shares, workers) in [(1003, 4, 4), (1003, 1, 4), (1003, 4, 1), (3, 4, 4), (200, 40, 20), (0, 2, 2)]
        {
            let seen: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
            let chunks = Shares::new(total, 10, shares, workers);
            ThreadPool::new(workers).run(|worker, _| {
                while let Some(range) = chunks.take(worker) {
                    seen[range].iter().for_each(|item| _ = item.fetch_add(1, Ordering::Relaxed));
                }
            });
            assert!(
                seen.iter().all(|item| item.load(Ordering::Relaxed) == 1),
                "{total} in {shares}, {workers} workers"
            );
        }
    }

    #[test]
    fn a_worker_takes_its_own_share_first() {
        let chunks = Shares::new(100, 10, 2, 2);
        assert_eq!(chunks.take(1), Some(50..75));
        assert_eq!(chunks.take(0), Some(0..25));
        let rest: Vec<_> = std::iter::from_fn(|| chunks.take(1)).collect();
        assert_eq!(rest, [75..87, 87..97, 97..100, 25..37, 37..47, 47..50]);
    }

    #[test]
    fn a_panic_of_any_worker_reaches_the_caller_and_the_pool_stays_usable() {
        let pool = ThreadPool::new(3);
        for guilty in 0..3 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(|worker, _| assert!(worker != guilty, "worker {worker} fails"));
            }));
            let reason = *caught.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(reason, format!("worker {guilty} fails"));
            let sum = AtomicUsize::new(0);
            pool.run(|_, _| _ = sum.fetch_add(1, Ordering::Relaxed));
            assert_eq!(sum.into_inner(), 3);
        }
    }

    #[test]
    fn a_region_inside_a_region_runs_alone() {
        let pool = ThreadPool::new(2);
        let inner = AtomicUsize::new(0);
        pool.run(|_, _| {
            pool.run(|worker, count| {
                assert_eq!((worker, count), (0, 1));
                inner.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(inner.into_inner(), 2);
    }

    #[test]
    fn threads_that_share_a_pool_take_turns() {
        let pool = ThreadPool::new(2);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|_| pool.run(|_, _| _ = total.fetch_add(1, Ordering::Relaxed))));
            }
        });
        assert_eq!(total.into_inner(), 4 * 200 * 2);
    }
}
