//! `cloud-generator`: the command line of the server side.

#[global_allocator]
// Training allocates the same big buffers at every step; this allocator keeps their pages.
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
