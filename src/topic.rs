//! Words: topics, patterns over them, and the filter a subscriber asks with.
//!
//! Holds only names and how they match. Must not know bytes on a wire or a disk, a clock, or any I/O.

use std::fmt;
use std::sync::Arc;

use crate::event::EventType;

/// Most bytes of a topic or a pattern.
pub const TOPIC_BYTES_MAX: usize = 200;

/// A topic: dot-separated tokens of `A-Z a-z 0-9 _ - : @ = ~`, at most 200 bytes. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`InvalidTopic`] names what is wrong with it.
    pub fn parse(name: &str) -> Result<Self, InvalidTopic> {
        check_length(name)?;
        for token in name.split('.') {
            check_token(token)?;
        }
        Ok(Self(name.into()))
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A pattern: a topic in which a token may be `*` (any one token) and the last may be `**` (one or more tokens).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`InvalidTopic`] names what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, InvalidTopic> {
        check_length(text)?;
        let mut tokens = text.split('.').peekable();
        while let Some(token) = tokens.next() {
            match token {
                "*" => {}
                "**" if tokens.peek().is_some() => return Err(InvalidTopic::DoubleStarNotLast),
                "**" => {}
                _ => check_token(token)?,
            }
        }
        Ok(Self(text.into()))
    }

    /// The pattern that every topic matches.
    #[must_use]
    pub fn all() -> Self {
        Self("**".into())
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The dot-separated tokens, wildcards among them.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// Whether it has no wildcard, so that it is one topic's name.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        !self.0.contains('*')
    }

    /// The topic that it names, when it has no wildcard.
    #[must_use]
    pub fn as_topic(&self) -> Option<Topic> {
        self.is_literal().then(|| Topic(self.0.clone()))
    }

    /// The text before the first wildcard: every topic that matches begins with it.
    #[must_use]
    pub fn literal_prefix(&self) -> &str {
        self.0.find('*').map_or(&self.0, |at| &self.0[..at])
    }

    /// Whether the topic named `topic` matches.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        // Most patterns name one topic, and most topics that they are held against are that one.
        if *self.0 == *topic {
            return true;
        }
        let mut names = topic.split('.');
        for token in self.tokens() {
            match (token, names.next()) {
                (_, None) => return false,
                ("**", Some(_)) => return true,
                ("*", Some(_)) => {}
                (token, Some(name)) if token == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Topic> for Pattern {
    fn from(topic: Topic) -> Self {
        Self(topic.0)
    }
}

/// What a subscriber wants: the events of the topics that match any pattern, of any of the types.
///
/// Patterns and types are sorted and free of repetition, so equal wishes are equal filters and share their work.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Filter {
    patterns: Box<[Pattern]>,
    /// Empty: every type. `None` within: events without a type.
    types: Box<[Option<EventType>]>,
}

impl Filter {
    /// A filter for `patterns` (none: everything) and `types` (none: every type).
    #[must_use]
    pub fn new(mut patterns: Vec<Pattern>, mut types: Vec<Option<EventType>>) -> Self {
        patterns.sort();
        patterns.dedup();
        if patterns.is_empty() || patterns.iter().any(|p| p.as_str() == "**") {
            patterns = vec![Pattern::all()];
        }
        types.sort();
        types.dedup();
        Self { patterns: patterns.into(), types: types.into() }
    }

    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Self::new(Vec::new(), Vec::new())
    }

    /// The patterns, sorted; never empty.
    #[must_use]
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether every topic matches, so that only the type is left to ask for.
    #[must_use]
    pub fn is_every_topic(&self) -> bool {
        self.patterns[0].as_str() == "**"
    }

    /// Whether every event matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.is_every_topic() && self.types.is_empty()
    }

    /// Whether it keeps every type.
    #[must_use]
    pub fn is_every_type(&self) -> bool {
        self.types.is_empty()
    }

    /// The topic it is for, when it is for exactly one.
    #[must_use]
    pub fn single_topic(&self) -> Option<Topic> {
        match &*self.patterns {
            [one] => one.as_topic(),
            _ => None,
        }
    }

    /// Whether no pattern has a wildcard.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.patterns.iter().all(Pattern::is_literal)
    }

    /// Whether events of `topic` can match.
    #[must_use]
    pub fn matches_topic(&self, topic: &str) -> bool {
        self.patterns.iter().any(|p| p.matches(topic))
    }

    /// Whether events of this type can match.
    #[must_use]
    pub fn matches_type(&self, event: Option<&str>) -> bool {
        self.types.is_empty() || self.types.iter().any(|t| t.as_ref().map(EventType::as_str) == event)
    }
}

fn check_length(name: &str) -> Result<(), InvalidTopic> {
    match name.len() {
        0 => Err(InvalidTopic::Empty),
        n if n > TOPIC_BYTES_MAX => Err(InvalidTopic::TooLong(n)),
        _ => Ok(()),
    }
}

fn check_token(token: &str) -> Result<(), InvalidTopic> {
    if token.is_empty() {
        return Err(InvalidTopic::EmptyToken);
    }
    match token.chars().find(|&c| !(c.is_ascii_alphanumeric() || "_-:@=~".contains(c))) {
        Some('*') => Err(InvalidTopic::Wildcard),
        Some(c) => Err(InvalidTopic::Character(c)),
        None => Ok(()),
    }
}

/// Why a text is no topic, or no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopic {
    #[error("it is empty")]
    Empty,
    #[error("it has {0} bytes; at most {TOPIC_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("it has an empty token; tokens are separated by single dots, as in orders.eu.42")]
    EmptyToken,
    #[error("it contains {0:?}; tokens are made of A-Z a-z 0-9 _ - : @ = ~")]
    Character(char),
    #[error("a wildcard stands for a whole token (orders.*.created, orders.**) and only in a pattern to subscribe to")]
    Wildcard,
    #[error("** stands for all the remaining tokens, so it can only be the last one")]
    DoubleStarNotLast,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_dot_separated_tokens() {
        for good in ["a", "orders.eu.42", "A-Z_a:z@0=9~", &"x".repeat(200)] {
            assert!(Topic::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a/b", "é", "a.*", "**", "a%2Eb", &"x".repeat(201)] {
            assert!(Topic::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wildcard_is_a_whole_token_and_the_double_star_the_last() {
        for good in ["*", "**", "a.*.b", "a.**", "*.**", "a.b"] {
            assert!(Pattern::parse(good).is_ok(), "{good}");
        }
        for bad in ["a*", "*a", "**.a", "a.**.b", "***", "", "a.", "a b"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_match_by_token() {
        let cases = [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.b.c", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("*.b", "a.b", true),
            ("a.**", "a.b", true),
            ("a.**", "a.b.c", true),
            ("a.**", "a", false),
            ("a.**", "ab.c", false),
            ("**", "a", true),
            ("**", "a.b.c", true),
            ("*.**", "a", false),
            ("*.**", "a.b", true),
        ];
        for (pattern, topic, want) in cases {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(topic), want, "{pattern} ~ {topic}");
        }
    }

    #[test]
    fn equal_wishes_are_equal_filters() {
        let p = |s| Pattern::parse(s).unwrap();
        assert_eq!(Filter::new(vec![p("b"), p("a"), p("b")], vec![]), Filter::new(vec![p("a"), p("b")], vec![]));
        assert!(Filter::new(vec![], vec![]).is_everything());
        assert_eq!(Filter::new(vec![p("a"), p("**")], vec![]), Filter::all());
    }

    #[test]
    fn the_untyped_event_is_a_type_of_its_own() {
        let f = Filter::new(vec![], vec![None, EventType::parse("x").unwrap()]);
        assert!(f.matches_type(None) && f.matches_type(Some("x")) && !f.matches_type(Some("y")));
    }
}
