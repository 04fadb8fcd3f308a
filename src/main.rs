//! The `agentport` command. Everything it does lives in [`agentport::cli`].

use std::process::ExitCode;

/// Chosen by measurement, see `benches/README.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    agentport::cli::main()
}
