//! Keys that well-known services hand out: how they begin, and what follows. PURE.
//!
//! Changes when a service has another form of key. Where a beginning is also one of names and words, what
//! follows has to be telling; where it is in a key is [`search`](super::search)'s to say.

use super::search::{ends_cut, is_word, run};

/// What follows the beginning of a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body {
    /// At least so many letters, digits, `_` and `-`, also with dots between.
    Word(usize),
    /// Such a word that has a digit and a letter.
    Mixed(usize),
    /// So many letters and digits at its beginning: names have a `_` or `-` before that.
    Plain(usize),
    /// So many digits of hex at its beginning.
    Hex(usize),
    /// So many of `A` to `Z` and `2` to `7` at its beginning.
    Base32(usize),
    /// At least so many letters of base64, in either alphabet.
    Base64(usize),
}

use Body::{Base32, Base64, Hex, Mixed, Plain, Word};

/// How keys begin, and what follows.
pub(super) const KEYS: [(&str, Body); 115] = [
    ("sk-", Word(16)),
    ("sk_live_", Word(10)),
    ("sk_test_", Word(10)),
    ("rk_live_", Word(10)),
    ("pk_live_", Word(10)),
    ("rk_test_", Plain(16)),
    ("pk_test_", Plain(16)),
    ("whsec_", Word(16)),
    ("sy_", Word(16)),
    ("ghp_", Word(16)),
    ("gho_", Word(16)),
    ("ghu_", Word(16)),
    ("ghs_", Word(16)),
    ("ghr_", Word(16)),
    ("github_pat_", Word(16)),
    ("glpat-", Word(12)),
    ("glrt-", Word(12)),
    ("gldt-", Word(12)),
    ("glptt-", Word(12)),
    ("glcbt-", Word(12)),
    ("glimt-", Word(12)),
    ("glsoat-", Word(12)),
    ("glffct-", Word(12)),
    ("glft-", Word(16)),
    ("gloas-", Word(16)),
    ("glagent-", Word(40)),
    ("xoxb-", Word(10)),
    ("xoxp-", Word(10)),
    ("xoxa-", Word(10)),
    ("xoxs-", Word(10)),
    ("xoxe-", Word(10)),
    ("xoxr-", Word(10)),
    ("xoxe.", Word(16)),
    ("xoxo-", Mixed(16)),
    ("xapp-", Word(10)),
    ("xwfp-", Word(16)),
    ("npm_", Word(20)),
    ("pypi-", Word(30)),
    ("rubygems_", Hex(32)),
    ("hf_", Word(20)),
    ("AIza", Word(30)),
    ("ya29.", Word(20)),
    ("1//0", Mixed(30)),
    ("GOCSPX-", Word(16)),
    ("AKIA", Word(16)),
    ("ASIA", Word(16)),
    ("ABIA", Base32(16)),
    ("ACCA", Base32(16)),
    ("SG.", Word(30)),
    ("shpat_", Word(16)),
    ("shpca_", Word(16)),
    ("shpss_", Word(16)),
    ("shppa_", Word(16)),
    ("sq0atp-", Word(16)),
    ("sq0csp-", Word(16)),
    ("dop_v1_", Word(16)),
    ("doo_v1_", Word(16)),
    ("dor_v1_", Word(16)),
    ("ATATT3", Base64(20)),
    ("ATCTT3", Base64(20)),
    ("ATBB", Mixed(24)),
    ("hvs.", Mixed(20)),
    ("hvb.", Mixed(20)),
    ("hvr.", Mixed(20)),
    ("glsa_", Plain(24)),
    ("glc_eyJ", Base64(20)),
    ("dckr_pat_", Word(20)),
    ("dckr_oat_", Word(20)),
    ("lin_api_", Plain(24)),
    ("lin_oauth_", Plain(24)),
    ("ntn_", Plain(24)),
    ("sntrys_eyJ", Base64(20)),
    ("sntryu_", Hex(32)),
    ("dp.pt.", Mixed(32)),
    ("dp.st.", Mixed(32)),
    ("dp.ct.", Mixed(32)),
    ("dp.sa.", Mixed(32)),
    ("dp.scim.", Mixed(32)),
    ("dp.audit.", Mixed(32)),
    ("PMAK-", Hex(24)),
    ("NRAK-", Plain(20)),
    ("pul-", Hex(32)),
    ("gsk_", Plain(32)),
    ("xai-", Plain(32)),
    ("pplx-", Plain(32)),
    ("r8_", Plain(24)),
    ("nvapi-", Mixed(32)),
    ("AGE-SECRET-KEY-1", Plain(32)),
    ("figd_", Mixed(24)),
    ("CFPAT-", Mixed(24)),
    ("bkua_", Hex(32)),
    ("fm2_", Base64(40)),
    ("fm1a_", Base64(40)),
    ("fm1r_", Base64(40)),
    ("fo1_", Mixed(32)),
    ("sbp_", Hex(32)),
    ("phx_", Plain(24)),
    ("pscale_tkn_", Word(24)),
    ("pscale_pw_", Word(24)),
    ("pscale_oauth_", Word(24)),
    ("ops_eyJ", Base64(40)),
    ("tskey-", Mixed(16)),
    ("dapi", Hex(32)),
    ("SK", Hex(32)),
    ("AC", Hex(32)),
    ("key-", Hex(32)),
    ("pat-na1-", Mixed(24)),
    ("pat-eu1-", Mixed(24)),
    ("sk_", Hex(32)),
    ("secret_", Plain(40)),
    ("lsv2_pt_", Hex(24)),
    ("lsv2_sk_", Hex(24)),
    ("tvly-", Mixed(24)),
    ("fc-", Hex(32)),
    ("jina_", Plain(32)),
];

/// Before this and after it are the parts of a key for Terraform.
pub(super) const TERRAFORM: &str = ".atlasv1.";
/// So many letters and digits are before it.
const TERRAFORM_ID: usize = 14;
const TERRAFORM_BODY: usize = 40;
/// Before the colon are the digits of a bot of Telegram, and this and more is after it.
pub(super) const TELEGRAM: &str = ":AA";
const TELEGRAM_DIGITS: std::ops::RangeInclusive<usize> = 6..=12;
const TELEGRAM_BODY: usize = 30;

impl Body {
    /// Bytes of `text` that belong to a key whose beginning is before it; `None` when it is none.
    pub(super) fn length(self, text: &str) -> Option<usize> {
        let whole = match self {
            Base64(_) => {
                run(text, |byte| is_word(byte) || matches!(byte, b'.' | b'+' | b'/' | b'='))
            }
            // Some have parts with dots between; one at the end belongs to the sentence.
            _ => run(text, |byte| is_word(byte) || byte == b'.'),
        };
        let length = text.get(..whole)?.trim_end_matches('.').len();
        let word = text.get(..length)?.as_bytes();
        let has = |kind: fn(&u8) -> bool| word.iter().any(kind);
        let first = |kind: fn(u8) -> bool| word.iter().take_while(|byte| kind(**byte)).count();
        let (fit, least) = match self {
            Word(least) | Base64(least) => (length, least),
            Mixed(least) => {
                let mixed = has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic);
                (if mixed || ends_cut(text, length) { length } else { 0 }, least)
            }
            Plain(least) => (first(|byte| byte.is_ascii_alphanumeric()), least),
            Hex(least) => (first(|byte| byte.is_ascii_hexdigit()), least),
            Base32(least) => (first(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7')), least),
        };
        (fit >= least || (fit > 0 && ends_cut(text, fit))).then_some(length)
    }
}

/// Where a key for Terraform is in whose middle [`TERRAFORM`] stands at `at`.
pub(super) fn terraform(text: &str, at: usize) -> Option<(usize, usize)> {
    let rest = text.get(at..)?.strip_prefix(TERRAFORM)?;
    let length = Word(TERRAFORM_BODY).length(rest)?;
    let id = before(text, at, TERRAFORM_ID, |byte| byte.is_ascii_alphanumeric());
    (id == TERRAFORM_ID).then_some((at - id, at + TERRAFORM.len() + length))
}

/// Where the key of a bot of Telegram is that has its colon at `at`.
pub(super) fn telegram(text: &str, at: usize) -> Option<(usize, usize)> {
    let length = Word(TELEGRAM_BODY).length(text.get(at + 1..)?)?;
    let most = TELEGRAM_DIGITS.end() + 1;
    let digits = before(text, at, most, |byte| byte.is_ascii_digit());
    TELEGRAM_DIGITS.contains(&digits).then_some((at - digits, at + 1 + length))
}

/// How many of the last bytes before `at` are of a kind, as far as `most`.
fn before(text: &str, at: usize, most: usize, kind: impl Fn(u8) -> bool) -> usize {
    let bytes = text.as_bytes().get(..at).unwrap_or_default();
    bytes.iter().rev().take(most).take_while(|byte| kind(**byte)).count()
}

/// How keys of bots of Discord begin: with the digits of a number in base64.
pub(super) fn discord_beginnings() -> impl Iterator<Item = [u8; 3]> {
    let firsts = [b"MT", b"Mj", b"Mz", b"ND", b"NT", b"Nj", b"Nz", b"OD", b"OT"];
    firsts.into_iter().flat_map(|[one, two]| b"AEIMQUYcgk".iter().map(|three| [*one, *two, *three]))
}

/// Bytes of the key of a bot of Discord that `text` begins with: its number, a time and what proves it.
pub(super) fn discord(text: &str) -> Option<usize> {
    let number = run(text, |byte| byte.is_ascii_alphanumeric());
    let rest = text.get(number..)?.strip_prefix('.').filter(|_| (22..=28).contains(&number))?;
    let time = run(rest, is_word);
    let rest = rest.get(time..)?.strip_prefix('.').filter(|_| (5..=7).contains(&time))?;
    let proof = run(rest, is_word);
    (proof >= 24 || (proof > 0 && ends_cut(rest, proof))).then_some(number + time + proof + 2)
}

#[cfg(test)]
mod tests {
    use super::KEYS;
    use crate::redact::Redactor;

    fn redacted(text: &str) -> String {
        Redactor::default().text(text, 1000)
    }

    const HEX: &str = "0123456789abcdef0123456789abcdef";
    const LETTERS: &str = "Zq81LmNb7vRt0xKc2WpY5sDf9GhJ4aQe6Ui3";

    fn first(text: &str, length: usize) -> &str {
        text.get(..length).unwrap()
    }

    /// Keys as services write them, from letters that mean nothing.
    fn keys() -> Vec<String> {
        let long = LETTERS.repeat(3);
        let upper = LETTERS.to_ascii_uppercase();
        let mut keys = vec![
            format!("1//0g{LETTERS}-{LETTERS}_x"),
            format!("Zq81LmNb7vRt0x.atlasv1.{long}"),
            format!("123456789:AAH{}", first(LETTERS, 32)),
            format!("MTIzNDU2Nzg5MDEyMzQ1Njc4.GabcDe.{LETTERS}"),
            format!("NzkyNzE1NDU0MTk2MDg4ODQy.X-{}.{LETTERS}", first(LETTERS, 4)),
            format!("OTk5OTk5OTk5OTk5OTk5OTk5OQ.GabcDe.{LETTERS}"),
            format!("dapi{HEX}-2"),
            format!("AGE-SECRET-KEY-1{upper}QQQQQQQQQQQQQQQQQQQQQQ"),
            format!("glsa_{}_a1b2c3d4", first(LETTERS, 32)),
            format!("PMAK-{}-{HEX}00", first(HEX, 24)),
            format!("dp.st.prd.{LETTERS}"),
            format!("tskey-auth-k{}CNTRL-{LETTERS}", first(LETTERS, 6)),
            format!("fm2_lJPECAAA{long}+ab/cd=="),
            format!("ATCTT3xFfG{long}_a-b=1A2B3C4D"),
            format!("xoxe.xoxp-1-{long}"),
            format!("figd_{}-{}_x", first(LETTERS, 20), first(LETTERS, 16)),
            "ABIAQ2RS3TUV4WXY5ZAB".to_owned(),
            format!("ops_eyJ{long}"),
            format!("pscale_tkn_{}-{}", first(LETTERS, 20), first(LETTERS, 20)),
        ];
        let bodies = KEYS.iter().filter(|(prefix, _)| !matches!(*prefix, "ABIA" | "ACCA" | "1//0"));
        keys.extend(bodies.map(|(prefix, body)| match body {
            super::Body::Hex(_) => format!("{prefix}{HEX}{HEX}"),
            _ => format!("{prefix}{LETTERS}{LETTERS}"),
        }));
        keys
    }

    #[test]
    fn keys_of_services_are_found() {
        for key in keys() {
            for (before, after) in
                [("use ", ", please"), ("https://h/a?x=", "&y=1"), ("\"", "\""), ("<", ">")]
            {
                let expected = format!("{before}***{after}");
                assert_eq!(redacted(&format!("{before}{key}{after}")), expected, "{key}");
            }
            let cut = format!("said {}\u{2026}", first(&key, key.len() - 1));
            assert_eq!(redacted(&cut), "said ***\u{2026}", "{cut}");
        }
    }

    #[test]
    fn all_of_them_are_in_the_manual() {
        let manual = include_str!("../../docs/ledger.md");
        for (prefix, _) in KEYS {
            assert!(manual.contains(&format!("`{prefix}`")), "{prefix}");
        }
    }

    #[test]
    fn the_key_of_a_bot_is_found_in_its_address() {
        let text = format!("https://api.telegram.org/bot123456789:AAH{}/getMe", first(LETTERS, 32));
        assert_eq!(redacted(&text), "https://api.telegram.org/bot***/getMe");
    }

    #[test]
    fn names_and_words_that_begin_like_keys_stay() {
        for text in [
            "dapi_client.connect(dapi_version_of_the_client_library)",
            "a pul-request and a key-value store with key-accessed-fields-of-all-the-maps",
            "ops_team_meeting_notes_of_the_year_2026_and_more.md",
            "ntn_network_topology_names and phx_router_helpers_for_all_of_it",
            "r8_optimizer_rules, gsk_render_node_get_children_of_a_node()",
            "pplx-embed-context-for-search and xai-org-grok-models-of-this-year",
            "glc_context_create, glsa_list_accounts_of_a_service",
            "lin_api_key_of_the_production_service, lin_oauth_callback_url_of_it",
            "ACCESSIBILITY of SKELETON SKUs, ACCEPTANCE, ACTIVE, SK_BUFF",
            "ACCADEMIA_DELLE_SCIENZE, ABIATHAR",
            "sbp_driver_initialize_all_the_devices_of_it",
            "hvs.is_a_module_of_theirs_with_many_words",
            "dp.pt.br.translations.of.all.the.pages.there",
            "xoxo-hugs-and-kisses-from-everybody",
            "figd_layout_of_many_components, CFPATTERNS",
            "pk_test_connection_pool, rk_test_runner_of_all",
            "1//0 is no number, a=1//04",
            "tskey-authentication-guide, nvapi-bindings-for-the-language-of-yours",
            "secret_santa_list_of_everybody_in_the_office_2026",
            "fm2_modulation, fo1_filter, sk_buff_head, fc-cache, jina_embeddings_v3",
            "at 12:AAAA:bbbb::1 and 12345678:AA",
            "example.atlasv1.com, x.at",
            "MTA.example.org, NTP.pool.org, MTIzNDU2Nzg5MDEyMzQ1Njc4.png",
            "rubygems_version, sntryu_x, pul-to-refresh, bkua_x",
            "ATBBQ and ATCTT3, PMAK-x, NRAK-something-else",
        ] {
            assert_eq!(redacted(text), text);
        }
    }
}
