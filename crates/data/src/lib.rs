//! mp-data.
