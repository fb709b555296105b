//! `cloud-generator`: the command line of the server side.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The number of mimalloc's option `purge_delay` in its header: the crate names only the older ones.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

mod cli;

fn main() -> std::process::ExitCode {
    // Training allocates the same big buffers at every step, seconds apart: pages that are given back between steps
    // cost a fifth of its time, most of it for zeroing them again.
    // SAFETY: no other thread runs yet, and the number is one of an option.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    cli::run()
}
