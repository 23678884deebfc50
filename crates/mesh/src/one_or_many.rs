//! A list that usually has one element.

/// A list that usually has one element, which is then stored inline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OneOrMany<T> {
    One(T),
    /// Zero, or more than one element.
    Many(Vec<T>),
}

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl<T> OneOrMany<T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(all) => all,
        }
    }

    /// Appends an element.
    pub(crate) fn push(&mut self, new: T) {
        *self = match std::mem::take(self) {
            Self::One(one) => Self::Many(vec![one, new]),
            Self::Many(all) if all.is_empty() => Self::One(new),
            Self::Many(mut all) => {
                all.push(new);
                Self::Many(all)
            }
        };
    }

    /// Keeps only the elements for which `keep` returns true.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        let mut all = match std::mem::take(self) {
            Self::One(one) => vec![one],
            Self::Many(all) => all,
        };
        all.retain(keep);
        *self = if all.len() == 1 {
            all.pop().map_or_else(Self::default, Self::One)
        } else {
            Self::Many(all)
        };
    }
}
