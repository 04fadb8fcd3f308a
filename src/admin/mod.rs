//! Health, figures and keys, for operators.
