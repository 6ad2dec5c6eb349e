//! [`TestApp`]: the router in this process.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use switchyard::app::{ADMIN_SOCKET, App, StartError};
use switchyard::config::{self, Config, Environment};
use switchyard::model::Knobs;
use tempfile::TempDir;

use super::{Answer, Http, PROGRAM, SOON, eventually};

/// A running router with a folder of its own, which goes with it.
#[derive(Debug)]
pub struct TestApp {
    app: App,
    folder: TempDir,
    http: Http,
}

/// Variables that configurations of tests may refer to.
const VARIABLES: [(&str, &str); 2] =
    [("IT_TOKEN", "token-from-the-environment"), ("IT_GREETING", "hello")];

fn environment() -> Environment {
    Environment::new(|name| {
        VARIABLES.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    })
}

impl TestApp {
    /// Starts a router with this configuration, on a free port.
    pub async fn start(yaml: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), yaml).await
    }

    /// The same with what an earlier one left behind.
    pub async fn start_in(folder: TempDir, yaml: &str) -> Self {
        Self::try_start_in(folder, yaml).await.unwrap_or_else(|error| panic!("{error}"))
    }

    pub async fn try_start_in(folder: TempDir, yaml: &str) -> Result<Self, StartError> {
        let config = config::parse(yaml, "test.yaml", &environment())?;
        Self::run(folder, config, yaml).await
    }

    /// Starts a router with other numbers for all servers than the configuration gives.
    pub async fn start_tuned(yaml: &str, tune: impl FnOnce(&mut Knobs)) -> Self {
        let mut config = config::parse(yaml, "test.yaml", &environment()).unwrap();
        tune(&mut config.defaults);
        Self::run(tempfile::tempdir().unwrap(), config, yaml).await.unwrap()
    }

    /// Starts a router whose configuration is a file, which it watches.
    pub async fn start_with_file(yaml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("switchyard.yaml");
        std::fs::write(&path, yaml).unwrap();
        let config = config::load(&path, &environment()).unwrap();
        Self::run(folder, config, yaml).await.unwrap()
    }

    async fn run(folder: TempDir, mut config: Config, yaml: &str) -> Result<Self, StartError> {
        config.guard = Some(PROGRAM.into());
        config.data_dir = folder.path().join("data");
        if !yaml.contains("listen:") {
            config.listen = "127.0.0.1:0".parse().unwrap();
        }
        let app = App::start(config).await?;
        let mut address = app.address();
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let http = Http::network(address);
        Ok(Self { app, folder, http })
    }

    /// The router as a caller without a key sees it.
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// The way of a call, without the network before it.
    pub fn router(&self) -> Arc<switchyard::router::Router> {
        self.app.router()
    }

    /// The router over its admin socket.
    pub fn socket(&self) -> Http {
        Http::socket(self.data_dir().join(ADMIN_SOCKET))
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn port(&self) -> u16 {
        self.app.address().port()
    }

    /// Waits until every server was asked for its tools once.
    pub async fn ready(self) -> Self {
        eventually(SOON, "the router is ready", || async {
            let ready = self.http.get("/readyz").await.status == 200;
            // `/readyz` is bounded by the age of the process, which other tests share.
            let servers = self.socket().get("/mcp/servers").await.json();
            let asked = servers["servers"].as_array()?.iter().all(|server| {
                server["state"] != "up" && server["last_error"].is_string()
                    || server["tools"] != 0 && server["stale"] == false
                    || server["enabled"] == false
            });
            (ready && asked).then_some(())
        })
        .await;
        self
    }

    /// Ends it in order and gives its folder back.
    pub async fn stop(self) -> TempDir {
        tokio::time::timeout(SOON * 2, self.app.shutdown()).await.expect("it stops");
        self.folder
    }

    /// The ledger's entry of a call, when it is there.
    pub async fn entry(&self, id: &str) -> Value {
        let path = format!("/mcp/audit/{id}");
        eventually(SOON, &format!("the ledger has {id}"), || async {
            let answer = self.socket().get(&path).await;
            (answer.status == 200).then(|| answer.json())
        })
        .await
    }

    /// The ledger's entry of the call with this answer, of which there must be just one.
    pub async fn entry_of(&self, answer: &Answer) -> Value {
        let id = answer.id();
        let entry = self.entry(&id).await;
        let same = self.calls("limit=1000").await;
        assert_eq!(same.iter().filter(|call| call["id"] == id.as_str()).count(), 1);
        entry
    }

    /// Calls in the ledger, newest first.
    pub async fn calls(&self, query: &str) -> Vec<Value> {
        let answer = self.socket().get(&format!("/mcp/audit?{query}")).await.expect(200);
        answer.json()["calls"].as_array().unwrap().clone()
    }

    /// The router for the bearer of a new key with these scopes.
    pub async fn keyed(&self, name: &str, scopes: &[&str]) -> Http {
        let body = serde_json::json!({ "name": name, "scopes": scopes }).to_string();
        let made = self.socket().post("/admin/keys", body).await.expect(201);
        self.http.with_key(made.json()["key"].as_str().unwrap())
    }

    /// Replaces the configuration file.
    pub fn write_config(&self, yaml: &str) {
        std::fs::write(self.folder.path().join("switchyard.yaml"), yaml).unwrap();
    }

    /// The value of one sample in `/metrics`, with its labels as they stand there.
    pub async fn metric(&self, sample: &str) -> Option<f64> {
        let answer = self.socket().get("/metrics").await.expect(200);
        let line =
            answer.text().lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap())
    }
}
