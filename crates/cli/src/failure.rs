//! What a command can end with, and what becomes of it: an exit code, and a message unless another rank has it.

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The arguments do not parse, or only help was asked for.
    Usage(clap::Error),
    /// Configuration, data or the run.
    Train(mp_train::Error),
    /// The machine lacks something, and a report has said what.
    Unready,
    /// A layout differs from one rank, and a table has said how.
    Diverged,
}

impl From<mp_train::Error> for Failure {
    fn from(error: mp_train::Error) -> Self {
        Failure::Train(error)
    }
}

impl From<mp_comm::Error> for Failure {
    fn from(error: mp_comm::Error) -> Self {
        Failure::Train(error.into())
    }
}

impl Failure {
    /// Returns the exit code.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Usage(error) => error.exit_code().clamp(0, 2) as u8,
            Failure::Train(error) if error.is_input() => 2,
            Failure::Train(_) | Failure::Unready | Failure::Diverged => 1,
        }
    }

    /// Says whether this rank has something to say: a peer's failure is told by the peer.
    pub fn speaks(&self) -> bool {
        !matches!(self, Failure::Unready | Failure::Diverged | Failure::Train(mp_train::Error::Peer { .. }))
    }

    /// Prints the message.
    pub fn print(&self) {
        match self {
            Failure::Usage(error) => {
                // There is nobody left to tell if this cannot be printed.
                let _ = error.print();
            }
            Failure::Train(error) => eprintln!("error: {error}"),
            Failure::Unready | Failure::Diverged => {}
        }
    }
}

/// Makes an input error of a flag's value.
pub fn refused(flag: &'static str, value: impl std::fmt::Display, rule: impl Into<String>) -> mp_train::Error {
    mp_train::Error::Config { key: flag, value: value.to_string(), rule: rule.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_that_differs_ends_with_1_and_the_table_alone_says_why() {
        assert_eq!(Failure::Diverged.code(), 1);
        assert!(!Failure::Diverged.speaks());
    }
}
