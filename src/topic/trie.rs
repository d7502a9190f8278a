//! Patterns by their segments, so that a new topic finds those that match it without asking all.
//!
//! Pure data. The work to match is bounded by the paths that the name's segments can take: at most
//! two per level, one named and one `+`.

use std::collections::HashMap;

use crate::name::{Name, Pattern};

/// Values filed under patterns.
#[derive(Debug)]
pub struct Trie<T> {
    root: Node<T>,
    len: usize,
}

#[derive(Debug)]
struct Node<T> {
    named: HashMap<Box<str>, Node<T>>,
    plus: Option<Box<Node<T>>>,
    /// Values of patterns that end here.
    here: Vec<T>,
    /// Values of patterns that end in `#` here.
    rest: Vec<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Node { named: HashMap::new(), plus: None, here: Vec::new(), rest: Vec::new() }
    }
}

impl<T> Default for Trie<T> {
    fn default() -> Self {
        Trie { root: Node::default(), len: 0 }
    }
}

impl<T: Clone + PartialEq> Trie<T> {
    /// How many values are filed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn insert(&mut self, pattern: &Pattern, value: T) {
        let mut node = &mut self.root;
        self.len += 1;
        for segment in pattern.segments() {
            node = match segment {
                "#" => return node.rest.push(value),
                "+" => node.plus.get_or_insert_default(),
                name => node.named.entry(name.into()).or_default(),
            };
        }
        node.here.push(value);
    }

    /// Removes one `value` filed under `pattern`. Returns whether it was there.
    pub fn remove(&mut self, pattern: &Pattern, value: &T) -> bool {
        let segments: Vec<&str> = pattern.segments().collect();
        let removed = self.root.remove(&segments, value);
        self.len -= usize::from(removed);
        removed
    }

    /// The values of all patterns that match `name`.
    #[must_use]
    pub fn matching(&self, name: &Name) -> Vec<T> {
        let segments: Vec<&str> = name.segments().collect();
        let mut found = Vec::new();
        self.root.matching(&segments, name.is_reserved(), &mut found);
        found
    }
}

impl<T: Clone + PartialEq> Node<T> {
    fn remove(&mut self, segments: &[&str], value: &T) -> bool {
        let take = |values: &mut Vec<T>| match values.iter().position(|filed| filed == value) {
            Some(index) => {
                values.swap_remove(index);
                true
            }
            None => false,
        };
        let Some((segment, rest)) = segments.split_first() else { return take(&mut self.here) };
        match *segment {
            "#" => take(&mut self.rest),
            "+" => {
                let Some(child) = &mut self.plus else { return false };
                let removed = child.remove(rest, value);
                if child.is_bare() {
                    self.plus = None;
                }
                removed
            }
            name => {
                let Some(child) = self.named.get_mut(name) else { return false };
                let removed = child.remove(rest, value);
                if child.is_bare() {
                    self.named.remove(name);
                }
                removed
            }
        }
    }

    fn is_bare(&self) -> bool {
        self.named.is_empty() && self.plus.is_none() && self.here.is_empty() && self.rest.is_empty()
    }

    /// `reserved`: the next segment is the first of a `$` name, which no wildcard matches.
    fn matching(&self, segments: &[&str], reserved: bool, found: &mut Vec<T>) {
        if !reserved {
            found.extend_from_slice(&self.rest);
        }
        let Some((segment, rest)) = segments.split_first() else {
            found.extend_from_slice(&self.here);
            return;
        };
        if let Some(child) = self.named.get(*segment) {
            child.matching(rest, false, found);
        }
        if let Some(child) = &self.plus
            && !reserved
        {
            child.matching(rest, false, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random;

    fn text(segments: &[&str]) -> String {
        let count = 1 + usize::try_from(random::below(4)).unwrap();
        let pick = || segments[usize::try_from(random::below(segments.len() as u64)).unwrap()];
        (0..count).map(|_| pick()).collect::<Vec<_>>().join("/")
    }

    #[test]
    fn random_patterns_match_in_the_trie_as_they_do_one_by_one() {
        let mut trie = Trie::default();
        let mut filed: Vec<(Pattern, u64)> = Vec::new();
        for step in 0..3_000 {
            let pattern = match random::below(3) {
                0 => format!("{}/#", text(&["a", "b", "+", "$s"])),
                1 => "#".to_owned(),
                _ => text(&["a", "b", "+", "$s"]),
            };
            let pattern = Pattern::parse(&pattern).unwrap();
            trie.insert(&pattern, step);
            filed.push((pattern, step));
            if 100 < filed.len() {
                let index = usize::try_from(random::below(filed.len() as u64)).unwrap();
                let (pattern, value) = filed.swap_remove(index);
                assert!(trie.remove(&pattern, &value));
                assert!(!trie.remove(&pattern, &value));
            }
            let name = Name::parse(&text(&["a", "b", "c", "$s"])).unwrap();
            let mut found = trie.matching(&name);
            found.sort_unstable();
            let matching = filed.iter().filter(|(pattern, _)| pattern.matches(&name));
            let mut expected: Vec<u64> = matching.map(|(_, value)| *value).collect();
            expected.sort_unstable();
            assert_eq!(found, expected, "{name}");
            assert_eq!((trie.len(), trie.is_empty()), (filed.len(), false));
        }
        for (pattern, value) in filed {
            trie.remove(&pattern, &value);
        }
        assert!(trie.root.is_bare() && trie.is_empty());
    }
}
