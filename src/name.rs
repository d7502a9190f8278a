//! Names of topics, keys and users, and patterns over them: parsed once, valid ever after.
//!
//! Holding a [`Name`], a [`Pattern`] or a [`UserName`] is proof that its rules were checked.

use std::{fmt, sync::Arc};

use crate::base::limits::{NAME_BYTES_MAX, USER_BYTES_MAX};

/// A topic name or state key such as `home/kitchen/lamp`. Cloning shares the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// A pattern such as `home/+/lamp` or `home/#`. It has at least one wildcard.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(Arc<str>);

/// What a subscription may name: one topic, or all that match a pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    Topic(Name),
    Pattern(Pattern),
}

/// A user's or consumer's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserName(Arc<str>);

/// Why a text is not a name or pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("is empty")]
    Empty,
    #[error("has {len} bytes, allowed are {max}")]
    TooLong { len: usize, max: usize },
    #[error("has an empty segment at byte {at}")]
    EmptySegment { at: usize },
    #[error("has a control character at byte {at}")]
    Control { at: usize },
    #[error("has a wildcard at byte {at}, which only a subscription may use")]
    Wildcard { at: usize },
    #[error("has '+' or '#' inside a segment at byte {at}; a wildcard stands alone in its segment")]
    PartialWildcard { at: usize },
    #[error("has '#' at byte {at}; it may only be the last segment")]
    HashNotLast { at: usize },
    #[error("has a '/' at byte {at}")]
    Slash { at: usize },
}

impl Name {
    /// Parses a name: 1 to 255 bytes, segments separated by `/`, none of them empty, no control
    /// characters, no `+` and no `#`.
    ///
    /// # Errors
    ///
    /// The first rule broken, with its position where there is one.
    pub fn parse(text: &str) -> Result<Name, NameError> {
        check_segments(text)?;
        match text.find(['+', '#']) {
            Some(at) => Err(NameError::Wildcard { at }),
            None => Ok(Name(text.into())),
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether only the relay itself may write it: its first character is `$`.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with('$')
    }

    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The topic for what could not be delivered of this one: `$dead/` and its name. What could
    /// not be delivered of such a topic stays there.
    #[must_use]
    pub fn dead_letters(&self) -> Option<Name> {
        let is_dead = self.0.starts_with(DEAD);
        (!is_dead).then(|| Name(format!("{DEAD}{}", self.0).into()))
    }

    /// The key of a user's presence in this topic: `$presence/`, the topic, `/` and the user.
    #[must_use]
    pub fn presence(&self, user: &UserName) -> Name {
        Name(format!("{PRESENCE}{}/{user}", self.0).into())
    }

    /// The topic whose undelivered events this one has.
    #[must_use]
    pub fn dead_letters_of(&self) -> Option<Name> {
        self.0.strip_prefix(DEAD).map(|origin| Name(origin.into()))
    }
}

/// What begins the names of topics for what could not be delivered.
const DEAD: &str = "$dead/";
/// What begins the keys of who is present where.
const PRESENCE: &str = "$presence/";

impl Pattern {
    /// Parses a pattern: a name in which whole segments may be `+` (any one segment) and the last
    /// one `#` (the rest, also none). At least one wildcard is there.
    ///
    /// # Errors
    ///
    /// The first rule broken, with its position where there is one.
    pub fn parse(text: &str) -> Result<Pattern, NameError> {
        check_segments(text)?;
        let mut at = 0;
        for segment in text.split('/') {
            let end = at + segment.len();
            if segment == "#" && end != text.len() {
                return Err(NameError::HashNotLast { at });
            }
            if let Some(offset) = segment.find(['+', '#'])
                && 1 < segment.len()
            {
                return Err(NameError::PartialWildcard { at: at + offset });
            }
            at = end + 1;
        }
        Ok(Pattern(text.into()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether `name` matches. Names that begin with `$` match only patterns that do too.
    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        if name.is_reserved() && !self.0.starts_with('$') {
            return false;
        }
        let mut names = name.segments();
        for wanted in self.segments() {
            if wanted == "#" {
                return true;
            }
            match names.next() {
                Some(found) if wanted == "+" || wanted == found => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }
}

impl Filter {
    /// Parses a topic name or, where it has a wildcard, a pattern.
    ///
    /// # Errors
    ///
    /// The first rule broken, with its position where there is one.
    pub fn parse(text: &str) -> Result<Filter, NameError> {
        if text.contains(['+', '#']) {
            Pattern::parse(text).map(Filter::Pattern)
        } else {
            Name::parse(text).map(Filter::Topic)
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Filter::Topic(name) => name.as_str(),
            Filter::Pattern(pattern) => pattern.as_str(),
        }
    }

    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        match self {
            Filter::Topic(topic) => topic == name,
            Filter::Pattern(pattern) => pattern.matches(name),
        }
    }

    /// Whether there is a name that both match.
    #[must_use]
    pub fn overlaps(&self, other: &Filter) -> bool {
        let reserved = |filter: &Filter| filter.as_str().starts_with('$');
        if reserved(self) != reserved(other) {
            return false;
        }
        let (mut ours, mut theirs) = (self.as_str().split('/'), other.as_str().split('/'));
        loop {
            match (ours.next(), theirs.next()) {
                (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
                (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
                (Some(our), Some(their)) if our == their => {}
                _ => return false,
            }
        }
    }
}

impl UserName {
    /// Parses a user's or consumer's name: 1 to 128 bytes, no `/`, no control characters.
    ///
    /// # Errors
    ///
    /// The first rule broken, with its position where there is one.
    pub fn parse(text: &str) -> Result<UserName, NameError> {
        check_length(text, USER_BYTES_MAX)?;
        check_control(text)?;
        match text.find('/') {
            Some(at) => Err(NameError::Slash { at }),
            None => Ok(UserName(text.into())),
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_segments(text: &str) -> Result<(), NameError> {
    // A topic of any allowed length can have dead letters, and users of any allowed name.
    let extra = match text {
        _ if text.starts_with(DEAD) => DEAD.len(),
        _ if text.starts_with(PRESENCE) => PRESENCE.len() + 1 + USER_BYTES_MAX,
        _ => 0,
    };
    check_length(text, NAME_BYTES_MAX + extra)?;
    check_control(text)?;
    let mut at = 0;
    for segment in text.split('/') {
        if segment.is_empty() {
            return Err(NameError::EmptySegment { at });
        }
        at += segment.len() + 1;
    }
    Ok(())
}

fn check_length(text: &str, max: usize) -> Result<(), NameError> {
    match text.len() {
        0 => Err(NameError::Empty),
        len if max < len => Err(NameError::TooLong { len, max }),
        _ => Ok(()),
    }
}

fn check_control(text: &str) -> Result<(), NameError> {
    text.find(char::is_control).map_or(Ok(()), |at| Err(NameError::Control { at }))
}

macro_rules! text_traits {
    ($($type:ident),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )*};
}

text_traits!(Name, Pattern, UserName);

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_breaks_a_rule_is_refused_with_the_place() {
        let long = "a".repeat(256);
        for (text, error) in [
            ("", NameError::Empty),
            (long.as_str(), NameError::TooLong { len: 256, max: 255 }),
            ("/a", NameError::EmptySegment { at: 0 }),
            ("a//b", NameError::EmptySegment { at: 2 }),
            ("a/", NameError::EmptySegment { at: 2 }),
            ("a/\u{7}", NameError::Control { at: 2 }),
            ("a/\u{85}b", NameError::Control { at: 2 }),
            ("a/+", NameError::Wildcard { at: 2 }),
            ("#", NameError::Wildcard { at: 0 }),
        ] {
            assert_eq!(Name::parse(text), Err(error), "{text:?}");
        }
        for text in ["a", "a/b", "$sys/x", "Küche/Licht 1", &"a".repeat(255)] {
            assert_eq!(Name::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_wildcard_stands_alone_and_hash_comes_last() {
        assert_eq!(Pattern::parse("a+/b"), Err(NameError::PartialWildcard { at: 1 }));
        assert_eq!(Pattern::parse("a/b#"), Err(NameError::PartialWildcard { at: 3 }));
        assert_eq!(Pattern::parse("#/a"), Err(NameError::HashNotLast { at: 0 }));
        assert_eq!(Pattern::parse("a/##"), Err(NameError::PartialWildcard { at: 2 }));
    }

    #[test]
    fn patterns_match_as_the_protocol_says() {
        for (pattern, name, expected) in [
            ("#", "a", true),
            ("#", "a/b", true),
            ("#", "$sys/a", false),
            ("+/a", "$sys/a", false),
            ("$sys/#", "$sys/a", true),
            ("$sys/#", "$sys", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("a/+", "a", false),
            ("a/+", "a/b", true),
            ("a/+", "a/b/c", false),
            ("+/+", "a/b", true),
            ("a/+/c", "a/b/c", true),
            ("a/+/c", "a/b/d", false),
            ("+/#", "a", true),
        ] {
            let name = Name::parse(name).unwrap();
            assert_eq!(
                Pattern::parse(pattern).unwrap().matches(&name),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn filters_overlap_where_a_name_matches_both() {
        for (one, other, expected) in [
            ("a", "a", true),
            ("a", "b", false),
            ("a/b", "a", false),
            ("a/#", "a", true),
            ("a/+", "a", false),
            ("a/+", "+/b", true),
            ("a/+/c", "a/b/d", false),
            ("+/c/#", "a/+", true),
            ("+/c/#", "a", false),
            ("#", "$sys/a", false),
            ("$sys/#", "$sys/+/b", true),
        ] {
            let (a, b) = (Filter::parse(one).unwrap(), Filter::parse(other).unwrap());
            assert_eq!((a.overlaps(&b), b.overlaps(&a)), (expected, expected), "{one} {other}");
        }
    }

    #[test]
    fn a_filter_matches_its_topic_or_what_its_pattern_does_and_shows_its_text() {
        for (filter, name, expected) in
            [("a/b", "a/b", true), ("a/b", "a", false), ("a/+", "a/b", true), ("a/+", "b/b", false)]
        {
            let parsed = Filter::parse(filter).unwrap();
            assert_eq!(parsed.matches(&Name::parse(name).unwrap()), expected, "{filter} {name}");
            assert_eq!(parsed.to_string(), filter);
        }
    }

    #[test]
    fn dead_letters_of_any_topic_have_a_name_and_those_of_dead_letters_none() {
        let name = Name::parse("a/b").unwrap();
        let dead = name.dead_letters().unwrap();
        assert_eq!(dead.as_str(), "$dead/a/b");
        assert_eq!((dead.dead_letters(), dead.dead_letters_of()), (None, Some(name.clone())));
        assert_eq!(name.dead_letters_of(), None);
    }

    #[test]
    fn what_the_relay_adds_to_the_longest_name_does_not_count() {
        let (name, user) = ("a".repeat(255), "u".repeat(128));
        for longest in [format!("$dead/{name}"), format!("$presence/{name}/{user}")] {
            assert_eq!(Name::parse(&longest).unwrap().as_str(), longest);
            let longer = longest.clone() + "x";
            let (len, max) = (longer.len(), longest.len());
            assert_eq!(Name::parse(&longer), Err(NameError::TooLong { len, max }));
        }
    }

    #[test]
    fn a_user_name_has_no_slash() {
        assert_eq!(UserName::parse("a/b"), Err(NameError::Slash { at: 1 }));
        assert_eq!(UserName::parse("anna").unwrap().as_str(), "anna");
        assert!(UserName::parse(&"a".repeat(129)).is_err());
    }
}
