//! Which key a query sees.

use mp_runtime::kernels::attention::Mask;
use mp_runtime::kernels::runs;
use mp_runtime::{Device, Tensor};

use crate::pass::Positions;
use crate::Result;

/// Which key a query sees: one that every rule in force allows.
///
/// Rules look at positions, never at the shape of a tensor, so that they say the same of whole sequences, of a ring's blocks
/// and of one new token before all that came earlier. A query always sees its own position.
#[derive(Debug, Default)]
pub struct Visibility {
    /// None that comes later: `p_k ≤ p_q`.
    pub causal: bool,
    /// None that lies as far back, or, where `causal` is not in force, as far ahead: `|p_q − p_k| < window`.
    pub window: Option<usize>,
    /// None of another segment: `segment[p_q] = segment[p_k]`. `[b, seq]`, for the whole sequences.
    pub segments: Option<Tensor>,
}

impl Visibility {
    /// Makes another handle to the same segments under the same rules.
    pub fn share(&self) -> Self {
        Self { segments: self.segments.as_ref().map(Tensor::shallow_clone), ..*self }
    }

    /// Says whether a query sees itself and all before it, in sequences of `seq` tokens.
    pub fn is_causal_alone(&self, seq: usize) -> bool {
        self.causal && self.segments.is_none() && self.window.is_none_or(|window| window >= seq)
    }

    /// Returns which of the keys each query sees, or `None` if no query sees any. Where pairs have to be looked at on a device,
    /// which would have to be waited for, that none is seen is not known, and a mask of none comes instead.
    ///
    /// # Errors
    /// [`Error::Runtime`](crate::Error::Runtime) where segments are shorter than the sequence.
    pub fn between(&self, queries: &Positions, keys: &Positions, device: Device) -> Result<Option<Mask>> {
        let (Some((first_query, last_query)), Some((first_key, last_key))) = (queries.ends(), keys.ends()) else {
            return Ok(None);
        };
        let later = self.causal && last_key > first_query;
        let reach = (last_query.saturating_sub(first_key)).max(last_key.saturating_sub(first_query));
        let window = self.window.filter(|&window| reach >= window);
        let far = window.is_some_and(|window| {
            first_query.saturating_sub(last_key) >= window || first_key.saturating_sub(last_query) >= window
        });
        if far || (self.causal && first_key > last_query) {
            return Ok(None);
        }
        match (&self.segments, window, later) {
            (None, None, false) => Ok(Some(Mask::Full)),
            (None, None, true) if queries == keys => Ok(Some(Mask::Causal)),
            _ => self.seen(queries, keys, window, device),
        }
    }

    /// Looks at each pair of a query and a key.
    fn seen(
        &self,
        queries: &Positions,
        keys: &Positions,
        window: Option<usize>,
        device: Device,
    ) -> Result<Option<Mask>> {
        let column = |positions: &Positions| {
            let numbers: Vec<i64> = positions.iter().map(|position| position as i64).collect();
            Tensor::from_slice(&numbers).f_to_device(device)
        };
        let back_st = column(queries)?.f_unsqueeze(1)?.f_sub(&column(keys)?)?;
        let mut seen = match self.causal {
            true => back_st.f_ge(0)?,
            false => back_st.f_eq_tensor(&back_st)?,
        };
        if let Some(window) = window {
            seen = seen.f_logical_and(&back_st.f_abs()?.f_lt(window as i64)?)?;
        }
        seen = seen.f_unsqueeze(0)?;
        if let Some(segments) = &self.segments {
            let of = |positions: &Positions| runs::select(segments, 1, positions.runs());
            seen = seen.f_logical_and(&of(queries)?.f_unsqueeze(2)?.f_eq_tensor(&of(keys)?.f_unsqueeze(1)?)?)?;
        }
        let any = device != Device::Cpu || seen.f_any()?.f_int64_value(&[])? != 0;
        Ok(any.then_some(Mask::Seen(seen.f_unsqueeze(1)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEQ: usize = 8;
    const SEGMENTS: [i64; 2 * SEQ] = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3, -1, -1];

    fn rules() -> Vec<Visibility> {
        let mut rules = Vec::new();
        for causal in [false, true] {
            for window in [None, Some(1), Some(3), Some(SEQ)] {
                for segments in [false, true] {
                    let segments = segments.then(|| Tensor::from_slice(&SEGMENTS).view([2, SEQ as i64]));
                    rules.push(Visibility { causal, window, segments });
                }
            }
        }
        rules
    }

    /// The definition, pair by pair.
    fn sees(rule: &Visibility, sample: usize, query: usize, key: usize) -> bool {
        let segment = |position: usize| rule.segments.as_ref().map(|_| SEGMENTS[sample * SEQ + position]);
        (!rule.causal || key <= query)
            && rule.window.is_none_or(|window| query.abs_diff(key) < window)
            && segment(query) == segment(key)
    }

    fn parts() -> Vec<Positions> {
        let runs = [(0, 8, 8, 8), (0, 2, 6, 8), (2, 6, 6, 6), (7, 8, 8, 8), (0, 4, 4, 4), (4, 5, 5, 5)];
        runs.iter().map(|&(a, b, c, d)| Positions::new(SEQ, [a..b, c..d])).collect()
    }

    #[test]
    fn every_pair_is_seen_as_its_rules_say() {
        for rule in rules() {
            for (queries, keys) in
                parts().iter().flat_map(|queries| parts().into_iter().map(move |keys| (queries.clone(), keys)))
            {
                let mask = rule.between(&queries, &keys, Device::Cpu).unwrap();
                for (sample, (row, query)) in
                    (0..2).flat_map(|sample| queries.iter().enumerate().map(move |at| (sample, at)))
                {
                    for (column, key) in keys.iter().enumerate() {
                        let got = match &mask {
                            None => false,
                            Some(Mask::Full) => true,
                            Some(Mask::Causal) => column <= row,
                            Some(Mask::Seen(seen)) => {
                                let sample = (sample as i64).min(seen.size()[0] - 1);
                                seen.int64_value(&[sample, 0, row as i64, column as i64]) != 0
                            }
                        };
                        assert_eq!(got, sees(&rule, sample, query, key), "{rule:?}: {query} sees {key}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_mask_is_made_where_none_is_needed() {
        let whole = Positions::whole(SEQ);
        let one =
            |rule: Visibility, queries: &Positions, keys: &Positions| rule.between(queries, keys, Device::Cpu).unwrap();
        let causal = |window| Visibility { causal: true, window, segments: None };
        assert!(matches!(one(causal(Some(SEQ)), &whole, &whole), Some(Mask::Causal)));
        assert!(matches!(one(Visibility::default(), &whole, &whole), Some(Mask::Full)));
        let (early, late) = (whole.part(0..4), whole.part(4..8));
        assert!(matches!(one(causal(None), &late, &early), Some(Mask::Full)));
        assert!(one(causal(None), &early, &late).is_none());
        assert!(one(causal(Some(2)), &whole.part(6..8), &early).is_none());
    }
}
