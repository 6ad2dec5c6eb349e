//! [`LeftOut`]: which elements that servers list are left out, and what the log has said of them.
//!
//! Changes when another line about them is due, or more of them is shown. Lists are asked for again and again, and what is wrong
//! with them mostly stays the same: it is said once.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use parking_lot::Mutex;

use super::page::OfferedList;
use crate::model::{ServerName, cut_after};

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

/// The most of a reason that is kept to be shown, in characters.
const REASON: usize = 300;

/// What one list of a server lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// Which list.
    pub list: OfferedList,
    /// How many of its elements are left out.
    pub count: usize,
    /// What is wrong with the first of them. It may repeat what the server said.
    pub reason: String,
    /// What was said of all, as a number: the problems themselves are a server's words, and long.
    said: u64,
}

/// What was said last of each list.
#[derive(Debug, Default)]
pub(super) struct LeftOut(Mutex<HashMap<ServerName, Vec<Lack>>>);

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

    /// What the lists of a server lack that were had last.
    pub(super) fn of(&self, server: &ServerName) -> Vec<Lack> {
        self.0.lock().get(server).cloned().unwrap_or_default()
    }

    /// Of servers that are gone nothing is kept.
    pub(super) fn retain(&self, is_known: impl Fn(&ServerName) -> bool) {
        self.0.lock().retain(|server, _| is_known(server));
    }

    fn is_news(&self, server: &ServerName, list: OfferedList, problems: &Problems) -> bool {
        let mut said = self.0.lock();
        if problems.count == 0 {
            if let Some(lists) = said.get_mut(server) {
                lists.retain(|lack| lack.list != list);
            }
            return false;
        }
        let first = problems.named.first().map(String::as_str).unwrap_or_default();
        let now = Lack {
            list,
            count: problems.count,
            reason: cut_after(first, REASON),
            said: problems.hasher.finish(),
        };
        let lists = said.entry(server.clone()).or_default();
        match lists.iter_mut().find(|lack| lack.list == list) {
            Some(before) => std::mem::replace(before, now.clone()).said != now.said,
            None => {
                lists.push(now);
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
        let lack: Vec<_> =
            told.of(&server).into_iter().map(|lack| (lack.list, lack.count)).collect();
        assert_eq!(lack, [(OfferedList::Tools, 2), (OfferedList::Prompts, 2)]);
        assert_eq!(told.of(&server).first().map(|lack| lack.reason.clone()), Some("a".to_owned()));
        assert!(!tools(&[]) && tools(&["a", "b"]), "it was well in between");
        let many: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(tools(&many) && tools(&many[..99]), "those that are not named count, too");
        told.retain(|_| false);
        assert!(told.0.lock().is_empty());
    }
}
