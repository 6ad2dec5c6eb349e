//! [`Cell`]: what is counted of the calls that have server, tool, caller and outcome in common, in
//! an hour or a minute.
//!
//! Changes when something else is counted, or stored in another form. Values in, values out.

use std::collections::BTreeMap;

use super::varint;

/// Steps between a power of two and the next: a bucket's middle is within 1/32 of all in it.
const STEPS_BITS: u32 = 4;
const STEPS: u64 = 1 << STEPS_BITS;

/// The bucket of a duration in microseconds.
fn bucket(micros: u64) -> u16 {
    let number = if micros < STEPS {
        micros
    } else {
        let shift = micros.ilog2() - STEPS_BITS;
        u64::from(shift) * STEPS + (micros >> shift)
    };
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// The middle of a bucket, in microseconds.
fn middle(bucket: u16) -> u64 {
    let number = u64::from(bucket);
    if number < 2 * STEPS {
        return number;
    }
    let shift = number / STEPS - 1;
    let low = STEPS + number % STEPS;
    // A number that no bucket has is as large as can be.
    low.checked_shl(u32::try_from(shift).unwrap_or(u32::MAX))
        .map_or(u64::MAX, |low| low.saturating_add((1 << shift) / 2))
}

/// How often a latency fell into each bucket; a slot for each, so that adding is cheap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Histogram(Vec<u64>);

/// More buckets than any duration has; a stored number beyond it is damage.
const BUCKETS: usize = 1024;

impl Histogram {
    /// Adds a latency in microseconds.
    pub(super) fn record(&mut self, micros: u64) {
        self.add(bucket(micros), 1);
    }

    fn add(&mut self, bucket: u16, count: u64) {
        let slot = usize::from(bucket);
        if slot >= self.0.len() {
            self.0.resize(slot + 1, 0);
        }
        if let Some(slot) = self.0.get_mut(slot) {
            *slot = slot.saturating_add(count);
        }
    }

    /// How many took no longer than `micros`, off by those within 5 % of it at most.
    pub(super) fn within(&self, micros: u64) -> u64 {
        let fitting = (0_u16..).zip(&self.0).take_while(|(bucket, _)| middle(*bucket) <= micros);
        fitting.map(|(_, count)| count).sum()
    }

    /// The latency in microseconds below which `part` (0 to 1) of all lie, off by 5 % at most;
    /// `None` when there are none.
    pub(super) fn quantile(&self, part: f64) -> Option<u64> {
        let total: u64 = self.0.iter().sum();
        if total == 0 {
            return None;
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank off by one in 2^52 moves no quantile"
        )]
        let rank = ((total as f64 * part).ceil() as u64).clamp(1, total);
        let mut seen = 0_u64;
        for (bucket, count) in (0_u16..).zip(&self.0) {
            seen = seen.saturating_add(*count);
            if seen >= rank {
                return Some(middle(bucket));
            }
        }
        None
    }
}

/// Marks, in [`CellKey::outcome`], refused calls whose code is a fault of server or router. No word has
/// so large a number.
pub(super) const FAULT: i64 = 1 << 40;

/// What calls have in common, beside their server: numbers of words, 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct CellKey {
    /// The tool as exposed.
    pub(super) tool: i64,
    /// The tool as its server names it.
    pub(super) upstream_tool: i64,
    /// The caller.
    pub(super) caller: i64,
    /// The outcome, perhaps with [`FAULT`].
    pub(super) outcome: i64,
}

impl CellKey {
    /// The number of the outcome's word.
    pub(super) const fn outcome_word(&self) -> i64 {
        self.outcome & !FAULT
    }

    /// Whether [`FAULT`] is set.
    pub(super) const fn is_fault(&self) -> bool {
        self.outcome & FAULT != 0
    }
}

/// What is counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cell {
    /// Calls.
    pub(super) calls: u64,
    /// Bytes of their requests.
    pub(super) request_bytes: u64,
    /// Bytes of their answers.
    pub(super) response_bytes: u64,
    /// Their latencies.
    pub(super) latency: Histogram,
}

impl Cell {
    /// Counts a call.
    pub(super) fn record(&mut self, micros: u64, request_bytes: u64, response_bytes: u64) {
        self.calls = self.calls.saturating_add(1);
        self.request_bytes = self.request_bytes.saturating_add(request_bytes);
        self.response_bytes = self.response_bytes.saturating_add(response_bytes);
        self.latency.record(micros);
    }

    /// Adds what [`Self::body`] wrote; `None` when it is not that.
    fn add_body(&mut self, mut body: &[u8]) -> Option<()> {
        let body = &mut body;
        self.calls = self.calls.saturating_add(varint::take(body)?);
        self.request_bytes = self.request_bytes.saturating_add(varint::take(body)?);
        self.response_bytes = self.response_bytes.saturating_add(varint::take(body)?);
        let mut bucket = 0_u16;
        while !body.is_empty() {
            bucket = bucket.checked_add(u16::try_from(varint::take(body)?).ok()?)?;
            if usize::from(bucket) >= BUCKETS {
                return None;
            }
            self.latency.add(bucket, varint::take(body)?);
        }
        Some(())
    }

    fn body(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        for number in [self.calls, self.request_bytes, self.response_bytes] {
            varint::push(&mut out, number);
        }
        let mut before = 0;
        let filled = (0_u64..).zip(&self.latency.0).filter(|(_, count)| **count > 0);
        for (bucket, count) in filled {
            varint::push(&mut out, bucket - before);
            varint::push(&mut out, *count);
            before = bucket;
        }
        out
    }
}

/// Cells by what their calls have in common.
pub(super) type Cells = BTreeMap<CellKey, Cell>;

/// One stored cell.
struct Stored<'a> {
    key: CellKey,
    body: &'a [u8],
}

fn take_stored<'a>(bytes: &mut &'a [u8]) -> Option<Stored<'a>> {
    let mut number = || varint::take(bytes).and_then(|n| i64::try_from(n).ok());
    let key = CellKey {
        tool: number()?,
        upstream_tool: number()?,
        caller: number()?,
        outcome: number()?,
    };
    let length = usize::try_from(varint::take(bytes)?).ok()?;
    let (body, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(Stored { key, body })
}

fn push_stored(out: &mut Vec<u8>, key: CellKey, body: &[u8]) {
    for number in [key.tool, key.upstream_tool, key.caller, key.outcome] {
        varint::push(out, u64::try_from(number).unwrap_or(0));
    }
    varint::push(out, u64::try_from(body.len()).unwrap_or(0));
    out.extend_from_slice(body);
}

/// Stored cells with `more` added; `None` when what is stored is damaged. Cells that do not change
/// are copied as they are.
pub(super) fn merge(mut stored: &[u8], more: &Cells) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(stored.len() + more.len() * 32);
    let mut more = more.iter().peekable();
    while !stored.is_empty() {
        let old = take_stored(&mut stored)?;
        while let Some((key, cell)) = more.next_if(|(key, _)| **key < old.key) {
            push_stored(&mut out, *key, &cell.body());
        }
        match more.next_if(|(key, _)| **key == old.key) {
            Some((key, cell)) => {
                let mut cell = cell.clone();
                cell.add_body(old.body)?;
                push_stored(&mut out, *key, &cell.body());
            }
            None => push_stored(&mut out, old.key, old.body),
        }
    }
    more.for_each(|(key, cell)| push_stored(&mut out, *key, &cell.body()));
    Some(out)
}

/// What a stored cell has.
pub(super) struct Body<'a>(&'a [u8]);

impl Body<'_> {
    /// Adds it; `None` when it is damaged.
    pub(super) fn add_to(&self, cell: &mut Cell) -> Option<()> {
        cell.add_body(self.0)
    }
}

/// Shows each stored cell to `each`; `None` when they are damaged, or `each` says so.
pub(super) fn for_each(
    mut stored: &[u8],
    mut each: impl FnMut(CellKey, Body<'_>) -> Option<()>,
) -> Option<()> {
    while !stored.is_empty() {
        let cell = take_stored(&mut stored)?;
        each(cell.key, Body(cell.body))?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn calls() -> impl Strategy<Value = Vec<([i64; 4], u64, u64)>> {
        let key = prop::array::uniform4(0..4_i64);
        proptest::collection::vec((key, 0..u64::MAX / 2, 0..5000_u64), 0..60)
    }

    fn cells(calls: &[([i64; 4], u64, u64)]) -> Cells {
        let mut cells = Cells::new();
        for ([tool, upstream_tool, caller, outcome], micros, bytes) in calls.iter().copied() {
            let key = CellKey { tool, upstream_tool, caller, outcome };
            cells.entry(key).or_default().record(micros, bytes, bytes * 2);
        }
        cells
    }

    fn read(stored: &[u8]) -> Cells {
        let mut cells = Cells::new();
        for_each(stored, |key, body| body.add_to(cells.entry(key).or_default())).unwrap();
        cells
    }

    proptest! {
        #[test]
        fn parts_add_up_to_the_whole(first in calls(), second in calls()) {
            let stored = merge(&[], &cells(&first)).unwrap();
            let stored = merge(&stored, &cells(&second)).unwrap();
            let all: Vec<_> = first.into_iter().chain(second).collect();
            prop_assert_eq!(read(&stored), cells(&all));
        }

        #[test]
        fn a_quantile_is_within_five_percent(mut values in proptest::collection::vec(0..1_u64 << 40, 1..200), part in 0.01..1.0_f64) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|value| histogram.record(*value));
            values.sort_unstable();
            let rank = (1..values.len()).find(|rank| *rank as f64 >= values.len() as f64 * part);
            let rank = rank.unwrap_or(values.len());
            let (exact, found) = (values[rank - 1] as f64, histogram.quantile(part).unwrap() as f64);
            prop_assert!((found - exact).abs() <= exact * 0.05, "{found} for {exact}");
        }

        #[test]
        fn what_is_within_a_time_is_off_by_what_is_near_it(values in proptest::collection::vec(0..1_u64 << 30, 0..200), micros in 0..1_u64 << 30) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|value| histogram.record(*value));
            let below = |limit: f64| values.iter().filter(|value| **value as f64 <= limit).count() as u64;
            let found = histogram.within(micros);
            prop_assert!(below(micros as f64 * 0.95 - 1.0) <= found, "{found}");
            prop_assert!(found <= below(micros as f64 * 1.05 + 1.0), "{found}");
        }

        #[test]
        fn any_number_has_a_bucket_near_it(value: u64) {
            let found = middle(bucket(value)) as f64;
            prop_assert!((found - value as f64).abs() <= value as f64 * 0.05);
            prop_assert!(usize::from(bucket(value)) < BUCKETS);
        }

        #[test]
        fn nothing_stored_breaks_the_reader(bytes: Vec<u8>) {
            let _ = merge(&bytes, &Cells::new());
            let mut cell = Cell::default();
            let _ = cell.add_body(&bytes);
        }
    }

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(Histogram::default().quantile(0.5), None);
    }
}
