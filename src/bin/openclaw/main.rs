//! The bundled OpenClaw agent.
fn main() {}
