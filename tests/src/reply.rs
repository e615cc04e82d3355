//! An answer of the service.

use reqwest::header::HeaderMap;
use serde_json::Value;

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as it came.
    pub body: String,
    /// The body as JSON; `Null` if it is not JSON.
    pub json: Value,
}

impl Reply {
    /// Reads an answer to its end.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn read(response: reqwest::Response) -> reqwest::Result<Self> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.text().await?;
        let json = serde_json::from_str(&body).unwrap_or(Value::Null);
        Ok(Self { status, headers, body, json })
    }

    /// A header's text; empty if there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// `Retry-After`.
    ///
    /// # Panics
    /// If it is missing, not whole seconds, less than 1, or not what the body says.
    pub fn retry_after(&self) -> u64 {
        let text = self.header("retry-after");
        let seconds: u64 = text.parse().unwrap_or_else(|_| panic!("Retry-After is {text:?} in {self:?}"));
        assert!(seconds >= 1, "Retry-After: {seconds}");
        assert_eq!(self.json["retryAfter"], seconds, "header and body differ: {}", self.body);
        seconds
    }

    /// Asserts that this is 200.
    ///
    /// # Panics
    /// If it is not.
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{}", self.body);
        self
    }

    /// Asserts that this is a problem document of this status and code, and everything that holds for each of them.
    ///
    /// # Panics
    /// If it is not so.
    pub fn problem(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.json["code"].as_str()), (status, Some(code)), "{}", self.body);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.header("cache-control"), "no-store");
        assert_eq!(self.json["status"], status, "{}", self.body);
        assert!(!self.header("x-request-id").is_empty(), "{:?}", self.headers);
        assert_eq!(self.json["requestId"], self.header("x-request-id"));
        assert!(self.detail().len() > 10 && self.detail().contains(' '), "plain words: {}", self.body);
        if matches!(status, 401 | 403 | 422 | 429 | 503) {
            self.retry_after();
        }
        self
    }

    /// `detail` of a problem document.
    #[must_use]
    pub fn detail(&self) -> &str {
        self.json["detail"].as_str().unwrap_or_default()
    }
}
