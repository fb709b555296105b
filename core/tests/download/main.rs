//! Downloads against servers on the loopback interface that misbehave in one way each.

mod cache;
mod faults;
mod packs;
mod policy;
mod server;
