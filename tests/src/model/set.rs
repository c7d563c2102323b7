//! Small sets of numbered things: packs, backups, chunks, or names of either kind of object.

use std::fmt;

/// A set of numbers below 16.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set(u16);

impl Set {
    /// Nothing.
    pub const EMPTY: Self = Self(0);

    /// The set of one.
    pub const fn of(member: u8) -> Self {
        Self(1 << member)
    }

    /// The numbers below `end`.
    pub const fn below(end: u8) -> Self {
        Self((1 << end) - 1)
    }

    /// Says whether it has a member.
    pub const fn has(self, member: u8) -> bool {
        self.0 & (1 << member) != 0
    }

    /// Says whether it has no member.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Says whether all its members are in another set.
    pub const fn within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// The members of either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The members of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The members that another set lacks.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Adds members.
    pub const fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Takes members out.
    pub const fn remove(&mut self, other: Self) {
        self.0 &= !other.0;
    }

    /// The members, ascending.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..16).filter(move |&member| self.has(member))
    }

    /// The greatest member.
    pub fn last(self) -> Option<u8> {
        self.iter().last()
    }

    /// Every non-empty subset.
    pub fn subsets(self) -> impl Iterator<Item = Self> {
        (1..=self.0).filter(move |bits| bits & !self.0 == 0).map(Self)
    }
}

impl FromIterator<u8> for Set {
    fn from_iter<I: IntoIterator<Item = u8>>(members: I) -> Self {
        members.into_iter().fold(Self::EMPTY, |set, member| set.or(Self::of(member)))
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
