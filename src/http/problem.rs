//! Errors as answers: RFC 9457 problem details. The only place where an error becomes a status.
//!
//! Every error enum is matched without a wildcard, so that a new cause does not compile until it has its code.

use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::answer::Body;
use super::error::Error;
use crate::event::EventId;
use crate::log::{AppendError, ReadError, ReadingError, StreamError};

macro_rules! codes {
    ($($name:ident $text:literal $status:ident)+) => {
        /// The stable word for what went wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($name),+ }

        impl Code {
            /// All of them, in the order of the contract.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The word on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            /// The status that it is answered with.
            #[must_use]
            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status),+ }
            }
        }
    };
}

codes! {
    BadTopic "bad_topic" BAD_REQUEST
    BadPattern "bad_pattern" BAD_REQUEST
    BadQuery "bad_query" BAD_REQUEST
    BadHeader "bad_header" BAD_REQUEST
    BadId "bad_id" BAD_REQUEST
    BadJson "bad_json" BAD_REQUEST
    BadUtf8 "bad_utf8" BAD_REQUEST
    BadEventType "bad_event_type" BAD_REQUEST
    BadKey "bad_key" BAD_REQUEST
    Unauthorized "unauthorized" UNAUTHORIZED
    Forbidden "forbidden" FORBIDDEN
    ForbiddenOrigin "forbidden_origin" FORBIDDEN
    NotFound "not_found" NOT_FOUND
    MethodNotAllowed "method_not_allowed" METHOD_NOT_ALLOWED
    NotAcceptable "not_acceptable" NOT_ACCEPTABLE
    Timeout "timeout" REQUEST_TIMEOUT
    TopicClosed "topic_closed" CONFLICT
    PreconditionFailed "precondition_failed" PRECONDITION_FAILED
    TooLarge "too_large" PAYLOAD_TOO_LARGE
    IdempotencyConflict "idempotency_conflict" UNPROCESSABLE_ENTITY
    TooManyRequests "too_many_requests" TOO_MANY_REQUESTS
    Overloaded "overloaded" SERVICE_UNAVAILABLE
    Draining "draining" SERVICE_UNAVAILABLE
    StorageFailed "storage_failed" SERVICE_UNAVAILABLE
    OutcomeUnknown "outcome_unknown" GATEWAY_TIMEOUT
}

impl Code {
    /// Whether it will pass by itself, so that an `EventSource`, which never retries after a non-200, is to be sent away
    /// in a way that lets it come back.
    #[must_use]
    pub fn passes_by_itself(self) -> bool {
        matches!(self, Self::TooManyRequests | Self::Overloaded | Self::Draining)
    }

    /// Seconds for `Retry-After`: an overload passes with the next group commits, a drain takes as long as a restart, and
    /// storage that failed is tried again by the log itself every few seconds.
    fn retry_after(self) -> Option<u32> {
        match self {
            Self::Overloaded => Some(1),
            Self::Draining => Some(2),
            Self::StorageFailed => Some(5),
            _ => None,
        }
    }
}

/// An error on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub code: Code,
    /// What was wrong with what the client sent, and how to mend it.
    pub detail: String,
    /// For `method_not_allowed`: what the resource takes.
    pub allow: Option<&'static str>,
    /// For a condition that was not met: the id of the topic's newest retained event, or 0.
    pub last: Option<EventId>,
}

#[derive(Serialize)]
struct Details<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<EventId>,
}

impl Problem {
    /// The details as one line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        let status = self.code.status();
        let details = Details {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: &self.detail,
            code: self.code.as_str(),
            last: self.last,
        };
        // Strings and a number are always valid JSON; were they not, an empty problem would still be one.
        serde_json::to_string(&details).unwrap_or_else(|_| "{}".to_owned())
    }

    /// The answer.
    #[must_use]
    pub fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::full(self.json()));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.code.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let allow = match &error {
            Error::Method { allow, .. } => Some(*allow),
            _ => None,
        };
        let last = match &error {
            Error::Append(AppendError::ConditionFailed { last }) => Some(*last),
            _ => None,
        };
        Self { code: code(&error), detail: error.to_string(), allow, last }
    }
}

impl From<StreamError> for Problem {
    fn from(error: StreamError) -> Self {
        Error::Stream(error).into()
    }
}

fn code(error: &Error) -> Code {
    match error {
        Error::Topic { .. } | Error::TopicEncoding => Code::BadTopic,
        Error::Pattern { .. } | Error::PatternEncoding => Code::BadPattern,
        Error::Query(_) => Code::BadQuery,
        Error::Header { .. } => Code::BadHeader,
        Error::Id { .. } | Error::IdTwice | Error::NoId => Code::BadId,
        Error::Json(_) => Code::BadJson,
        Error::Utf8 { .. } => Code::BadUtf8,
        Error::EventType(_) => Code::BadEventType,
        Error::Key(_) => Code::BadKey,
        Error::Line { why, .. } => code(why),
        Error::TooLarge { .. } | Error::TooManyEvents { .. } => Code::TooLarge,
        Error::NoResource | Error::NoRetention | Error::NoSnapshot => Code::NotFound,
        Error::Method { .. } => Code::MethodNotAllowed,
        Error::NotAcceptable => Code::NotAcceptable,
        Error::Slow(_) => Code::Timeout,
        Error::Overloaded(_) => Code::Overloaded,
        Error::Draining => Code::Draining,
        Error::Refusing { .. } => Code::StorageFailed,
        Error::Host(_) => Code::Forbidden,
        Error::Origin(_) => Code::ForbiddenOrigin,
        Error::Append(error) => append_code(error),
        Error::Read(error) => read_code(error),
        Error::Stream(error) => stream_code(error),
    }
}

fn append_code(error: &AppendError) -> Code {
    match error {
        AppendError::Overloaded => Code::Overloaded,
        AppendError::TooManyTopics { .. } => Code::TooManyRequests,
        AppendError::Storage { .. } => Code::StorageFailed,
        AppendError::OutcomeUnknown => Code::OutcomeUnknown,
        AppendError::Closed => Code::Draining,
        AppendError::TopicClosed { .. } => Code::TopicClosed,
        AppendError::ConditionFailed { .. } | AppendError::SnapshotOlder { .. } => Code::PreconditionFailed,
        AppendError::IdempotencyConflict => Code::IdempotencyConflict,
        AppendError::BeyondTail { .. } => Code::BadId,
    }
}

fn read_code(error: &ReadError) -> Code {
    match error {
        ReadError::Storage { .. } => Code::StorageFailed,
        ReadError::TooLarge { .. } => Code::TooLarge,
        ReadError::Overloaded { .. } => Code::Overloaded,
    }
}

fn stream_code(error: &StreamError) -> Code {
    match error {
        StreamError::Draining { .. } => Code::Draining,
        StreamError::Reading { source, .. } => match source {
            ReadingError::Store(_) => Code::StorageFailed,
            ReadingError::TooLarge => Code::TooLarge,
            ReadingError::Busy => Code::Overloaded,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::Topic;

    #[test]
    fn a_problem_says_what_how_and_which() {
        let why = Topic::parse("a b").unwrap_err();
        let problem = Problem::from(Error::topic("a b", why));
        let json: serde_json::Value = serde_json::from_str(&problem.json()).unwrap();
        assert_eq!(json["code"], "bad_topic");
        assert_eq!(json["status"], 400);
        assert_eq!(json["title"], "Bad Request");
        assert!(json["detail"].as_str().unwrap().contains("\"a b\""), "{json}");
        assert!(json["type"].is_string());
        assert!(!problem.json().contains('\n'));
    }

    #[test]
    fn only_503_tells_when_to_come_back() {
        for &code in Code::ALL {
            let response = Problem { code, detail: String::new(), allow: None, last: None }.response();
            assert_eq!(response.headers().contains_key(RETRY_AFTER), response.status() == 503, "{code:?}");
        }
    }

    #[test]
    fn an_outcome_that_nobody_knows_is_no_failure() {
        let status = |e: AppendError| Problem::from(Error::from(e)).response().status().as_u16();
        assert_eq!(status(AppendError::OutcomeUnknown), 504);
        assert_eq!(status(AppendError::Overloaded), 503);
        assert_eq!(status(AppendError::TooManyTopics { max: 1 }), 429);
        assert_eq!(status(AppendError::Storage { reason: "x".into() }), 503);
        assert_eq!(status(AppendError::Closed), 503);
    }

    #[test]
    fn a_bad_line_keeps_the_code_of_its_cause() {
        let problem = Problem::from(Error::Key(crate::event::InvalidName::Empty).at_line(3));
        assert_eq!(problem.code, Code::BadKey);
        assert!(problem.detail.starts_with("line 3: "), "{}", problem.detail);
    }
}
