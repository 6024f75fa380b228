//! A slab that grows page by page: it neither moves what it holds nor keeps room for as much again, as one that doubles does.
//!
//! What holds: a place is given to one value at a time, and the lowest page with room is filled first.

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};

use slab::Slab;

/// Values in a page: what is kept without being used is at most a page, and some ten thousand values are a hundred pages.
const PAGE: usize = 128;

/// Values by their places.
pub struct Pages<T> {
    /// Each with room for [`PAGE`] values, or empty and without any.
    all: Vec<Slab<T>>,
    /// The pages that are not full.
    open: BTreeSet<usize>,
    len: usize,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self { all: Vec::new(), open: BTreeSet::new(), len: 0 }
    }
}

impl<T> Pages<T> {
    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The place that the next value is given.
    pub fn vacant(&mut self) -> usize {
        let at = self.open_page();
        at * PAGE + self.all[at].vacant_key()
    }

    fn open_page(&mut self) -> usize {
        if let Some(&at) = self.open.first() {
            if self.all[at].capacity() == 0 {
                self.all[at].reserve_exact(PAGE);
            }
            return at;
        }
        let mut page = Slab::new();
        page.reserve_exact(PAGE);
        self.all.push(page);
        self.open.insert(self.all.len() - 1);
        self.all.len() - 1
    }

    /// Takes in a value, and gives its place.
    pub fn insert(&mut self, value: T) -> usize {
        let at = self.open_page();
        let within = self.all[at].insert(value);
        self.len += 1;
        if self.all[at].len() == PAGE {
            self.open.remove(&at);
        }
        at * PAGE + within
    }

    #[must_use]
    pub fn get(&self, place: usize) -> Option<&T> {
        self.all.get(place / PAGE)?.get(place % PAGE)
    }

    pub fn get_mut(&mut self, place: usize) -> Option<&mut T> {
        self.all.get_mut(place / PAGE)?.get_mut(place % PAGE)
    }

    /// Gives back the value in this place, if there is one.
    pub fn remove(&mut self, place: usize) -> Option<T> {
        let at = place / PAGE;
        let page = self.all.get_mut(at)?;
        let value = page.try_remove(place % PAGE)?;
        if page.is_empty() {
            *page = Slab::new();
        }
        self.open.insert(at);
        self.len -= 1;
        Some(value)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.all.iter_mut().flat_map(|page| page.iter_mut().map(|(_, value)| value))
    }
}

impl<T> Index<usize> for Pages<T> {
    type Output = T;

    fn index(&self, place: usize) -> &T {
        self.get(place).expect("whoever names a place has put something there")
    }
}

impl<T> IndexMut<usize> for Pages<T> {
    fn index_mut(&mut self, place: usize) -> &mut T {
        self.get_mut(place).expect("whoever names a place has put something there")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_map_would(steps in prop::collection::vec((any::<bool>(), 0..600_usize), 1..1500)) {
            let (mut pages, mut map) = (Pages::default(), HashMap::new());
            for (n, (insert, place)) in steps.into_iter().enumerate() {
                if insert {
                    let vacant = pages.vacant();
                    prop_assert_eq!(pages.insert(n), vacant);
                    prop_assert_eq!(map.insert(vacant, n), None);
                } else {
                    prop_assert_eq!(pages.remove(place), map.remove(&place));
                }
                prop_assert_eq!(pages.get(place), map.get(&place));
                prop_assert_eq!((pages.len(), pages.is_empty()), (map.len(), map.is_empty()));
            }
            prop_assert_eq!(pages.iter_mut().map(|n| *n).sum::<usize>(), map.values().sum::<usize>());
        }
    }

    #[test]
    fn room_is_given_back_and_never_kept_for_more_than_a_page() {
        let mut pages = Pages::default();
        for n in 0..10 * PAGE {
            assert_eq!(pages.insert(n), n);
        }
        let room = |pages: &Pages<usize>| pages.all.iter().map(Slab::capacity).sum::<usize>();
        assert_eq!(room(&pages), 10 * PAGE);
        (0..9 * PAGE).for_each(|n| assert_eq!(pages.remove(n), Some(n)));
        assert_eq!(room(&pages), PAGE);
        assert_eq!((pages.insert(0), room(&pages)), (0, 2 * PAGE));
    }
}
