//! From a topic to the filters that want it: a map for literal patterns, a trie of tokens for the others.
//!
//! What holds: finding costs by the tokens of the topic and the filters found, not by how many filters there are.
//! A filter with several patterns may be found several times.

use std::collections::HashMap;

use crate::topic::{Filter, Pattern};

/// A filter's place in the hub's table.
type FilterAt = usize;

#[derive(Default)]
pub struct Matcher {
    literal: HashMap<Box<str>, Vec<FilterAt>>,
    wild: Node,
}

#[derive(Default)]
struct Node {
    children: HashMap<Box<str>, Node>,
    /// Under `*`.
    any: Option<Box<Node>>,
    /// Patterns that end here.
    here: Vec<FilterAt>,
    /// Patterns that end with `**` here: one or more tokens follow.
    rest: Vec<FilterAt>,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.any.is_none() && self.here.is_empty() && self.rest.is_empty()
    }

    fn insert<'a>(&mut self, mut tokens: impl Iterator<Item = &'a str>, at: FilterAt) {
        match tokens.next() {
            None => self.here.push(at),
            Some("**") => self.rest.push(at),
            Some("*") => self.any.get_or_insert_default().insert(tokens, at),
            Some(token) => self.children.entry(token.into()).or_default().insert(tokens, at),
        }
    }

    fn remove<'a>(&mut self, mut tokens: impl Iterator<Item = &'a str>, at: FilterAt) {
        match tokens.next() {
            None => self.here.retain(|&f| f != at),
            Some("**") => self.rest.retain(|&f| f != at),
            Some("*") => {
                if let Some(any) = &mut self.any {
                    any.remove(tokens, at);
                    if any.is_empty() {
                        self.any = None;
                    }
                }
            }
            Some(token) => {
                if let Some(child) = self.children.get_mut(token) {
                    child.remove(tokens, at);
                    if child.is_empty() {
                        self.children.remove(token);
                    }
                }
            }
        }
    }

    fn each<'a>(&self, mut tokens: impl Iterator<Item = &'a str> + Clone, found: &mut dyn FnMut(FilterAt)) {
        let Some(token) = tokens.next() else {
            self.here.iter().copied().for_each(&mut *found);
            return;
        };
        self.rest.iter().copied().for_each(&mut *found);
        if let Some(child) = self.children.get(token) {
            child.each(tokens.clone(), found);
        }
        if let Some(any) = &self.any {
            any.each(tokens, found);
        }
    }
}

impl Matcher {
    pub fn insert(&mut self, filter: &Filter, at: FilterAt) {
        for pattern in filter.patterns() {
            if pattern.is_literal() {
                self.literal.entry(pattern.as_str().into()).or_default().push(at);
            } else {
                self.wild.insert(pattern.tokens(), at);
            }
        }
    }

    pub fn remove(&mut self, filter: &Filter, at: FilterAt) {
        for pattern in filter.patterns() {
            if pattern.is_literal() {
                self.remove_literal(pattern, at);
            } else {
                self.wild.remove(pattern.tokens(), at);
            }
        }
    }

    fn remove_literal(&mut self, pattern: &Pattern, at: FilterAt) {
        if let Some(filters) = self.literal.get_mut(pattern.as_str()) {
            filters.retain(|&f| f != at);
            if filters.is_empty() {
                self.literal.remove(pattern.as_str());
            }
        }
    }

    /// Calls `found` with every filter that wants `topic`.
    pub fn each(&self, topic: &str, found: &mut dyn FnMut(FilterAt)) {
        if let Some(filters) = self.literal.get(topic) {
            filters.iter().copied().for_each(&mut *found);
        }
        if !self.wild.is_empty() {
            self.wild.each(topic.split('.'), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["a", "b", "c"])
    }

    fn pattern() -> impl Strategy<Value = Pattern> {
        (prop::collection::vec(prop::sample::select(vec!["a", "b", "*"]), 1..4), any::<bool>()).prop_map(
            |(mut tokens, rest)| {
                if rest {
                    tokens.push("**");
                }
                Pattern::parse(&tokens.join(".")).unwrap()
            },
        )
    }

    proptest! {
        #[test]
        fn it_finds_what_asking_every_filter_would_find(
            filters in prop::collection::vec(prop::collection::vec(pattern(), 1..3), 1..8),
            gone in any::<u8>(),
            topic in prop::collection::vec(token(), 1..5),
        ) {
            let topic = topic.join(".");
            let filters: Vec<Filter> = filters.into_iter().map(|p| Filter::new(p, vec![])).collect();
            let mut matcher = Matcher::default();
            for (at, filter) in filters.iter().enumerate() {
                matcher.insert(filter, at);
            }
            let left = |at: usize| gone >> at & 1 == 0;
            for (at, filter) in filters.iter().enumerate() {
                if !left(at) {
                    matcher.remove(filter, at);
                }
            }
            let mut found = Vec::new();
            matcher.each(&topic, &mut |at| found.push(at));
            found.sort_unstable();
            found.dedup();
            let want: Vec<_> =
                filters.iter().enumerate().filter(|(at, f)| left(*at) && f.matches_topic(&topic)).map(|(at, _)| at).collect();
            prop_assert_eq!(found, want);
            for (at, filter) in filters.iter().enumerate() {
                matcher.remove(filter, at);
            }
            prop_assert!(matcher.wild.is_empty() && matcher.literal.is_empty());
        }
    }
}
