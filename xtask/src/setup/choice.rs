//! How one installation is chosen among candidates: the first that fits, with a word on each before it that did not.

use anyhow::Result;

/// An installation and the story of its choice.
pub struct Choice<T> {
    /// What was chosen.
    pub value: T,
    /// Where it came from, for people.
    pub origin: String,
    /// The origins of those that were looked at before and did not fit.
    pub refused: Vec<String>,
}

/// A candidate: where it came from, and how it is looked at when its turn comes.
pub struct Candidate<'a, T> {
    /// Where it came from, for people.
    pub origin: String,
    /// Looks at it; an error says why it does not fit.
    pub inspect: Box<dyn FnOnce() -> Result<T> + 'a>,
}

impl<'a, T> Candidate<'a, T> {
    /// A candidate from `origin`.
    pub fn new(origin: impl Into<String>, inspect: impl FnOnce() -> Result<T> + 'a) -> Self {
        Self { origin: origin.into(), inspect: Box::new(inspect) }
    }
}

/// Takes the first candidate that fits, else installs; says why those before it were not taken.
pub fn choose<T>(candidates: Vec<Candidate<'_, T>>, install: impl FnOnce() -> Result<T>) -> Result<Choice<T>> {
    let mut refused = Vec::new();
    for Candidate { origin, inspect } in candidates {
        match inspect() {
            Ok(value) => return Ok(Choice { value, origin, refused }),
            Err(error) => {
                let reason = format!("{error:#}").lines().map(str::trim).collect::<Vec<_>>().join("; ");
                // At once: a long download may follow, and the reader may want to mend the reason instead.
                eprintln!("not taken: {origin}: {reason}");
                refused.push(origin);
            }
        }
    }
    Ok(Choice { value: install()?, origin: "the cache".into(), refused })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn the_first_that_fits_is_taken_and_the_others_are_explained() {
        let candidates = vec![
            Candidate::new("LIBTORCH", || bail!("too old")),
            Candidate::new("the PATH", || Ok(7)),
            Candidate::new("never looked at", || panic!("one was taken before")),
        ];
        let choice = choose(candidates, || bail!("nothing is installed")).unwrap();
        assert_eq!((choice.value, choice.origin.as_str()), (7, "the PATH"));
        assert_eq!(choice.refused, ["LIBTORCH"]);
    }

    #[test]
    fn without_a_fitting_candidate_it_installs() {
        let choice = choose(vec![Candidate::new("MPICC", || bail!("no MPI"))], || Ok(1)).unwrap();
        assert_eq!((choice.value, choice.origin.as_str()), (1, "the cache"));
    }
}
