//! Rounds: a modern server that needs input before it can go on, and a legacy client that can only
//! be asked while it waits.
//!
//! A modern client sees the server's questions in the result and asks again by itself. For a legacy
//! client we do: each question becomes a request on the stream of its call, and the call goes to
//! the server once more with the answers (specification 2026-07-28, basic/patterns/mrtr).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::oneshot;

use crate::model::cut_after;
use crate::protocol::{Answer, AnswerKind, InputRequired};
use crate::router::{Relay, RouteError, ServerRequest, UpstreamAnswer};

/// A conversation of more rounds than this goes nowhere.
const ROUNDS: usize = 16;

/// How long a client may take to answer; people may have to decide.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a call came to, from one leg to the next.
pub(super) type Leg = Result<UpstreamAnswer, RouteError>;

/// The end of a call with all its legs.
pub(super) enum End<T> {
    /// What the last leg came to.
    Answer(T),
    /// The server wants to know what this client cannot tell it.
    NoInput(String),
}

/// Runs `leg` again with the client's answers for as long as the server asks.
pub(super) async fn run<T, F, L>(
    params: Option<Bytes>,
    relay: Option<&Arc<Relay>>,
    result: impl Fn(&T) -> &Leg,
    mut leg: L,
) -> End<T>
where
    L: FnMut(Option<Bytes>) -> F,
    F: Future<Output = T>,
{
    let mut params = params;
    for _ in 0..ROUNDS {
        let answer = leg(params.clone()).await;
        let Ok(upstream) = result(&answer) else { return End::Answer(answer) };
        if !upstream.facts.is_input_required || upstream.kind != AnswerKind::Result {
            return End::Answer(answer);
        }
        let asked = match InputRequired::parse(&upstream.value) {
            Ok(asked) => asked,
            Err(problem) => {
                return End::NoInput(format!("the server asks for input, but {problem}"));
            }
        };
        let responses = match ask(&asked, relay).await {
            Ok(responses) => responses,
            Err(problem) => return End::NoInput(problem),
        };
        let text = params.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok());
        params = Some(asked.next_params(text, &responses).into());
    }
    End::NoInput(format!("the server asked for input {ROUNDS} times and did not finish"))
}

/// Puts the questions to the client, all at once.
async fn ask(asked: &InputRequired, relay: Option<&Arc<Relay>>) -> Result<Vec<Bytes>, String> {
    let mut replies = Vec::new();
    for request in &asked.requests {
        let (reply, answer) = oneshot::channel();
        let question =
            ServerRequest { method: request.method.clone(), params: request.params.clone(), reply };
        if relay.is_none_or(|relay| relay.request(question).is_err()) {
            return Err(format!(
                "the server needs `{}` of the client, which did not declare that capability",
                cut_after(&request.method, 64)
            ));
        }
        replies.push(answer);
    }
    let answered = tokio::time::timeout(PATIENCE, join_all(replies)).await;
    let answered = answered.ok().ok_or_else(|| {
        format!("the client did not answer the server's question within {} s", PATIENCE.as_secs())
    })?;
    answered
        .into_iter()
        .map(|reply| match reply {
            Ok(Answer { kind: AnswerKind::Result, value, .. }) => Ok(value),
            Ok(Answer { kind: AnswerKind::Error, value, .. }) => {
                let shown = cut_after(&String::from_utf8_lossy(&value), 300);
                Err(format!("the client answered the server's question with the error {shown}"))
            }
            Err(_gone) => Err("the client did not answer the server's question".to_owned()),
        })
        .collect()
}
