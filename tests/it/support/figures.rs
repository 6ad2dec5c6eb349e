//! Sums over `/metrics`, and how much a long test does.

use super::Http;

/// Whether the plan's figures are to be met as they stand: long runs, every round, by the wall's clock.
pub fn full() -> bool {
    std::env::var("SWITCHYARD_TEST_FULL").is_ok_and(|value| value == "1")
}

/// How often something is done: `full` times with `SWITCHYARD_TEST_FULL=1`, else `scaled` times.
pub fn figure(scaled: usize, full: usize) -> usize {
    if self::full() { full } else { scaled }
}

/// The sum of a family's samples that have all these labels, each as `name="value"`.
pub async fn total(socket: &Http, family: &str, labels: &[&str]) -> f64 {
    let answer = socket.get("/metrics").await.expect(200);
    let samples = answer.text().lines().filter_map(|line| {
        let (name, value) = line.strip_prefix(family)?.rsplit_once(' ')?;
        let fits = name.starts_with('{') && labels.iter().all(|label| name.contains(label));
        fits.then(|| value.parse::<f64>().unwrap())
    });
    samples.sum()
}

/// How often the breaker of a server changed its state, with these labels.
pub async fn transitions(socket: &Http, server: &str, labels: &[&str]) -> f64 {
    let server = format!("server=\"{server}\"");
    let labels = [labels, &[&server]].concat();
    total(socket, "switchyard_breaker_transitions_total", &labels).await
}

/// The state of a server's breaker; just one is shown at any time.
pub async fn breaker_state(socket: &Http, server: &str) -> String {
    let answer = socket.get("/metrics").await.expect(200);
    let states: Vec<_> = answer
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("switchyard_breaker_state{")?.strip_suffix("} 1"))
        .filter(|labels| labels.contains(&format!("server=\"{server}\"")))
        .filter_map(|labels| Some(labels.split_once("state=\"")?.1.split_once('"')?.0.to_owned()))
        .collect();
    let [state] = &states[..] else { panic!("states of {server}: {states:?}") };
    state.clone()
}
