//! A list that mostly has one member, and then takes no allocation of its own.

use std::ops::{Deref, DerefMut};

#[derive(Clone, Debug)]
pub(super) enum Few<T> {
    None,
    One(T),
    /// Two or more, or what is left of them.
    Many(Vec<T>),
}

impl<T> Few<T> {
    pub fn push(&mut self, value: T) {
        *self = match std::mem::replace(self, Self::None) {
            Self::None => Self::One(value),
            Self::One(first) => Self::Many(vec![first, value]),
            Self::Many(mut all) => {
                all.push(value);
                Self::Many(all)
            }
        };
    }

    pub fn clear(&mut self) {
        *self = Self::None;
    }

    /// Takes one out; the last takes its place.
    pub fn swap_remove(&mut self, at: usize) -> Option<T> {
        match std::mem::replace(self, Self::None) {
            Self::One(only) if at == 0 => Some(only),
            Self::Many(mut all) if at < all.len() => {
                let gone = all.swap_remove(at);
                *self = all.into_iter().collect();
                Some(gone)
            }
            other => {
                *self = other;
                None
            }
        }
    }

    pub fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        let mut all = Vec::from(std::mem::replace(self, Self::None));
        all.retain(keep);
        *self = all.into();
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::None
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::None => &[],
            Self::One(only) => std::slice::from_ref(only),
            Self::Many(all) => all,
        }
    }
}

impl<T> DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::None => &mut [],
            Self::One(only) => std::slice::from_mut(only),
            Self::Many(all) => all,
        }
    }
}

impl<T> From<Vec<T>> for Few<T> {
    fn from(mut all: Vec<T>) -> Self {
        match all.len() {
            0 | 1 => all.pop().map_or(Self::None, Self::One),
            _ => {
                all.shrink_to_fit();
                Self::Many(all)
            }
        }
    }
}

impl<T> From<Few<T>> for Vec<T> {
    fn from(few: Few<T>) -> Self {
        match few {
            Few::None => Self::new(),
            Few::One(only) => vec![only],
            Few::Many(all) => all,
        }
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        let mut few = Self::None;
        for value in all {
            few.push(value);
        }
        few
    }
}

impl<T> Extend<T> for Few<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, all: I) {
        for value in all {
            self.push(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_any_length() {
        let mut few = Few::default();
        for length in 0..5 {
            assert_eq!(&*few, (0..length).collect::<Vec<_>>());
            assert_eq!(matches!(few, Few::One(_)), length == 1);
            few.push(length);
        }
        assert_eq!(few.swap_remove(1), Some(1));
        assert_eq!(few.swap_remove(4), None);
        assert_eq!(&*few, [0, 4, 2, 3]);
        few.retain(|n| *n == 2);
        assert!(matches!(few, Few::One(2)));
        assert_eq!((few.swap_remove(1), few.swap_remove(0)), (None, Some(2)));
        assert!(few.is_empty());
    }
}
