//! The `agentport` command. Everything it does lives in [`agentport::cli`].

use std::process::ExitCode;

/// Not the system's, unless it is built without the feature `mimalloc`, which
/// is there to compare the two.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    agentport::cli::main()
}
