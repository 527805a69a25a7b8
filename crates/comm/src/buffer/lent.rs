//! Borrowed memory lent to other threads for as long as its owner waits.
//!
//! A blocking collective hands peers a [`Lent`] or [`LentMut`] token instead of a copy. The tokens carry no lifetime;
//! [`lend`] and [`lend_mut`] are sound because they return, or unwind, only once every token has been dropped. A
//! token that leaks blocks the lender for ever, which is safe.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::sync::{lock, wait, Condvar, Mutex};

/// Counts the tokens that are out.
#[derive(Default)]
struct Loan {
    out: Mutex<usize>,
    back: Condvar,
}

/// One token's entry in the count.
struct Receipt(Arc<Loan>);

impl Receipt {
    fn new(loan: &Arc<Loan>) -> Self {
        *lock(&loan.out) += 1;
        Self(Arc::clone(loan))
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        let mut out = lock(&self.0.out);
        *out -= 1;
        if *out == 0 {
            self.0.back.notify_all();
        }
    }
}

/// Blocks, also while unwinding, until all tokens are back.
struct Settle(Arc<Loan>);

impl Drop for Settle {
    fn drop(&mut self) {
        let mut out = lock(&self.0.out);
        while *out > 0 {
            out = wait(&self.0.back, out);
        }
    }
}

/// Memory of a waiting thread, to read.
pub(crate) struct Lent {
    start: *const u8,
    len: usize,
    receipt: Receipt,
}

// SAFETY: a token gives shared access to bytes, which are Sync; the lender keeps them borrowed until it is dropped.
unsafe impl Send for Lent {}

impl Clone for Lent {
    fn clone(&self) -> Self {
        Self { start: self.start, len: self.len, receipt: Receipt::new(&self.receipt.0) }
    }
}

impl Deref for Lent {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `lend` still borrows these bytes, since it waits for this token's receipt.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

/// Memory of a waiting thread, to overwrite.
pub(crate) struct LentMut {
    start: *mut u8,
    len: usize,
    receipt: Receipt,
}

// SAFETY: a token is the only access to its bytes, which are Send; the lender keeps them borrowed until it is dropped.
unsafe impl Send for LentMut {}

impl LentMut {
    /// Cuts at a byte.
    ///
    /// # Panics
    /// If `middle` is beyond the end.
    pub(crate) fn split_at(self, middle: usize) -> (LentMut, LentMut) {
        assert!(middle <= self.len, "cut at {middle} of {} bytes", self.len);
        let receipt = Receipt::new(&self.receipt.0);
        // SAFETY: within, or one past, the lent bytes, as just checked.
        let start = unsafe { self.start.add(middle) };
        let tail = LentMut { start, len: self.len - middle, receipt };
        (LentMut { len: middle, ..self }, tail)
    }
}

impl Deref for LentMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: as for `deref_mut`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for LentMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: `lend_mut` still borrows these bytes, since it waits for this token's receipt, and `split_at` makes
        // disjoint tokens only.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// Lends bytes to read; returns once `use_it` has returned and all tokens are dropped.
pub(crate) fn lend<R>(bytes: &[u8], use_it: impl FnOnce(Lent) -> R) -> R {
    let loan = Arc::new(Loan::default());
    let settle = Settle(Arc::clone(&loan));
    let result = use_it(Lent { start: bytes.as_ptr(), len: bytes.len(), receipt: Receipt::new(&loan) });
    drop(settle);
    result
}

/// Lends bytes to overwrite; returns once `use_it` has returned and all tokens are dropped.
pub(crate) fn lend_mut<R>(bytes: &mut [u8], use_it: impl FnOnce(LentMut) -> R) -> R {
    let loan = Arc::new(Loan::default());
    let settle = Settle(Arc::clone(&loan));
    let result = use_it(LentMut { start: bytes.as_mut_ptr(), len: bytes.len(), receipt: Receipt::new(&loan) });
    drop(settle);
    result
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn the_lender_waits_for_its_tokens() {
        let mut bytes = vec![0u8; 64];
        let (pass, take) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            let mut token: LentMut = take.recv().unwrap();
            std::thread::yield_now();
            token.fill(7);
        });
        lend_mut(&mut bytes, |token| {
            let (mut head, tail) = token.split_at(10);
            pass.send(tail).unwrap();
            head.fill(3);
        });
        assert!(bytes[..10].iter().all(|b| *b == 3) && bytes[10..].iter().all(|b| *b == 7));
        other.join().unwrap();
    }

    #[test]
    fn a_panicking_lender_waits_too() {
        let bytes = vec![5u8; 8];
        let (pass, take) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            let token: Lent = take.recv().unwrap();
            token.iter().map(|b| *b as usize).sum::<usize>()
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            lend(&bytes, |token| {
                pass.send(token.clone()).unwrap();
                panic!("on purpose");
            })
        }));
        drop(bytes);
        assert!(outcome.is_err());
        assert_eq!(other.join().unwrap(), 40);
    }
}
