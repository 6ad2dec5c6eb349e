//! Changes to single members of an object's text, which leave every other byte as it is.
//!
//! Changes when another way of changing a member is needed.

use serde_json::value::RawValue;

use super::object::RawObject;

/// What becomes of one member.
pub(super) enum Edit {
    /// It stays, to the byte.
    Keep,
    /// It goes, with one of the commas around it.
    Remove,
    /// Its value becomes this JSON; its key and the spacing stay.
    Replace(Vec<u8>),
}

/// The object `text` with `edit` applied to each member; `None` when it is not an object or has a
/// key twice.
pub(super) fn splice(text: &str, mut edit: impl FnMut(&str, &RawValue) -> Edit) -> Option<Vec<u8>> {
    let object = RawObject::parse(text).ok()?;
    // The text up to the brace, then what stands between the commas, then the brace and the rest.
    let mut from = text.find('{')? + 1;
    let mut out = Vec::with_capacity(text.len() + 64);
    out.extend_from_slice(text.get(..from)?.as_bytes());
    let mut kept = false;
    for (key, value) in object.iter() {
        let start = value.get().as_ptr() as usize - text.as_ptr() as usize;
        let end = start + value.get().len();
        let comma = end + text.get(end..)?.find([',', '}'])?;
        let edit = edit(key, value);
        if !matches!(edit, Edit::Remove) {
            if kept {
                out.push(b',');
            }
            kept = true;
            let (before, after) = (text.get(from..start)?, text.get(end..comma)?);
            out.extend_from_slice(before.as_bytes());
            match &edit {
                Edit::Replace(new) => out.extend_from_slice(new),
                Edit::Keep | Edit::Remove => out.extend_from_slice(value.get().as_bytes()),
            }
            out.extend_from_slice(after.as_bytes());
        }
        from = comma + 1;
    }
    let rest = if object.is_empty() { from } else { from - 1 };
    out.extend_from_slice(text.get(rest..)?.as_bytes());
    Some(out)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// JSON text of any value, with spacing here and there.
    pub(in crate::protocol) fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|b| b.to_string()),
            any::<i64>().prop_map(|n| n.to_string()),
            "\\PC{0,8}".prop_map(|text| serde_json::Value::from(text).to_string()),
            Just(r#""},{\"execution\":,""#.to_owned()),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|items| format!("[{}]", items.join(" ,"))),
                object(prop::collection::btree_map("[a-e]{1,2}", inner, 0..4).boxed()),
            ]
        })
    }

    /// An object with these members, in an order and with spacing that vary.
    pub(in crate::protocol) fn object(
        members: BoxedStrategy<std::collections::BTreeMap<String, String>>,
    ) -> impl Strategy<Value = String> {
        let space = || prop_oneof![Just(""), Just(" "), Just("\n\t"), Just("\r\n ")];
        let spaces = (space(), space(), space(), space());
        (members.prop_map(|map| map.into_iter().collect::<Vec<_>>()).prop_shuffle(), spaces)
            .prop_map(|(members, (a, b, c, d))| {
                let members: Vec<String> = members
                    .into_iter()
                    .map(|(key, value)| {
                        format!("{a}{}{b}:{c}{value}{d}", serde_json::Value::from(key))
                    })
                    .collect();
                format!("{{{}{a}}}", members.join(","))
            })
    }

    fn without(text: &str, gone: &[&str]) -> String {
        let edit =
            |key: &str, _: &RawValue| if gone.contains(&key) { Edit::Remove } else { Edit::Keep };
        String::from_utf8(splice(text, edit).unwrap()).unwrap()
    }

    #[test]
    fn a_member_goes_from_any_place() {
        let text = r#" { "a" : 1 , "b":{"a":2} ,"c":[ 3 ] } "#;
        assert_eq!(without(text, &[]), text);
        assert_eq!(without(text, &["a"]), r#" { "b":{"a":2} ,"c":[ 3 ] } "#);
        assert_eq!(without(text, &["b"]), r#" { "a" : 1 ,"c":[ 3 ] } "#);
        assert_eq!(without(text, &["c"]), r#" { "a" : 1 , "b":{"a":2} } "#);
        assert_eq!(without(text, &["a", "b", "c"]), " {} ");
        assert_eq!(without("{ }", &["a"]), "{ }");
        assert_eq!(without(r#"{"\u0061":1,"b":","}"#, &["a"]), r#"{"b":","}"#);
    }

    #[test]
    fn what_is_no_object_is_left_to_the_caller() {
        for text in ["", "[]", "{", r#"{"a":1,"a":2}"#, "{} {}", "null"] {
            assert!(splice(text, |_, _| Edit::Remove).is_none(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn removal_and_replacement_are_what_a_parser_would_make_of_them(
            text in object(prop::collection::btree_map("[a-e]{1,2}|é", json(), 0..7).boxed()),
            gone in prop::collection::btree_set("[a-e]{1,2}|é", 0..5),
            changed in "[a-e]",
            new in json(),
        ) {
            let mut expected: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(&text).unwrap();
            expected.retain(|key, _| !gone.contains(key));
            if let Some(value) = expected.get_mut(&changed) {
                *value = serde_json::from_str(&new).unwrap();
            }
            let out = splice(&text, |key, _| match key {
                _ if gone.contains(key) => Edit::Remove,
                _ if key == changed => Edit::Replace(new.clone().into_bytes()),
                _ => Edit::Keep,
            })
            .unwrap();
            let parsed: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(parsed, expected);
        }

        #[test]
        fn without_an_edit_no_byte_changes(
            text in object(prop::collection::btree_map("[a-e]{1,2}|é", json(), 0..7).boxed()),
        ) {
            let out = splice(&text, |_, _| Edit::Keep).unwrap();
            prop_assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
