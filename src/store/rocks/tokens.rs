//! Which topics have a token where: what wildcard patterns are resolved by, without looking through all names.
//!
//! What holds: every topic stands, ascending by number, under each of its first tokens, so that what a pattern selects is what the
//! lists of its literal tokens have in common. Plain memory: some 100 bytes for a topic with a token of its own, a few bytes for
//! one without. Must not know RocksDB.

use std::collections::HashMap;
use std::sync::Arc;

use crate::record::TopicNumber;
use crate::topic::Pattern;

/// Tokens beyond these are not indexed: a topic may have a hundred, and that should not cost a hundred entries. Names are looked
/// at for the rest.
const INDEXED_MAX: usize = 8;

/// A list with so many times as many numbers is searched for each number of the shorter; below that both are walked.
const SEARCH_FROM: usize = 16;

/// Ascending. Most tokens that many topics do not share stand in one.
#[derive(Debug)]
enum Numbers {
    One(TopicNumber),
    Many(Box<Many>),
}

#[derive(Debug)]
struct Many {
    /// Shared with whoever resolves a pattern meanwhile.
    list: Arc<Vec<TopicNumber>>,
    /// How many of `list` are forgotten.
    dead: usize,
}

/// The index.
#[derive(Debug, Default)]
pub struct Tokens {
    /// By place in the name.
    places: [HashMap<Box<str>, Numbers>; INDEXED_MAX],
    /// By topic number, how many tokens its name has: 100 at the most.
    lengths: Vec<u8>,
}

/// What a pattern is resolved from: numbers that stand in every list and pass [`Wanted::length`] are of topics that match, where
/// [`Wanted::is_exact`] says so, and else perhaps.
#[derive(Debug)]
pub struct Wanted {
    /// The shortest first; empty: any topic.
    lists: Vec<Arc<Vec<TopicNumber>>>,
    /// How many tokens, and whether there may be more.
    tokens: (usize, bool),
    exact: bool,
}

fn length_of(name: &str) -> u8 {
    u8::try_from(name.split('.').count()).expect("a topic has 200 bytes, so 100 tokens, at the most")
}

impl Tokens {
    /// Takes in a topic; cheapest when its number is larger than all before.
    pub fn insert(&mut self, number: TopicNumber, name: &str) {
        let at = number as usize;
        if self.lengths.len() <= at {
            self.lengths.resize(at + 1, 0);
        }
        self.lengths[at] = length_of(name);
        for (place, token) in self.places.iter_mut().zip(name.split('.')) {
            match place.get_mut(token) {
                None => drop(place.insert(token.into(), Numbers::One(number))),
                Some(numbers) => numbers.push(number),
            }
        }
    }

    /// Forgets a topic. `known` tells which numbers are not forgotten.
    pub fn forget(&mut self, number: TopicNumber, name: &str, known: impl Fn(TopicNumber) -> bool) {
        if let Some(length) = self.lengths.get_mut(number as usize) {
            *length = 0;
        }
        for (place, token) in self.places.iter_mut().zip(name.split('.')) {
            if place.get_mut(token).is_some_and(|numbers| numbers.forget_one(&known)) {
                place.remove(token);
            }
        }
    }

    /// What to resolve `pattern` from; `None` when nothing matches.
    #[must_use]
    pub fn wanted(&self, pattern: &Pattern) -> Option<Wanted> {
        let mut wanted = Wanted { lists: Vec::new(), tokens: (0, false), exact: true };
        for (at, token) in pattern.tokens().enumerate() {
            wanted.tokens.0 += 1;
            match (token, self.places.get(at)) {
                ("*", _) => {}
                ("**", _) => wanted.tokens.1 = true,
                (_, None) => wanted.exact = false,
                (token, Some(place)) => wanted.lists.push(match place.get(token)? {
                    Numbers::One(number) => Arc::new(vec![*number]),
                    Numbers::Many(many) => many.list.clone(),
                }),
            }
        }
        wanted.lists.sort_by_key(|list| list.len());
        Some(wanted)
    }

    /// How many tokens the topic of this number has; 0 when it is forgotten.
    #[must_use]
    pub fn length(&self, number: TopicNumber) -> usize {
        self.lengths.get(number as usize).copied().unwrap_or(0).into()
    }
}

impl Numbers {
    fn push(&mut self, number: TopicNumber) {
        let many = match self {
            Self::One(first) => {
                *self = Self::Many(Box::new(Many { list: Arc::new(vec![*first]), dead: 0 }));
                return self.push(number);
            }
            Self::Many(many) => many,
        };
        let list = Arc::make_mut(&mut many.list);
        let at = list.partition_point(|&n| n < number);
        list.insert(at, number);
    }

    /// One of them is forgotten; answers whether that leaves none. The list is cleared of the forgotten when they are half of it,
    /// so that each costs the same, however long the list.
    fn forget_one(&mut self, known: &impl Fn(TopicNumber) -> bool) -> bool {
        let Self::Many(many) = self else { return true };
        many.dead += 1;
        if many.dead * 2 >= many.list.len() {
            Arc::make_mut(&mut many.list).retain(|&n| known(n));
            many.dead = 0;
        }
        many.list.is_empty()
    }
}

impl Wanted {
    /// Whether what it selects need not be matched by name.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// Whether a name of so many tokens may match.
    #[must_use]
    pub fn length(&self, tokens: usize) -> bool {
        tokens == self.tokens.0 || self.tokens.1 && tokens > self.tokens.0
    }

    /// The numbers in `from..to` that stand in every list, ascending.
    #[must_use]
    pub fn common(&self, from: TopicNumber, to: TopicNumber) -> Vec<TopicNumber> {
        let within = |list: &[TopicNumber]| (list.partition_point(|&n| n < from), list.partition_point(|&n| n < to));
        let Some((shortest, rest)) = self.lists.split_first() else { return (from..to).collect() };
        let (begin, end) = within(shortest);
        let mut common = shortest[begin..end].to_vec();
        for list in rest {
            if common.is_empty() {
                break;
            }
            let (begin, end) = within(list);
            keep_common(&mut common, &list[begin..end]);
        }
        common
    }
}

/// Keeps what stands in `list` too. Both are ascending.
fn keep_common(numbers: &mut Vec<TopicNumber>, list: &[TopicNumber]) {
    if numbers.len().saturating_mul(SEARCH_FROM) < list.len() {
        numbers.retain(|n| list.binary_search(n).is_ok());
        return;
    }
    let mut rest = list.iter().peekable();
    numbers.retain(|n| {
        while rest.next_if(|&other| other < n).is_some() {}
        rest.peek() == Some(&n)
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = String> {
        let tokens = |n| prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), n);
        prop_oneof![8 => tokens(1..5), 1 => tokens(7..11)].prop_map(|tokens| tokens.join("."))
    }

    fn pattern() -> impl Strategy<Value = Pattern> {
        let tokens = |n| prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "*"]), n);
        let tokens = prop_oneof![8 => tokens(1..5), 1 => tokens(7..11)];
        (tokens, any::<bool>()).prop_map(|(mut tokens, more)| {
            tokens.extend(more.then_some("**"));
            Pattern::parse(&tokens.join(".")).unwrap()
        })
    }

    proptest! {
        #[test]
        fn a_pattern_selects_the_topics_that_it_matches(
            names in prop::collection::btree_set(name(), 0..60), patterns in prop::collection::vec(pattern(), 1..20),
            forgotten in prop::collection::vec(any::<prop::sample::Index>(), 0..60), from in 0u32..70,
        ) {
            let mut rows: Vec<Option<String>> = names.into_iter().map(Some).collect();
            let mut tokens = Tokens::default();
            let mut all: Vec<_> = (0u32..).zip(rows.iter().flatten()).collect();
            fastrand::Rng::with_seed(from.into()).shuffle(&mut all);
            for (number, name) in all {
                tokens.insert(number, name);
            }
            for at in forgotten.into_iter().filter(|_| !rows.is_empty()).map(|i| i.index(rows.len())).collect::<Vec<_>>() {
                if let Some(name) = rows[at].take() {
                    tokens.forget(u32::try_from(at).unwrap(), &name, |n| rows[n as usize].is_some());
                }
            }
            let end = u32::try_from(rows.len()).unwrap();
            for pattern in patterns {
                let matches = |n: &TopicNumber| rows[*n as usize].as_ref().is_some_and(|name| pattern.matches(name));
                let expected: Vec<_> = (from..end).filter(matches).collect();
                let got = tokens.wanted(&pattern).map_or_else(Vec::new, |wanted| {
                    let common = wanted.common(from, end).into_iter().filter(|&n| wanted.length(tokens.length(n)));
                    common.filter(|n| wanted.is_exact() || matches(n)).collect()
                });
                prop_assert_eq!(got, expected, "{}", pattern);
            }
            if rows.iter().all(Option::is_none) {
                prop_assert!(tokens.places.iter().all(HashMap::is_empty), "nothing is left of what was forgotten");
            }
        }
    }
}
