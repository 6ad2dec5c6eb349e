//! [`scrubbed`]: texts about a server without the secrets that were given to it. PURE.
//!
//! Changes when another shape of a secret in a text must be recognised.

use crate::model::{CUT, Secret};

/// A secret that was cut is recognised by so many bytes of its beginning.
const TELLING: usize = 4;
/// What stands for a secret.
const MASK: &str = "***";

/// `text` without these secrets, also where it was cut in the middle of one.
pub(super) fn scrubbed(text: &str, secrets: &[Secret]) -> String {
    let secrets = || secrets.iter().map(Secret::expose).filter(|secret| !secret.is_empty());
    let mut text = secrets().fold(text.to_owned(), |text, secret| text.replace(secret, MASK));
    if !text.contains(CUT) {
        return text;
    }
    for secret in secrets() {
        let beginnings = secret.char_indices().map(|(at, _)| at).filter(|at| *at >= TELLING);
        // The longest first: a shorter one may end what is left of it.
        for beginning in beginnings.rev().filter_map(|at| secret.get(..at)) {
            text = text.replace(&format!("{beginning}{CUT}"), &format!("{MASK}{CUT}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_also_where_the_text_was_cut() {
        let secrets = [Secret::new("s3cr3t-ü-value".to_owned()), Secret::new(String::new())];
        let scrub = |text: &str| scrubbed(text, &secrets);
        assert_eq!(scrub("a s3cr3t-ü-value b"), "a *** b");
        assert_eq!(scrub("is `Bearer s3cr3t-ü-v…`; or s3cr…"), "is `Bearer ***…`; or ***…");
        assert_eq!(scrub("s3c… and s3cr3t- stay"), "s3c… and s3cr3t- stay");
    }
}
