//! The record of a decision: its fields, its JSON, and what never stands in it.
