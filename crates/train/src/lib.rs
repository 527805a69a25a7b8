//! mp-train.
