//! Packs and pools: round trips, the mixture's reference figures, and every way to refuse a file.

mod builder;
mod mixture;
mod rejects;
mod round_trip;
mod tampering;
