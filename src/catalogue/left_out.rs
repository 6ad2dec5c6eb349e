//! [`LeftOut`]: what the log has said of elements that servers list and that are left out.
//!
//! Changes when another line about them is due. Lists are asked for again and again, and what is wrong
//! with them mostly stays the same: it is said once.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use parking_lot::Mutex;

use super::page::OfferedList;
use crate::model::ServerName;

/// So many elements that are left out are named in the log, of one list.
const NAMED: usize = 10;

/// What is wrong with elements of one list.
#[derive(Debug, Default)]
pub(super) struct Problems {
    named: Vec<String>,
    count: usize,
    hasher: DefaultHasher,
}

impl Problems {
    /// One more element is left out.
    pub(super) fn add(&mut self, problem: String) {
        self.count = self.count.saturating_add(1);
        problem.hash(&mut self.hasher);
        if self.named.len() < NAMED {
            self.named.push(problem);
        }
    }
}

/// What was said last of each list, as a number: the problems themselves are a server's words, and long.
#[derive(Debug, Default)]
pub(super) struct LeftOut(Mutex<HashMap<ServerName, Vec<(OfferedList, u64)>>>);

impl LeftOut {
    /// Says what is left out of a list that was had, unless that was said of the one before.
    pub(super) fn tell(&self, server: &ServerName, list: OfferedList, problems: &Problems) {
        if !self.is_news(server, list, problems) {
            return;
        }
        let noun = list.noun();
        for problem in &problems.named {
            tracing::warn!(server.name = %server, %problem, "server {server} lists a {noun} that is left out: {problem}");
        }
        if problems.count > problems.named.len() {
            let left_out = problems.count;
            tracing::warn!(server.name = %server, left_out, "server {server} lists {left_out} {noun}s that are left out");
        }
    }

    /// Of servers that are gone nothing is kept.
    pub(super) fn retain(&self, is_known: impl Fn(&ServerName) -> bool) {
        self.0.lock().retain(|server, _| is_known(server));
    }

    fn is_news(&self, server: &ServerName, list: OfferedList, problems: &Problems) -> bool {
        let mut said = self.0.lock();
        if problems.count == 0 {
            if let Some(lists) = said.get_mut(server) {
                lists.retain(|(of, _)| *of != list);
            }
            return false;
        }
        let now = problems.hasher.finish();
        let lists = said.entry(server.clone()).or_default();
        match lists.iter_mut().find(|(of, _)| *of == list) {
            Some((_, before)) => std::mem::replace(before, now) != now,
            None => {
                lists.push((list, now));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(texts: &[&str]) -> Problems {
        let mut problems = Problems::default();
        texts.iter().for_each(|text| problems.add((*text).to_owned()));
        problems
    }

    #[test]
    fn what_is_left_out_is_said_once_and_again_when_it_is_something_else() {
        let (told, server) = (LeftOut::default(), ServerName::parse("s").unwrap());
        let tools = |texts: &[&str]| told.is_news(&server, OfferedList::Tools, &problems(texts));
        assert!(!tools(&[]));
        assert!(tools(&["a", "b"]) && !tools(&["a", "b"]));
        assert!(told.is_news(&server, OfferedList::Prompts, &problems(&["a", "b"])));
        assert!(tools(&["a"]) && tools(&["a", "b"]));
        assert!(!tools(&[]) && tools(&["a", "b"]), "it was well in between");
        let many: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(tools(&many) && tools(&many[..99]), "those that are not named count, too");
        told.retain(|_| false);
        assert!(told.0.lock().is_empty());
    }
}
