//! Memory as it is taken and given back.

/// The bytes that are alive, and the most that were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tape {
    live: usize,
    peak: usize,
}

impl Tape {
    /// Begins with so many bytes alive.
    pub(super) fn from(live: usize) -> Self {
        Self { live, peak: live }
    }

    /// A tensor is made.
    pub(super) fn take(&mut self, bytes: usize) {
        self.live += bytes;
        self.peak = self.peak.max(self.live);
    }

    /// A tensor is let go.
    pub(super) fn give(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.live, "{bytes} of {}", self.live);
        self.live = self.live.saturating_sub(bytes);
    }

    /// A tensor is made and let go at once.
    pub(super) fn pass(&mut self, bytes: usize) {
        self.take(bytes);
        self.give(bytes);
    }

    /// A tensor takes the place of another, which is alive until it is there.
    pub(super) fn replace(&mut self, old: usize, new: usize) {
        self.take(new);
        self.give(old);
    }

    /// Returns the bytes that are alive.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Returns the most that were.
    pub(super) fn peak(&self) -> usize {
        self.peak
    }
}
