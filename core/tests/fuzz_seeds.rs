//! The fuzz targets' identities (`core/fuzz`) on their seeds and on damaged copies, so that they hold on stable and do
//! not rot between runs of the fuzzer.

#[allow(unreachable_pub, reason = "shared with the fuzz crate")]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use fuzz::{TARGETS, Target};

#[test]
fn every_identity_holds_for_the_seeds() {
    for Target { name, check, seeds } in TARGETS {
        let seeds = seeds();
        assert!(!seeds.is_empty(), "{name}");
        seeds.iter().for_each(|seed| check(seed));
    }
}

#[test]
fn every_identity_holds_for_damaged_seeds() {
    // xorshift: the same damage on every machine.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize % below
    };
    for Target { name: _, check, seeds } in TARGETS {
        for seed in seeds() {
            for _ in 0..200 {
                let mut damaged = seed.clone();
                for _ in 0..=random(3) {
                    // Where the structure is: most seeds are longer behind.
                    let at = random(damaged.len().min(2048));
                    match random(4) {
                        0 => damaged.truncate(at.max(1)),
                        1 => damaged[at] ^= 1 << random(8),
                        2 => damaged[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                        _ => {
                            let (from, len) = (random(damaged.len()), random(16));
                            let piece = damaged[from..damaged.len().min(from + len)].to_vec();
                            damaged.splice(at..at, piece);
                        }
                    }
                }
                check(&damaged);
            }
        }
    }
}
