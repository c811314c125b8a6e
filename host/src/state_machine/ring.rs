//! The digest chain of the newest applied indices, so that nodes can compare it at an index that all of them have
//! applied. Pure memory; who compares is `raft/audit.rs`.

use std::collections::VecDeque;

/// Indices that are remembered: 1 MiB, and far more than nodes that keep up are apart.
pub const INDICES_MAX: usize = 65_536;

/// The first half of a digest: what envelopes and nodes tell each other.
pub type Short = [u8; 16];

pub fn short(digest: &[u8; 32]) -> Short {
    digest[..16].try_into().expect("32 bytes have 16")
}

/// Consecutive indices with the chain's digest at each.
#[derive(Default)]
pub struct Ring {
    first: u64,
    digests: VecDeque<Short>,
}

impl Ring {
    /// The next applied index. One that doesn't follow (the state was replaced) begins anew: what was known before is
    /// of another history.
    pub fn push(&mut self, index: u64, digest: Short) {
        if self.digests.is_empty() || index != self.first + self.digests.len() as u64 {
            self.digests.clear();
            self.first = index;
        }
        if self.digests.len() == INDICES_MAX {
            self.digests.pop_front();
            self.first += 1;
        }
        self.digests.push_back(digest);
    }

    /// None: not applied yet, or too long ago.
    pub fn get(&self, index: u64) -> Option<Short> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.digests.get(at).copied()
    }

    pub fn newest(&self) -> Option<(u64, Short)> {
        let digest = self.digests.back()?;
        Some((self.first + self.digests.len() as u64 - 1, *digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u64) -> Short {
        u128::from(n).to_le_bytes()
    }

    #[test]
    fn the_newest_indices_are_known_and_no_others() {
        let mut ring = Ring::default();
        assert_eq!((ring.get(0), ring.newest()), (None, None));
        let count = INDICES_MAX as u64 + 10;
        (0..count).for_each(|n| ring.push(n, digest(n)));
        assert_eq!(ring.newest(), Some((count - 1, digest(count - 1))));
        assert_eq!((ring.get(9), ring.get(10)), (None, Some(digest(10))));
        assert_eq!((ring.get(count - 1), ring.get(count)), (Some(digest(count - 1)), None));
    }

    #[test]
    fn a_jump_forgets_what_was_before() {
        let mut ring = Ring::default();
        (5..10).for_each(|n| ring.push(n, digest(n)));
        ring.push(100, digest(1));
        assert_eq!((ring.get(9), ring.get(100)), (None, Some(digest(1))));
        // Backwards too: a state that was replaced by an older one.
        ring.push(7, digest(2));
        assert_eq!((ring.get(100), ring.get(7)), (None, Some(digest(2))));
    }
}
