//! [`Recording`]: what the ledger keeps of a tool's calls, made of all that the configuration says.
//!
//! Changes when the order changes in which that counts. It is decided when a catalogue is built; a call
//! only looks who makes it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::{
    ArgumentsLevel, AuditLevels, Kept, LevelRule, Levels, ResultsLevel, ServerName, ServerSpec,
};
use crate::redact::Pointers;

/// What the file says for all servers.
#[derive(Debug, Clone)]
pub struct RecordingSettings {
    /// Its payload level for arguments.
    pub arguments: ArgumentsLevel,
    /// Its payload level for results.
    pub results: ResultsLevel,
    /// Its rules for some calls.
    pub rules: Vec<LevelRule>,
    /// Places that are never kept.
    pub pointers: Vec<String>,
}

/// What is kept of one tool's calls.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The payload levels, by caller.
    pub levels: Levels,
    /// Places in arguments and results that are never kept.
    pub pointers: Option<Arc<Pointers>>,
}

impl RecordingSettings {
    /// What is kept of calls of a tool that goes by these names, the server's own last.
    pub(super) fn of(
        &self,
        server: Option<(&ServerName, &ServerSpec)>,
        names: &[&str],
    ) -> Recording {
        let pointers = self.pointers(server, names);
        self.with_pointers(server, names, pointers)
    }

    fn with_pointers(
        &self,
        server: Option<(&ServerName, &ServerSpec)>,
        names: &[&str],
        pointers: Option<Arc<Pointers>>,
    ) -> Recording {
        let spec = server.map(|(_, spec)| spec);
        let of_server = spec.map(|spec| &spec.audit);
        let of_tool = spec.and_then(|spec| of_tool(spec, names));
        let said = |levels: Option<&AuditLevels>| {
            levels.map_or((None, None), |levels| (levels.arguments, levels.results))
        };
        let (tool, server_wide) = (said(of_tool), said(of_server));
        let without: Kept = (
            tool.0.or(server_wide.0).unwrap_or(self.arguments),
            tool.1.or(server_wide.1).unwrap_or(self.results),
        );
        let server = server.map(|(name, _)| name.as_str());
        Recording { levels: Levels::of_tool(&self.rules, server, names, without), pointers }
    }

    fn pointers(
        &self,
        server: Option<(&ServerName, &ServerSpec)>,
        names: &[&str],
    ) -> Option<Arc<Pointers>> {
        let spec = server.map(|(_, spec)| spec);
        let of_server = spec.map(|spec| &spec.audit);
        let of_tool = spec.and_then(|spec| of_tool(spec, names));
        let said = of_server.into_iter().chain(of_tool).flat_map(|levels| &levels.redact);
        Pointers::new(self.pointers.iter().chain(said).map(String::as_str))
    }
}

fn of_tool<'a>(spec: &'a ServerSpec, names: &[&str]) -> Option<&'a AuditLevels> {
    let overrides = names.iter().rev().find_map(|name| spec.tool_overrides.get(*name))?;
    Some(&overrides.audit)
}

/// Makes the recordings of a catalogue's tools. Tools of which nothing of their own is said share the
/// places of their server.
#[derive(Debug)]
pub(super) struct Recorder<'a> {
    settings: &'a RecordingSettings,
    of_servers: HashMap<&'a ServerName, Option<Arc<Pointers>>>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(settings: &'a RecordingSettings) -> Self {
        Self { settings, of_servers: HashMap::new() }
    }

    /// That of a tool, by its exposed name and its server's own.
    pub(super) fn of(
        &mut self,
        (name, spec): (&'a ServerName, &ServerSpec),
        names: [&str; 2],
    ) -> Recording {
        let server = Some((name, spec));
        let [_, own] = names;
        if spec.tool_overrides.get(own).is_some_and(|said| !said.audit.redact.is_empty()) {
            return self.settings.of(server, &names);
        }
        let shared =
            self.of_servers.entry(name).or_insert_with(|| self.settings.pointers(server, &[]));
        self.settings.with_pointers(server, &names, shared.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ToolOverride, TransportSpec};

    #[test]
    fn rules_come_before_the_tool_the_server_and_the_file() {
        let mut spec = ServerSpec::new(TransportSpec::Http {
            url: "http://h".to_owned(),
            headers: std::collections::BTreeMap::new(),
        });
        spec.audit.results = Some(ResultsLevel::Full);
        spec.audit.redact = vec!["/of/server".to_owned()];
        let mut own = ToolOverride::default();
        own.audit.arguments = Some(ArgumentsLevel::None);
        own.audit.redact = vec!["/of/tool".to_owned()];
        spec.tool_overrides.insert("pay".to_owned(), own);
        let mut settings = RecordingSettings {
            arguments: ArgumentsLevel::Full,
            results: ResultsLevel::None,
            rules: Vec::new(),
            pointers: Vec::new(),
        };
        let name = ServerName::parse("bank").unwrap();
        let of = |settings: &RecordingSettings, tool: &str| {
            let exposed = format!("bank__{tool}");
            Recorder::new(settings).of((&name, &spec), [&exposed, tool])
        };
        let pay = of(&settings, "pay");
        assert_eq!(pay.levels.of_call("x", None), (ArgumentsLevel::None, ResultsLevel::Full));
        assert_eq!(pay.pointers, Pointers::new(["/of/server", "/of/tool"]));
        let read = of(&settings, "read");
        assert_eq!(read.levels.of_call("x", None), (ArgumentsLevel::Full, ResultsLevel::Full));
        assert_eq!(read.pointers, Pointers::new(["/of/server"]));
        // A tool that nobody knows, asked for by its server's name.
        let asked = settings.of(Some((&name, &spec)), &["bank__pay", "pay"]);
        assert_eq!(asked.levels, pay.levels);
        let unknown = settings.of(None, &["pay"]);
        assert_eq!(unknown.levels.usual, (ArgumentsLevel::Full, ResultsLevel::None));
        assert_eq!(unknown.pointers, None);
        settings.rules = vec![LevelRule {
            caller: Some("auditor".to_owned()),
            server: Some("b*".to_owned()),
            arguments: Some(ArgumentsLevel::Redacted),
            ..LevelRule::default()
        }];
        settings.pointers = vec!["/of/file".to_owned()];
        let pay = of(&settings, "pay");
        let kept = pay.levels.of_call("auditor", None);
        assert_eq!(kept, (ArgumentsLevel::Redacted, ResultsLevel::Full));
        assert_eq!(pay.levels.of_call("x", None).0, ArgumentsLevel::None);
        assert_eq!(pay.pointers, Pointers::new(["/of/file", "/of/server", "/of/tool"]));
    }
}
