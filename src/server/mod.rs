//! Builds the gateway from its configuration, binds, serves and drains.
