//! Nearly always one.

/// Some things, of which there is nearly always one: then it takes no memory but its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Few<T> {
    One(T),
    /// None, or more than one.
    Other(Vec<T>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::Other(Vec::new())
    }
}

impl<T> Few<T> {
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Other(all) => all,
        }
    }

    /// Puts one at the end.
    pub(crate) fn push(&mut self, new: T) {
        *self = match std::mem::take(self) {
            Self::One(one) => Self::Other(vec![one, new]),
            Self::Other(all) if all.is_empty() => Self::One(new),
            Self::Other(mut all) => {
                all.push(new);
                Self::Other(all)
            }
        };
    }

    /// Takes out what does not fit.
    pub(crate) fn retain(&mut self, fits: impl FnMut(&T) -> bool) {
        let mut all = match std::mem::take(self) {
            Self::One(one) => vec![one],
            Self::Other(all) => all,
        };
        all.retain(fits);
        *self = if all.len() == 1 { all.pop().map_or_else(Self::default, Self::One) } else { Self::Other(all) };
    }
}
