//! The machine: files and their watching, names, sinks, figures and the clock.
