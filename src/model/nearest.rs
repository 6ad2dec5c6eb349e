//! Names like a name that is unknown, for error messages.

/// Longer names are like nothing, and are not compared: in bytes.
const LONGEST: usize = 96;
/// No more names are compared: the answer to an error must not take longer than a call.
const CANDIDATES: usize = 5000;

/// At most `count` of `names` that are like `name`, best first.
///
/// A name that contains the other counts as like it, so that `get_time` finds
/// `time__get_current_time` as well as `gettime`.
#[must_use]
pub fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>, count: usize) -> Vec<String> {
    // Names come from anybody, and the comparison is quadratic in their length.
    if name.len() > LONGEST {
        return Vec::new();
    }
    let wanted = name.to_lowercase();
    let mut scored: Vec<(f64, &str)> = names
        .filter(|candidate| candidate.len() <= LONGEST)
        .take(CANDIDATES)
        .filter_map(|candidate| {
            let lower = candidate.to_lowercase();
            let tail = lower.rsplit("__").next().unwrap_or(&lower);
            let contained = wanted.len() >= 3 && (lower.contains(&wanted) || wanted.contains(tail));
            let score = strsim::jaro_winkler(&wanted, &lower)
                .max(strsim::jaro_winkler(&wanted, tail))
                .max(if contained { 0.9 } else { 0.0 })
                .max(if one_slip(&wanted, &lower) { 0.85 } else { 0.0 });
            (score >= 0.78).then_some((score, candidate))
        })
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    scored.into_iter().take(count).map(|(_, name)| name.to_owned()).collect()
}

/// One letter wrong, missing, too many or swapped with its neighbour. In words of three or four
/// letters the similarity above takes that for another word.
fn one_slip(wanted: &str, name: &str) -> bool {
    wanted.len() >= 3 && name.len() >= 3 && strsim::osa_distance(wanted, name) == 1
}

/// `; did you mean …?` for the end of a message, or nothing.
#[must_use]
pub fn did_you_mean(nearest: &[String]) -> String {
    let quoted: Vec<String> = nearest.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((one, [])) => format!("; did you mean {one}?"),
        Some((last, others)) => format!("; did you mean {} or {last}?", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likely_names_come_first_and_unlikely_ones_not_at_all() {
        let names = ["time__get_current_time", "time__convert_time", "files__read", "up__echo"];
        let find = |name: &str| nearest(name, names.iter().copied(), 3);
        assert_eq!(find("up__ehco"), ["up__echo"]);
        assert_eq!(find("time__get_curent_time").first().unwrap(), "time__get_current_time");
        assert_eq!(find("ehco"), ["up__echo"]);
        assert!(find("zzzzzzzz").is_empty());
    }

    #[test]
    fn a_slip_in_a_short_name_is_seen() {
        let names = ["url", "env", "cwd", "args"];
        let find = |name: &str| nearest(name, names.iter().copied(), 1);
        assert_eq!(find("ulr"), ["url"]);
        assert_eq!(find("evn"), ["env"]);
        assert_eq!(find("agrs"), ["args"]);
        assert!(find("xyz").is_empty());
    }

    #[test]
    fn the_question_reads_well() {
        let names: Vec<String> = ["a", "b", "c"].map(String::from).into();
        assert_eq!(did_you_mean(&names[..0]), "");
        assert_eq!(did_you_mean(&names[..1]), "; did you mean `a`?");
        assert_eq!(did_you_mean(&names), "; did you mean `a`, `b` or `c`?");
    }
}
