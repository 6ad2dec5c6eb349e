//! The bundled upstream on stdin and stdout: one JSON message per line.
//!
//! Changes when the stdio binding does. Stdin is read by a thread of its own, because it may be a
//! pipe, a file or a terminal, and only a blocking read works on all three.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::engine::{Engine, Reply, Via};
use super::{DemoUpstreamError, Options};

/// Lines read ahead; a client that sends more waits, as it would on a full pipe.
const READ_AHEAD: usize = 64;

/// How long answers may still take after stdin has ended.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// What one message leads to, beyond its answer.
enum Next {
    GoOn,
    /// The answer broke off: stdout is over.
    Close,
    Exit,
}

/// Serves one client until stdin ends.
pub(super) async fn serve(options: Options) -> Result<(), DemoUpstreamError> {
    let noise = options.stderr_noise;
    let engine = Arc::new(Engine::new(options));
    let (lines, mut incoming) = mpsc::channel::<Vec<u8>>(READ_AHEAD);
    start_thread("stdin", move || {
        for line in io::stdin().lock().split(b'\n') {
            let Ok(line) = line else { return };
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    })?;
    let (ended, mut end) = mpsc::channel::<Result<(), DemoUpstreamError>>(1);
    let tasks = TaskTracker::new();
    loop {
        let line = tokio::select! {
            biased;
            Some(result) = end.recv() => return result,
            line = incoming.recv() => line,
        };
        let Some(line) = line else { break };
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if noise > 0 {
            make_noise(noise);
        }
        let (engine, ended) = (Arc::clone(&engine), ended.clone());
        tasks.spawn(async move {
            let result = match answer(&engine, &line).await {
                Ok(Next::GoOn) => return,
                Ok(Next::Close) => Ok(()),
                Ok(Next::Exit) => Err(DemoUpstreamError::ExitFault),
                Err(source) => Err(DemoUpstreamError::Pipe { action: "write an answer", source }),
            };
            // Full means that another message has ended us already.
            let _first_wins = ended.try_send(result);
        });
    }
    tasks.close();
    // What is nearly done is answered, for `printf … | switchyard demo-upstream stdio`; nobody
    // waits for the rest.
    let _unfinished = tokio::time::timeout(LAST_ANSWERS, tasks.wait()).await;
    end.try_recv().unwrap_or(Ok(()))
}

async fn answer(engine: &Engine, line: &[u8]) -> io::Result<Next> {
    match engine.answer(line, Via::Stdio).await {
        Reply::Json { mut text, .. } => {
            text.push('\n');
            write(text.as_bytes())?;
        }
        Reply::Accepted | Reply::Status(_) => {}
        Reply::Hang => std::future::pending().await,
        Reply::Garbage => write(b"Traceback (most recent call last): this is not JSON\n")?,
        Reply::Cut => return Ok(Next::Close),
        Reply::CutMidBody(text) => {
            let half = text.len() / 2;
            write(text.as_bytes().get(..half).unwrap_or_default())?;
            return Ok(Next::Close);
        }
        Reply::Exit => return Ok(Next::Exit),
    }
    Ok(Next::GoOn)
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Fills stderr, which a careless parent does not read.
pub(super) fn make_noise(bytes: usize) {
    let line = format!("{}\n", "noise ".repeat(12));
    let mut left = bytes;
    let mut stderr = io::stderr().lock();
    while left > 0 {
        let part = line.as_bytes().get(..left.min(line.len())).unwrap_or_default();
        if stderr.write_all(part).is_err() {
            return;
        }
        left = left.saturating_sub(line.len());
    }
}

/// Cancels `token` when whoever holds the other end of stdin goes away.
pub(super) fn cancel_at_end_of_stdin(token: CancellationToken) -> Result<(), DemoUpstreamError> {
    start_thread("stdin", move || {
        let mut buffer = [0_u8; 256];
        while matches!(io::stdin().lock().read(&mut buffer), Ok(1..)) {}
        token.cancel();
    })
}

fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), DemoUpstreamError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|source| DemoUpstreamError::Pipe { action: "start to read stdin", source })
}
