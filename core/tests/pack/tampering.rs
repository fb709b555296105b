//! 10,000 single-bit flips and 1,000 truncations: each refused, and by the check that guards the place.

use edgeweld::Error;
use edgeweld::pack::{PackDefect, RawPack};
use edgeweld::verify::{VerifiedPool, verify_pool};

use crate::builder::*;

/// Which error a flip at `offset` must give, by the layout of docs/pack-format.md.
fn expects(offset: usize, manifest_size: usize, error: &Error) -> bool {
    use PackDefect::{FrameLength, ManifestLength, NotAPack};
    let key = 24 + manifest_size;
    match error {
        Error::InvalidPack { reason: NotAPack } => offset < 4 || (8..16).contains(&offset),
        Error::InvalidPack { reason: FrameLength } => (4..8).contains(&offset) || (20..24).contains(&offset),
        Error::InvalidPack { reason: ManifestLength { .. } } => (20..24).contains(&offset),
        Error::UnsupportedPackVersion { .. } => (16..20).contains(&offset),
        Error::BadSignature { .. } => (24..key).contains(&offset) || (key + 32..key + 96).contains(&offset),
        Error::UntrustedKey { .. } => (key..key + 32).contains(&offset),
        Error::DigestMismatch { .. } => offset >= key + 96,
        _ => false,
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }
}

fn refusal(bytes: Vec<u8>, pool: &VerifiedPool) -> Option<Error> {
    let raw = match RawPack::read(bytes) {
        Ok(raw) => raw,
        Err(error) => return Some(error),
    };
    let as_pack = edgeweld::verify::verify(&raw, &trust(), &model(), Some(pool)).err();
    // A pool's own kind error must not hide that tampering went unseen.
    match as_pack {
        Some(Error::InvalidPack { reason: PackDefect::Kind { .. } }) => verify_pool(&raw, &trust(), &model()).err(),
        other => other,
    }
}

#[test]
fn every_one_of_ten_thousand_bit_flips_is_refused_by_the_right_check() {
    let files = [dense_pack(), gates_pack(), pool_file()];
    let pool = verified_pool();
    let mut random = Random(1);
    for count in 0..10_000 {
        let file = &files[count % 3];
        let manifest_size = u32::from_le_bytes(file[20..24].try_into().unwrap()) as usize;
        // A third of the flips goes to the 24 fixed bytes and the trailer, which random offsets would rarely meet.
        let offset = match count % 9 {
            0..3 => random.below(24),
            3 => 24 + manifest_size + random.below(96),
            _ => random.below(file.len()),
        };
        let mut flipped = file.clone();
        flipped[offset] ^= 1 << random.below(8);
        match refusal(flipped, &pool) {
            Some(error) => assert!(expects(offset, manifest_size, &error), "byte {offset}: {error}"),
            None => panic!("a flip in byte {offset} was accepted"),
        }
    }
}

#[test]
fn every_one_of_a_thousand_truncations_is_refused_by_the_right_check() {
    let files = [dense_pack(), gates_pack(), pool_file()];
    let pool = verified_pool();
    let mut random = Random(2);
    for count in 0..1_000 {
        let file = &files[count % 3];
        let payload = 24 + u32::from_le_bytes(file[20..24].try_into().unwrap()) as usize + 96;
        let length =
            if count % 4 == 0 { payload + random.below(file.len() - payload) } else { random.below(file.len()) };
        let error = refusal(file[..length].to_vec(), &pool).expect("a truncated file was accepted");
        let right = match &error {
            Error::InvalidPack { reason: PackDefect::Truncated { actual_bytes, .. } } => {
                *actual_bytes == length as u64 && length <= payload
            }
            Error::InvalidPack { reason: PackDefect::PayloadLength { .. } } => length > payload,
            _ => false,
        };
        assert!(right, "{length} of {} bytes: {error}", file.len());
    }
}
