//! `switchyard servers add`: how a server is written at the command line.
//!
//! Changes when a server can be written in another way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::cli::CliError;
use crate::model::{ServerName, ServerSpec, TransportSpec, parse_duration};

#[derive(Debug, clap::Args)]
pub(super) struct Add {
    /// Name of the server; its tools become NAME__TOOL
    name: String,
    /// Address of its MCP endpoint
    #[arg(value_name = "URL", conflicts_with = "command")]
    address: Option<String>,
    /// How to speak to the address
    #[arg(long, value_name = "KIND", value_parser = ["http", "sse", "jsonrpc"], conflicts_with = "command")]
    transport: Option<String>,
    /// Header sent with every request
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "command")]
    header: Vec<String>,
    /// Environment variable of the command
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "address")]
    env: Vec<String>,
    /// Folder the command runs in
    #[arg(long, value_name = "PATH", conflicts_with = "address")]
    cwd: Option<PathBuf>,
    /// What the server is, for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Time limit of one attempt, as in 30s
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// Command that serves MCP on its standard input and output, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Why a server cannot be added as it was written.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// A command where an address should be.
    #[error(
        "`{0}` is not an address (http:// or https://); for a command write `servers add NAME -- {0} …`"
    )]
    NotAddress(String),
    /// A header or variable without value.
    #[error("`{0}` is not NAME=VALUE")]
    NotPair(String),
    /// Neither address nor command.
    #[error(
        "it takes an address or a command: write `servers add {0} URL`, or `servers add {0} -- COMMAND`"
    )]
    NoTarget(ServerName),
}

impl Add {
    pub(super) fn spec(self) -> Result<(ServerName, ServerSpec), CliError> {
        let name = ServerName::parse(&self.name)?;
        let transport = match self.address {
            Some(url) => address(url, self.transport.as_deref(), &self.header)?,
            None => {
                let mut words = self.command.into_iter();
                let command = words.next().ok_or_else(|| AddError::NoTarget(name.clone()))?;
                let here = std::env::current_dir().unwrap_or_default();
                TransportSpec::Stdio {
                    command: local_command(command, &here),
                    args: words.collect(),
                    env: pairs(&self.env)?,
                    cwd: self.cwd.map(|cwd| here.join(cwd).to_string_lossy().into_owned()),
                }
            }
        };
        let mut spec = ServerSpec::new(transport);
        spec.description = self.description.unwrap_or_default();
        spec.knobs.timeout = self.timeout.as_deref().map(parse_duration).transpose()?;
        Ok((name, spec))
    }
}

fn address(
    url: String,
    transport: Option<&str>,
    headers: &[String],
) -> Result<TransportSpec, CliError> {
    // `${VAR}` may stand anywhere, so only what is no address at all is refused here.
    let web = url.starts_with("http://") || url.starts_with("https://") || url.starts_with("${");
    if !web {
        return Err(AddError::NotAddress(url).into());
    }
    let headers = pairs(headers)?;
    Ok(match transport {
        Some("sse") => TransportSpec::Sse { url, headers },
        Some("jsonrpc") => TransportSpec::Jsonrpc { url, headers },
        _ => TransportSpec::Http { url, headers },
    })
}

/// `NAME=VALUE`, and `Name: value` as people copy it from elsewhere.
fn pairs(words: &[String]) -> Result<BTreeMap<String, String>, AddError> {
    let read = |word: &String| {
        let (name, value) = match (word.find('='), word.find(": ")) {
            (Some(equals), Some(colon)) if colon < equals => word.split_once(": ")?,
            (Some(_), _) => word.split_once('=')?,
            (None, _) => word.split_once(": ")?,
        };
        let name = name.trim();
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    words.iter().map(|word| read(word).ok_or_else(|| AddError::NotPair(word.clone()))).collect()
}

/// A relative path means the file the user sees, not one in the router's folder.
fn local_command(command: String, here: &Path) -> String {
    let path = Path::new(&command);
    let is_relative_path = path.is_relative() && command.contains('/');
    match is_relative_path.then(|| here.join(path)) {
        Some(file) if file.exists() => file.to_string_lossy().into_owned(),
        _ => command,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::Command;
    use crate::cli::servers::{Action, Args};
    use crate::model::TransportKind;
    use clap::Parser as _;

    fn parse(words: &[&str]) -> Result<Add, clap::Error> {
        let words = ["switchyard", "servers", "add"].iter().chain(words);
        let cli = crate::cli::Cli::try_parse_from(words)?;
        match cli.command {
            Some(Command::Servers(Args { action: Some(Action::Add(add)) })) => Ok(add),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_server_is_added_by_address() {
        let add = parse(&[
            "github",
            "https://api.example/mcp",
            "--header",
            "Authorization=Bearer ${TOKEN}",
            "--header",
            "X-Time: 12=30",
            "--timeout",
            "5s",
        ]);
        let (name, spec) = add.unwrap().spec().unwrap();
        assert_eq!(name.as_str(), "github");
        assert_eq!(spec.knobs.timeout, Some(Duration::from_secs(5)));
        let TransportSpec::Http { url, headers } = spec.transport else { panic!() };
        assert_eq!(url, "https://api.example/mcp");
        assert_eq!(headers["Authorization"], "Bearer ${TOKEN}");
        assert_eq!(headers["X-Time"], "12=30");
        let (_, spec) = parse(&["s", "http://h/", "--transport", "sse"]).unwrap().spec().unwrap();
        assert_eq!(spec.transport.kind(), TransportKind::Sse);
    }

    #[test]
    fn a_server_is_added_by_command() {
        let add = parse(&["files", "--env", "A=b=c", "--", "npx", "-y", "--flag", "url"]);
        let (_, spec) = add.unwrap().spec().unwrap();
        let TransportSpec::Stdio { command, args, env, cwd } = spec.transport else { panic!() };
        assert_eq!((command.as_str(), cwd), ("npx", None));
        assert_eq!(args, ["-y", "--flag", "url"]);
        assert_eq!(env["A"], "b=c");
    }

    #[test]
    fn mistakes_in_adding_are_told() {
        let error = parse(&["x"]).unwrap().spec().unwrap_err();
        assert!(error.to_string().contains("servers add x -- COMMAND"), "{error}");
        assert_eq!(error.exit_code(), 2);
        assert!(parse(&["x", "--"]).unwrap().spec().is_err(), "nothing behind it");
        assert!(parse(&["x", "http://h/", "--", "npx"]).is_err(), "both");
        assert!(parse(&["x", "http://h/", "--env", "A=b"]).is_err(), "variable for an address");
        let error = parse(&["x", "npx"]).unwrap().spec().unwrap_err().to_string();
        assert!(error.contains("servers add NAME -- npx"), "{error}");
        let error = parse(&["x y", "http://h/"]).unwrap().spec().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let error = parse(&["x", "http://h/", "--header", "nope"]).unwrap().spec().unwrap_err();
        assert!(error.to_string().contains("NAME=VALUE"), "{error}");
    }

    #[test]
    fn a_relative_command_means_the_file_the_user_sees() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("server.sh"), "").unwrap();
        let file = folder.path().join("./server.sh");
        assert_eq!(local_command("./server.sh".into(), folder.path()), file.to_string_lossy());
        assert_eq!(local_command("npx".into(), folder.path()), "npx");
        assert_eq!(local_command("./gone.sh".into(), folder.path()), "./gone.sh");
    }
}
