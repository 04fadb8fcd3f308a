//! The `agentport` command. Everything it does lives in [`agentport::cli`].
fn main() {}
