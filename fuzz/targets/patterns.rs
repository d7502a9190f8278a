//! Names, patterns and the trie beside a naive reading of the same rules.
//!
//! The input is lines. A line that begins with `-` removes the pattern behind it, one that begins
//! with `?` looks up a name, any other is filed as a pattern and read as a name and a user as well.

#![no_main]

use landline::{
    name::{Filter, Name, Pattern, UserName},
    topic::trie::Trie,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        run(text);
    }
});

/// Lines that are looked at: each is compared with all others.
const LINES_MAX: usize = 24;

fn run(text: &str) {
    let mut trie = Trie::default();
    let mut filed: Vec<(Pattern, usize)> = Vec::new();
    let (mut names, mut filters): (Vec<Name>, Vec<Filter>) = (Vec::new(), Vec::new());
    for (number, line) in text.split('\n').take(LINES_MAX).enumerate() {
        let (kind, rest) = match line.strip_prefix(['-', '?']) {
            Some(rest) => (line.as_bytes()[0], rest),
            None => (b'+', line),
        };
        check_rules(rest);
        names.extend(Name::parse(rest));
        filters.extend(Filter::parse(rest));
        let Ok(pattern) = Pattern::parse(rest) else { continue };
        match kind {
            b'-' => {
                let at = filed.iter().position(|(known, _)| *known == pattern);
                let value = at.map_or(number, |at| filed.swap_remove(at).1);
                assert_eq!(trie.remove(&pattern, &value), at.is_some(), "removing {rest:?}");
            }
            b'+' => {
                trie.insert(&pattern, number);
                filed.push((pattern, number));
            }
            _ => {}
        }
        assert_eq!((trie.len(), trie.is_empty()), (filed.len(), filed.is_empty()));
    }
    for name in &names {
        let mut found = trie.matching(name);
        found.sort_unstable();
        let matching = filed.iter().filter(|(pattern, _)| covers(pattern.as_str(), name.as_str()));
        let mut expected: Vec<usize> = matching.map(|(_, number)| *number).collect();
        expected.sort_unstable();
        assert_eq!(found, expected, "patterns that match {name:?}");
        for filter in &filters {
            let expected = covers(filter.as_str(), name.as_str());
            assert_eq!(filter.matches(name), expected, "{filter:?} and {name:?}");
        }
    }
    for (index, one) in filters.iter().enumerate() {
        for other in &filters[index..] {
            let expected = meet(one.as_str(), other.as_str());
            assert_eq!(one.overlaps(other), expected, "{one:?} and {other:?}");
            assert_eq!(other.overlaps(one), expected, "{other:?} and {one:?}");
        }
    }
}

/// The rules of `docs/protocol.md`, section "Names and patterns", as they stand there.
fn check_rules(text: &str) {
    let segments: Vec<&str> = text.split('/').collect();
    let bytes_max = match segments[0] {
        "$dead" if 1 < segments.len() => 261,
        "$presence" if 1 < segments.len() => 394,
        _ => 255,
    };
    let is_plain = |text: &str| !text.contains(['+', '#']) && !text.contains(char::is_control);
    let fits = text.len() <= bytes_max && !text.contains(char::is_control);
    let is_name = fits && segments.iter().all(|part| !part.is_empty() && is_plain(part));
    assert_eq!(Name::parse(text).is_ok(), is_name, "a name: {text:?}");
    let last = segments.len() - 1;
    let is_part = |(at, part): (usize, &&str)| match *part {
        "" => false,
        "+" => true,
        "#" => at == last,
        part => is_plain(part),
    };
    let is_filter = fits && segments.iter().enumerate().all(is_part);
    assert_eq!(Filter::parse(text).is_ok(), is_filter, "a topic or pattern: {text:?}");
    let is_pattern = matches!(Filter::parse(text), Ok(Filter::Pattern(_)));
    assert_eq!(is_pattern, is_filter && !is_name, "a pattern: {text:?}");
    let is_user =
        (1..=128).contains(&text.len()) && !text.contains('/') && !text.contains(char::is_control);
    assert_eq!(UserName::parse(text).is_ok(), is_user, "a user: {text:?}");
    if let Ok(name) = Name::parse(text) {
        let dead = name.dead_letters();
        assert_eq!(dead.is_none(), text.starts_with("$dead/"));
        if let Some(dead) = dead.filter(|_| text.len() <= 255) {
            assert!(Name::parse(dead.as_str()).is_ok(), "dead letters: {dead:?}");
            assert_eq!(dead.dead_letters_of().as_ref(), Some(&name));
        }
    }
}

/// Whether `name` is one that `filter` matches.
fn covers(filter: &str, name: &str) -> bool {
    fn rest(filter: &[&str], name: &[&str]) -> bool {
        match (filter.first(), name.first()) {
            (None, None) | (Some(&"#"), _) => true,
            (Some(&wanted), Some(&found)) if wanted == "+" || wanted == found => {
                rest(&filter[1..], &name[1..])
            }
            _ => false,
        }
    }
    let is_hidden = name.starts_with('$') && !filter.starts_with('$');
    !is_hidden && rest(&parts(filter), &parts(name))
}

/// Whether there is a name that both match: tries to write one down, segment by segment.
fn meet(one: &str, other: &str) -> bool {
    fn rest(one: &[&str], other: &[&str], written: &mut Vec<String>) -> bool {
        let (here, there) = (one.first().copied(), other.first().copied());
        let tail = |filter: &[&str]| {
            let part = |part: &&str| if *part == "+" { "x".to_owned() } else { (*part).to_owned() };
            filter.iter().filter(|part| **part != "#").map(part).collect::<Vec<_>>()
        };
        match (here, there) {
            (Some("#"), _) => written.extend(tail(other)),
            (_, Some("#")) => written.extend(tail(one)),
            (None, None) => {}
            (Some(a), Some(b)) if a == b || a == "+" || b == "+" => {
                let part = if a == "+" { b } else { a };
                written.push(if part == "+" { "x" } else { part }.to_owned());
                return rest(&one[1..], &other[1..], written);
            }
            _ => return false,
        }
        true
    }
    let mut written = Vec::new();
    if !rest(&parts(one), &parts(other), &mut written) {
        return false;
    }
    let name = if written.is_empty() { "x".to_owned() } else { written.join("/") };
    covers(one, &name) && covers(other, &name)
}

fn parts(text: &str) -> Vec<&str> {
    text.split('/').collect()
}
