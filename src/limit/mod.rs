//! Quotas: how much each key may do. Never asks the time: it is passed in.
