//! The contract, row by row: what is answered to what is asked rightly.

mod asking;
mod operators;
mod pages;
mod publish;
mod streams;
mod topics;

use serde_json::Value;

const SSE: (&str, &str) = ("Accept", "text/event-stream");
const LINES: (&str, &str) = ("Accept", "application/x-ndjson");
const PAGE: (&str, &str) = ("Accept", "application/json");

fn ids(page: &Value) -> Vec<u64> {
    page["events"].as_array().unwrap().iter().map(|event| event["id"].as_u64().unwrap()).collect()
}
