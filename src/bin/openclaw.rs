//! The `openclaw` command. Everything it does lives in [`agentport::openclaw`].

use std::process::ExitCode;

fn main() -> ExitCode {
    agentport::openclaw::main(std::env::args_os(), false)
}
