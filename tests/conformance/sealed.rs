//! A request's state on its way through the client and back: readable there, but not to be
//! changed. Changes when what is sealed does.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::SystemRandom;
use rmcp::ErrorData;
use serde_json::{Value, json};

/// A key of this process.
pub struct Seal(hmac::Key);

impl Seal {
    pub fn new() -> Self {
        Self(hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).expect("a random key"))
    }

    /// `state`, which only a call of `owner` gets back.
    pub fn close(&self, owner: &str, state: &Value) -> String {
        let text = json!({ "owner": owner, "state": state }).to_string();
        let tag = hmac::sign(&self.0, text.as_bytes());
        format!("{}.{}", URL_SAFE_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(tag))
    }

    /// What was closed; an error if anything in it is not as it was.
    pub fn open(&self, owner: &str, sealed: &str) -> Result<Value, ErrorData> {
        self.verified(owner, sealed).ok_or_else(|| {
            ErrorData::invalid_params("requestState was not made for this call", None)
        })
    }

    fn verified(&self, owner: &str, sealed: &str) -> Option<Value> {
        let (text, tag) = sealed.split_once('.')?;
        let text = URL_SAFE_NO_PAD.decode(text).ok()?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(&self.0, &text, &tag).ok()?;
        let mut value: Value = serde_json::from_slice(&text).ok()?;
        (value["owner"] == owner).then(|| value["state"].take())
    }
}
