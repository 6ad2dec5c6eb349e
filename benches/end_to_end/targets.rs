//! What is measured: the bundled upstream, nginx, the router, and others that run already.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::load::Endpoint;
use crate::process::{self, Memory, Process};

/// How long anything may take to come up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A server that is up and has answered.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) endpoint: Endpoint,
    process: Option<Process>,
    pid: Option<u32>,
}

/// Milliseconds from exec to the first routed call: medians.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Starts {
    pub(crate) fresh_ms: f64,
    pub(crate) existing_ms: f64,
}

/// A temporary folder and the binary under test.
#[derive(Debug)]
pub(crate) struct Sandbox {
    folder: TempDir,
    router: PathBuf,
}

pub(crate) fn nginx_is_installed() -> bool {
    Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

impl Target {
    /// A server that someone else has started.
    pub(crate) async fn running(name: &str, endpoint: Endpoint, pid: Option<u32>) -> Result<Self> {
        let target = Self { name: name.to_owned(), endpoint, process: None, pid };
        target.ready().await
    }

    fn started(name: &str, endpoint: Endpoint, process: Process) -> Self {
        let pid = Some(process.id());
        Self { name: name.to_owned(), endpoint, process: Some(process), pid }
    }

    async fn ready(mut self) -> Result<Self> {
        let started = Instant::now();
        loop {
            let problem = match self.endpoint.initialize().await {
                Ok(()) => match self.endpoint.call_once().await {
                    Ok(()) => return Ok(self),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if let Some(ended) = self.process.as_mut().and_then(Process::ended) {
                bail!("{} ended with {ended}", self.name);
            }
            if started.elapsed() > START_LIMIT {
                return Err(problem.context(format!("{} does not come up", self.name)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn cpu_seconds(&self) -> Option<f64> {
        self.pid.and_then(process::cpu_seconds)
    }

    pub(crate) fn memory(&self) -> Option<Memory> {
        self.pid.map(process::memory)
    }

    pub(crate) fn stop(self) {
        if let Some(process) = self.process {
            process.stop();
        }
    }

    /// Ends it with SIGKILL.
    pub(crate) fn kill(self) {
        if let Some(process) = self.process {
            process.kill();
        }
    }
}

impl Sandbox {
    pub(crate) fn new(router: &str) -> Result<Self> {
        let folder = tempfile::tempdir().context("could not make a temporary folder")?;
        Ok(Self { folder, router: PathBuf::from(router) })
    }

    /// How long the disk under the data folders takes to sync a small write, in milliseconds: the
    /// median of fifty.
    pub(crate) fn sync_ms(&self) -> Result<f64> {
        let mut file = std::fs::File::create(self.folder.path().join("sync"))?;
        let mut times = Vec::new();
        for _ in 0..50 {
            let started = Instant::now();
            file.write_all(&[7; 4096])?;
            file.sync_data()?;
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
        Ok(median(&mut times))
    }

    pub(crate) async fn upstream(&self, port: u16) -> Result<Target> {
        let mut process = Process::start(
            Command::new(&self.router)
                .args(["demo-upstream", "http", "--until-stdin-closes", "--port"])
                .arg(port.to_string())
                .stdout(Stdio::piped()),
        )?;
        let stdout = process.child().stdout.take().context("no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let url = line.trim().strip_prefix("listening on ");
        let url = url.with_context(|| format!("the upstream said `{line}`"))?;
        let endpoint = Endpoint::from_url(url, "echo")?;
        Target::started("direct", endpoint, process).ready().await
    }

    pub(crate) async fn nginx(&self, upstream: SocketAddr) -> Result<Target> {
        let address = free_address()?;
        let folder = self.folder.path().join("nginx");
        std::fs::create_dir_all(&folder)?;
        let config = folder.join("nginx.conf");
        std::fs::write(&config, nginx_config(&folder.display().to_string(), address, upstream))?;
        let process = Process::start(
            Command::new("nginx")
                .arg("-p")
                .arg(&folder)
                .arg("-c")
                .arg(&config)
                .args(["-e", "error.log"])
                .stdout(Stdio::null()),
        )?;
        Target::started("nginx", Endpoint::new(address, "echo"), process).ready().await
    }

    /// The router with a new data folder; `audit` is the value of that key in its configuration.
    pub(crate) async fn router(
        &self,
        name: &str,
        upstream: SocketAddr,
        audit: &str,
    ) -> Result<Target> {
        let (endpoint, process) = self.start_router(upstream, &format!("data-{name}"), audit)?;
        Target::started(name, endpoint, process).ready().await
    }

    /// The data folder of [`Self::router`].
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("data-{name}"))
    }

    fn start_router(
        &self,
        upstream: SocketAddr,
        data: &str,
        audit: &str,
    ) -> Result<(Endpoint, Process)> {
        let address = free_address()?;
        let folder = self.folder.path();
        let config = folder.join(format!("{data}.yaml"));
        let data = folder.join(data);
        std::fs::write(
            &config,
            format!(
                "listen: {address}\ndata_dir: {}\naudit: {audit}\nmcp_servers:\n  up:\n    transport: http\n    url: http://{upstream}/mcp\n",
                data.display()
            ),
        )?;
        let log = std::fs::File::create(folder.join("router.log"))?;
        let mut command = Command::new(&self.router);
        command.args(["serve", "--config"]).arg(&config).current_dir(folder);
        command.stdout(log.try_clone()?).stderr(log);
        Ok((Endpoint::new(address, "up__echo"), Process::start(&mut command)?))
    }

    /// From exec to the first routed call: on a new data folder each time, and on one that a router
    /// has used before.
    pub(crate) async fn measure_starts(
        &self,
        upstream: SocketAddr,
        times: usize,
    ) -> Result<Starts> {
        let mut fresh = Vec::new();
        let mut existing = Vec::new();
        for at in 0..times {
            fresh.push(self.measure_start(upstream, &format!("fresh-{at}")).await?);
        }
        self.measure_start(upstream, "existing").await?;
        for _ in 0..times {
            existing.push(self.measure_start(upstream, "existing").await?);
        }
        Ok(Starts { fresh_ms: median(&mut fresh), existing_ms: median(&mut existing) })
    }

    async fn measure_start(&self, upstream: SocketAddr, data: &str) -> Result<f64> {
        let started = Instant::now();
        let (endpoint, mut process) = self.start_router(upstream, data, "{}")?;
        loop {
            let Err(problem) = endpoint.call_once().await else { break };
            if process.ended().is_some() || started.elapsed() > START_LIMIT {
                return Err(problem.context(self.log_of_router()));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let elapsed = started.elapsed();
        process.stop();
        Ok(elapsed.as_secs_f64() * 1e3)
    }

    fn log_of_router(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("router.log"));
        let mut text = String::from("the router does not come up; its last lines:");
        for line in log.unwrap_or_default().lines().rev().take(10).collect::<Vec<_>>().iter().rev()
        {
            let _infallible = write!(text, "\n  {line}");
        }
        text
    }
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Free now; nobody else on this machine is likely to take it in the next moment.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

/// A plain reverse proxy at its best: keep-alive on both sides, no log, connections never recycled.
fn nginx_config(folder: &str, address: SocketAddr, upstream: SocketAddr) -> String {
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    format!(
        "{user}
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    tcp_nodelay on;
    upstream up {{
        server {upstream};
        keepalive 64;
        keepalive_requests 1000000000;
        keepalive_timeout 600s;
    }}
    server {{
        listen {address};
        location / {{
            proxy_pass http://up;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
        }}
    }}
}}
"
    )
}
