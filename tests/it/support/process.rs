//! The program as a process: for what ends it, and for the command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::{Http, PROGRAM, hold};

/// No command takes longer.
const PATIENCE: Duration = Duration::from_secs(90);

/// How a command ended.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Finished {
    /// Checks the exit code, and that nothing looks like a crash.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        for text in [&self.out, &self.err] {
            assert!(!text.contains("panicked"), "{text}");
            assert!(!text.contains("stack backtrace"), "{text}");
        }
        self
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

/// The program in `folder`, with nothing of this environment that it would heed.
pub fn command(folder: &Path) -> Command {
    prepared(Command::new(program()), folder)
}

fn program() -> OsString {
    // Figures of a release build are taken with its path here.
    std::env::var_os("SWITCHYARD_BIN").unwrap_or_else(|| PROGRAM.into())
}

fn prepared(mut command: Command, folder: &Path) -> Command {
    command
        .current_dir(folder)
        .env_remove("SWITCHYARD_URL")
        .env_remove("SWITCHYARD_KEY")
        .env_remove("SWITCHYARD_DATA_DIR")
        .env_remove("RUST_LOG")
        .env("RUST_BACKTRACE", "1")
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The program as what a shell becomes that runs `script` first, in `folder`.
fn after(script: &str, folder: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{script}\nexec \"$0\" \"$@\"")]).arg(program());
    prepared(shell, folder)
}

/// Runs the program in `folder` until it ends.
pub async fn switchyard(folder: &Path, arguments: &[&str]) -> Finished {
    let mut command = command(folder);
    let output = command.args(arguments).output();
    let output = tokio::time::timeout(PATIENCE, output)
        .await
        .unwrap_or_else(|_| panic!("{arguments:?} did not end"))
        .unwrap();
    Finished {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// `switchyard serve` as a process; killed when it goes out of scope.
#[derive(Debug)]
pub struct Router {
    child: Child,
    pub http: Http,
    pub address: SocketAddr,
    /// When the line that says where it listens was read.
    pub listening: Instant,
    pub folder: TempDir,
}

impl Router {
    /// Starts it with this configuration; `listen` and `data_dir` are added.
    pub async fn start(yaml: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), yaml).await
    }

    /// The same in a folder where one ran before.
    pub async fn start_in(folder: TempDir, yaml: &str) -> Self {
        Self::write(folder.path(), yaml);
        Self::spawn(folder, &[]).await
    }

    /// The same where one ran before, with its configuration and on its address.
    pub async fn start_again(folder: TempDir, address: SocketAddr) -> Self {
        Self::spawn(folder, &["--listen", &address.to_string()]).await
    }

    /// The same in a folder that has its configuration, with more arguments.
    pub async fn start_with(folder: TempDir, arguments: &[&str]) -> Self {
        Self::spawn(folder, arguments).await
    }

    /// Starts it by a shell that runs `script` first, in the folder, and then becomes the router.
    pub async fn start_after(script: &str, yaml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::write(folder.path(), yaml);
        Self::launch(after(script, folder.path()), folder, &[]).await
    }

    /// The same where one ran before, with its configuration and on its address.
    pub async fn start_again_after(script: &str, folder: TempDir, address: SocketAddr) -> Self {
        let listen = ["--listen", &address.to_string()];
        Self::launch(after(script, folder.path()), folder, &listen).await
    }

    async fn spawn(folder: TempDir, arguments: &[&str]) -> Self {
        Self::launch(command(folder.path()), folder, arguments).await
    }

    async fn launch(mut command: Command, folder: TempDir, arguments: &[&str]) -> Self {
        command.args(["serve", "--config", "switchyard.yaml"]).args(arguments);
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, stdout.read_line(&mut line)).await;
        let listening = Instant::now();
        let Some(address) = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("http://"))
            .and_then(|address| address.parse::<SocketAddr>().ok())
        else {
            let mut error = String::new();
            let _ = child.stderr.take().unwrap().read_to_string(&mut error).await;
            panic!("no address in {line:?} ({read:?}); stderr: {error}");
        };
        // Drained, so that a full pipe does not stop the router.
        let mut stderr = child.stderr.take().unwrap();
        let log = folder.path().join("stderr.log");
        tokio::spawn(async move {
            let mut file = open_log(log);
            let mut buffer = [0; 8192];
            while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
                let _ = std::io::Write::write_all(&mut file, &buffer[..read]);
            }
            drop(stdout);
        });
        Self { child, http: Http::network(address), address, listening, folder }
    }

    /// Writes the configuration file anew.
    pub fn write(folder: &Path, yaml: &str) {
        let text = format!("listen: 127.0.0.1:0\ndata_dir: ./data\n{yaml}");
        std::fs::write(folder.join("switchyard.yaml"), text).unwrap();
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What it said on standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stderr.log")).unwrap_or_default()
    }

    /// Runs a command against it, over its admin socket.
    pub async fn run(&self, arguments: &[&str]) -> Finished {
        switchyard(self.folder.path(), arguments).await
    }

    /// Whether it is ready and has asked every server once.
    pub async fn is_ready(&self) -> bool {
        let answer = self.http.get("/readyz").await;
        answer.status == 200 && !answer.text().contains("still being asked")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Its resident memory in bytes.
    pub fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    fn status(&self, key: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id().unwrap());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }

    /// The most that was resident since [`Router::forget_peak`], in bytes.
    pub fn peak(&self) -> u64 {
        self.status("VmHWM:")
    }

    pub fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id().unwrap()), "5").unwrap();
    }

    /// The processor time it has used.
    pub fn cpu(&self) -> Duration {
        let stat = format!("/proc/{}/stat", self.child.id().unwrap());
        let stat = std::fs::read_to_string(stat).unwrap();
        // After the name in brackets: state is field 3, user and system time are 14 and 15.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let fields: Vec<&str> = fields.split(' ').collect();
        let ticks: u64 = fields[11..=12].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Sends a signal by its name.
    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Ends it as no program can prevent, and gives its folder back.
    pub async fn kill(mut self) -> TempDir {
        self.child.kill().await.unwrap();
        self.keep_address();
        self.folder
    }

    /// Ends it in order; its exit code and folder.
    pub async fn stop(self) -> (i32, TempDir) {
        self.signal("TERM").await;
        self.ended().await
    }

    /// Waits for its end; its exit code and folder.
    pub async fn ended(mut self) -> (i32, TempDir) {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends");
        self.keep_address();
        (ended.unwrap().code().unwrap_or(-1), self.folder)
    }

    /// For one that starts there again.
    fn keep_address(&self) {
        if let Err(error) = hold(self.address) {
            eprintln!("{} is not held: {error}", self.address);
        }
    }
}

fn open_log(path: PathBuf) -> std::fs::File {
    std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap()
}

/// Processes whose command line has `mark`.
pub fn alive(mark: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // A process that ended and was not waited for yet has no command line.
        if String::from_utf8_lossy(&line).replace('\0', " ").contains(mark) {
            found.push(pid);
        }
    }
    found
}
