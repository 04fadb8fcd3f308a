//! Who is asking: tokens, keys and what they say. Never reads a file or asks the time.
