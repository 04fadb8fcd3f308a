//! Decides. Never opens a socket, reads a file or asks the time.
