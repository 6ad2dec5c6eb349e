//! The form in which a tool definition is listed: under its exposed name, without what a client of
//! its era could not use.
//!
//! Changes when an era's schema of a tool does, or when we offer tasks.

use memchr::memmem;
use serde_json::value::RawValue;

use super::object::RawObject;
use super::outgoing::push_string;
use super::splice::{Edit, splice};
use super::tool::ToolDefinition;
use crate::model::{Era, ExposedName};

impl ToolDefinition {
    /// The definition with `name` in the place of the server's own; every other byte as received.
    #[must_use]
    pub fn renamed(&self, name: &ExposedName) -> Vec<u8> {
        self.edited(name, |_, _| Edit::Keep)
    }

    /// The definition as a client of `era` finds it in `tools/list`: renamed; without `execution`,
    /// which is about tasks, and we offer none; for a legacy client without an `outputSchema`
    /// whose root is not of type `object` (2025-11-25, schema `Tool.outputSchema`: `type` is the
    /// constant `object`). Every other byte as received.
    ///
    /// A tool that [`needs_tasks`](Self::needs_tasks) should not be listed at all.
    #[must_use]
    pub fn listed(&self, name: &ExposedName, era: Era) -> Vec<u8> {
        self.edited(name, |key, value| match (key, era) {
            ("execution", _) => Edit::Remove,
            ("outputSchema", Era::Legacy) if !has_object_root(value) => Edit::Remove,
            _ => Edit::Keep,
        })
    }

    /// Whether the tool can be called as a task only (2025-11-25, `execution.taskSupport` is
    /// `required`): a call without one is refused.
    #[must_use]
    pub fn needs_tasks(&self) -> bool {
        if memmem::find(&self.raw, b"taskSupport").is_none() {
            return false;
        }
        let support = || {
            let definition = RawObject::parse(std::str::from_utf8(&self.raw).ok()?).ok()?;
            let execution = RawObject::parse(definition.get("execution")?.get()).ok()?;
            Some(execution.get_str("taskSupport")? == "required")
        };
        support().unwrap_or_default()
    }

    fn edited(&self, name: &ExposedName, edit: impl Fn(&str, &RawValue) -> Edit) -> Vec<u8> {
        let edited = std::str::from_utf8(&self.raw).ok().and_then(|text| {
            splice(text, |key, value| match key {
                "name" => {
                    let mut new = Vec::with_capacity(name.as_str().len() + 2);
                    push_string(&mut new, name.as_str());
                    Edit::Replace(new)
                }
                _ => edit(key, value),
            })
        });
        // `parse` has read the same bytes as an object, so they can be spliced.
        edited.unwrap_or_default()
    }
}

/// Whether a schema's root says `"type":"object"`; a boolean schema and one without a type do not.
fn has_object_root(schema: &RawValue) -> bool {
    RawObject::parse(schema.get())
        .ok()
        .and_then(|schema| schema.get_str("type").map(|root| root == "object"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::splice::tests::{json, object};
    use super::super::tool::ToolDefinitionError;
    use super::*;

    fn tool(text: &str) -> ToolDefinition {
        ToolDefinition::parse(&Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    fn listed(text: &str, era: Era) -> String {
        let name = ExposedName::parse("up__t").unwrap();
        String::from_utf8(tool(text).listed(&name, era)).unwrap()
    }

    #[test]
    fn a_renamed_definition_keeps_every_other_byte() {
        let text = r#"{ "x-vendor" : {"name":"inner","n":1.0,"e":1e400}, "name" : "ec\u0068o","inputSchema":{"type":"object"} , "é":"\u00e9" }"#;
        let renamed = tool(text).renamed(&ExposedName::parse("up__echo").unwrap());
        assert_eq!(
            String::from_utf8(renamed).unwrap(),
            text.replace(r#""ec\u0068o""#, r#""up__echo""#)
        );
        assert_eq!(tool(text).name.as_str(), "echo");
    }

    #[test]
    fn execution_goes_for_everybody() {
        for era in [Era::Legacy, Era::Modern] {
            assert_eq!(
                listed(r#"{"execution":{"taskSupport":"optional"}, "name":"t"}"#, era),
                r#"{ "name":"up__t"}"#
            );
            assert_eq!(
                listed(r#"{"name":"t","execution":{} ,"x":{"execution":1}}"#, era),
                r#"{"name":"up__t","x":{"execution":1}}"#
            );
        }
    }

    #[test]
    fn a_legacy_client_is_spared_an_output_schema_it_must_refuse() {
        for schema in [
            r#"{"type":"array"}"#,
            r#"{"type":["object","null"]}"#,
            r#"{"properties":{"type":{"const":"object"}}}"#,
            "true",
            "null",
            "{}",
        ] {
            let text = format!(r#"{{"name":"t","outputSchema":{schema},"inputSchema":{{}}}}"#);
            assert_eq!(listed(&text, Era::Legacy), r#"{"name":"up__t","inputSchema":{}}"#);
            assert_eq!(listed(&text, Era::Modern), text.replace(r#""t""#, r#""up__t""#));
        }
        let text = r#"{"name":"t","outputSchema":{"$id":"x", "type" : "object"}}"#;
        assert_eq!(listed(text, Era::Legacy), text.replace(r#""t""#, r#""up__t""#));
    }

    #[test]
    fn a_tool_that_needs_tasks_is_known() {
        let needs = |text: &str| {
            let parsed = ToolDefinition::parse(&Bytes::copy_from_slice(text.as_bytes()));
            matches!(parsed, Err(ToolDefinitionError::NeedsTasks { .. }))
        };
        assert!(needs(r#"{"name":"t","execution":{"taskSupport":"required"}}"#));
        assert!(!needs(r#"{"name":"t","execution":{"taskSupport":"optional"}}"#));
        assert!(!needs(r#"{"name":"t","execution":{"taskSupport":true}}"#));
        assert!(!needs(r#"{"name":"t","execution":"taskSupport"}"#));
        assert!(!needs(r#"{"name":"t","x":{"execution":{"taskSupport":"required"}}}"#));
        assert!(!needs(r#"{"name":"t"}"#));
    }

    /// Any members, with those that the form is about more often than not.
    fn definitions() -> impl Strategy<Value = String> {
        let schema = prop_oneof![
            json(),
            Just("true".to_owned()),
            Just(r#"{"type":"object","x":1}"#.to_owned()),
            Just(r#"{ "type" : "array" }"#.to_owned()),
        ];
        let others = prop::collection::btree_map("[a-e]{1,2}", json(), 0..4);
        let members = (others, prop::option::of(json()), prop::option::of(schema)).prop_map(
            |(mut members, execution, schema)| {
                members.insert("name".to_owned(), r#""t""#.to_owned());
                members.extend(execution.map(|json| ("execution".to_owned(), json)));
                members.extend(schema.map(|json| ("outputSchema".to_owned(), json)));
                members
            },
        );
        object(members.boxed())
    }

    proptest! {
        #[test]
        fn the_listed_form_is_what_a_parser_would_make_of_it(text in definitions()) {
            let name = ExposedName::parse("up__t").unwrap();
            let tool = ToolDefinition::parse(&Bytes::from(text.clone()));
            prop_assume!(tool.is_ok());
            let tool = tool.unwrap();
            for era in [Era::Legacy, Era::Modern] {
                let mut expected: BTreeMap<String, serde_json::Value> =
                    serde_json::from_str(&text).unwrap();
                expected.insert("name".to_owned(), "up__t".into());
                expected.remove("execution");
                let unfit = |schema: &serde_json::Value| schema["type"] != "object";
                if era == Era::Legacy && expected.get("outputSchema").is_some_and(unfit) {
                    expected.remove("outputSchema");
                }
                let out = tool.listed(&name, era);
                let parsed: BTreeMap<String, serde_json::Value> =
                    serde_json::from_slice(&out).unwrap();
                prop_assert_eq!(parsed, expected);
            }
        }

        #[test]
        fn with_nothing_to_remove_the_listed_form_is_the_renamed_one(
            members in prop::collection::btree_map("[a-e]{1,2}", json(), 0..4)
        ) {
            let mut text = "{".to_owned();
            for (key, value) in &members {
                text.push_str(&format!("\"{key}\" :{value} , "));
            }
            text.push_str(r#""outputSchema":{"type":"object"},"name": "t" }"#);
            let (tool, name) = (tool(&text), ExposedName::parse("up__t").unwrap());
            let renamed = tool.renamed(&name);
            prop_assert_eq!(&tool.listed(&name, Era::Legacy), &renamed);
            prop_assert_eq!(&tool.listed(&name, Era::Modern), &renamed);
            prop_assert_eq!(String::from_utf8(renamed).unwrap(), text.replace(r#": "t" }"#, r#": "up__t" }"#));
        }
    }
}
