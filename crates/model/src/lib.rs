//! mp-model.
