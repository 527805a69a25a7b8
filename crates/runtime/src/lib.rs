//! mp-runtime.
