//! Topics, patterns and filters: what parses is what the contract's grammar says; and a name matches a pattern by a naive matcher, by
//! `Pattern::matches`, by the hub's trie and by the store's lists of tokens, or by none of them.

use std::collections::BTreeSet;

use tidelog::event::EventType;
use tidelog::hub::matcher::Matcher;
use tidelog::store::rocks::tokens::Tokens;
use tidelog::topic::{Filter, Pattern, Topic};

use super::source::Source;

/// Whether `name` is a topic, or with wildcards a pattern, by the words of the contract.
fn is_valid(name: &str, wildcards: bool) -> bool {
    let tokens: Vec<&str> = name.split('.').collect();
    let token = |at: usize, token: &str| match token {
        "*" => wildcards,
        "**" => wildcards && at + 1 == tokens.len(),
        "" => false,
        _ => token
            .bytes()
            .all(|b| matches!(b, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b':' | b'@' | b'=' | b'~')),
    };
    name.len() <= 200 && tokens.iter().enumerate().all(|(at, t)| token(at, t))
}

/// Matching by recursion over what is left of both.
fn matches(pattern: &[&str], name: &[&str]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        (["**"], [_, ..]) => true,
        ([p, pattern @ ..], [n, name @ ..]) => (*p == "*" || p == n) && matches(pattern, name),
        _ => false,
    }
}

fn naive(pattern: &Pattern, topic: &Topic) -> bool {
    let pattern: Vec<_> = pattern.as_str().split('.').collect();
    let name: Vec<_> = topic.as_str().split('.').collect();
    matches(&pattern, &name)
}

/// A name of few tokens, so that topics and patterns meet; or any text.
fn name(source: &mut Source<'_>) -> String {
    let shape = source.byte();
    if shape >= 0xf0 {
        return source.text();
    }
    let token =
        |source: &mut Source<'_>| source.choose(&["a", "b", "a", "b", "c", "*", "*", "**", "a~", "", "é", "*a"]);
    (0..=shape % 12).map(|_| token(source)).collect::<Vec<_>>().join(".")
}

pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let (mut topics, mut patterns) = (Vec::new(), Vec::new());
    while !source.is_empty() && topics.len() + patterns.len() < 48 {
        let name = name(&mut source);
        match Topic::parse(&name) {
            Ok(topic) => {
                assert!(is_valid(&name, false), "{name:?}");
                assert_eq!((topic.as_str(), &*topic.to_string()), (&*name, &*name));
                assert_eq!(Pattern::parse(&name).expect("a topic is a pattern").as_topic(), Some(topic.clone()));
                if !topics.contains(&topic) {
                    topics.push(topic);
                }
            }
            Err(why) => assert!(!is_valid(&name, false), "{name:?}: {why}"),
        }
        match Pattern::parse(&name) {
            Ok(pattern) => {
                assert!(is_valid(&name, true), "{name:?}");
                assert_eq!((pattern.as_str(), &*pattern.to_string()), (&*name, &*name));
                assert_eq!(pattern.is_literal(), is_valid(&name, false), "{name:?}");
                assert_eq!(pattern.tokens().collect::<Vec<_>>().join("."), name);
                patterns.push(pattern);
            }
            Err(why) => assert!(!is_valid(&name, true), "{name:?}: {why}"),
        }
    }
    for pattern in &patterns {
        for topic in &topics {
            let want = naive(pattern, topic);
            assert_eq!(pattern.matches(topic.as_str()), want, "{pattern} {topic}");
            assert!(!want || topic.as_str().starts_with(pattern.literal_prefix()), "{pattern} {topic}");
        }
    }
    let filters = filters(&mut source, &patterns);
    check_filters(&filters, &patterns, &topics);
    check_matcher(&filters, &topics, &mut source);
    check_tokens(&patterns, &topics, &mut source);
}

fn filters(source: &mut Source<'_>, patterns: &[Pattern]) -> Vec<Filter> {
    let mut filters = vec![Filter::all()];
    for some in patterns.chunks(usize::from(source.byte() % 4) + 1) {
        let types = if source.bit() { vec![EventType::parse("t").expect("it is a type"), None] } else { Vec::new() };
        filters.push(Filter::new(some.to_vec(), types));
    }
    filters
}

fn check_filters(filters: &[Filter], patterns: &[Pattern], topics: &[Topic]) {
    for filter in filters {
        let everything = topics.iter().all(|t| filter.matches_topic(t.as_str()));
        assert!(!filter.is_every_topic() || everything);
        assert!(filter.patterns().is_sorted() && !filter.patterns().is_empty());
        for topic in topics {
            assert_eq!(filter.matches_topic(topic.as_str()), filter.patterns().iter().any(|p| naive(p, topic)));
        }
    }
    // The order in which they are named, and how often, says nothing.
    let there = Filter::new(patterns.to_vec(), Vec::new());
    let back = Filter::new(patterns.iter().rev().chain(patterns).cloned().collect(), Vec::new());
    assert_eq!(there, back);
    for topic in topics.iter().filter(|_| !patterns.is_empty()) {
        assert_eq!(there.matches_topic(topic.as_str()), patterns.iter().any(|p| naive(p, topic)), "{topic}");
    }
}

fn check_matcher(filters: &[Filter], topics: &[Topic], source: &mut Source<'_>) {
    let mut matcher = Matcher::default();
    for (at, filter) in filters.iter().enumerate() {
        matcher.insert(filter, at);
    }
    let gone: BTreeSet<_> = (0..filters.len()).filter(|_| source.bit()).collect();
    for &at in &gone {
        matcher.remove(&filters[at], at);
    }
    for topic in topics {
        let mut found = BTreeSet::new();
        matcher.each(topic.as_str(), &mut |at| {
            found.insert(at);
        });
        let wants = |at: &usize| !gone.contains(at) && filters[*at].patterns().iter().any(|p| naive(p, topic));
        assert_eq!(found, (0..filters.len()).filter(wants).collect(), "{topic}");
    }
}

fn check_tokens(patterns: &[Pattern], topics: &[Topic], source: &mut Source<'_>) {
    let mut tokens = Tokens::default();
    let mut known: BTreeSet<u32> = BTreeSet::new();
    let numbered: Vec<_> = (0u32..).zip(topics).collect();
    for (number, topic) in &numbered {
        tokens.insert(*number, topic.as_str());
        known.insert(*number);
    }
    for (number, topic) in &numbered {
        if source.bit() {
            known.remove(number);
            tokens.forget(*number, topic.as_str(), |n| known.contains(&n));
        }
    }
    let end = u32::try_from(topics.len()).expect("they are few");
    let (from, to) = (source.byte() % 8, u32::from(source.byte()) % (end + 1));
    for (from, to) in [(0, end), (u32::from(from).min(to), to)] {
        for pattern in patterns {
            // As the store does it: what the lists have in common, of a fitting length, and by name where the lists do not say it all.
            let found: Vec<u32> = tokens.wanted(pattern).map_or_else(Vec::new, |wanted| {
                let fits = |n: &u32| wanted.length(tokens.length(*n));
                let by_name = |n: &u32| wanted.is_exact() || pattern.matches(numbered[*n as usize].1.as_str());
                wanted.common(from, to).into_iter().filter(fits).filter(by_name).collect()
            });
            let want =
                numbered.iter().filter(|(n, t)| (from..to).contains(n) && known.contains(n) && naive(pattern, t));
            assert_eq!(found, want.map(|(n, _)| *n).collect::<Vec<_>>(), "{pattern}");
        }
    }
}
