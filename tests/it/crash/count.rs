//! Two topics of which something goes: one that counts, with snapshots and trims up to them; one that retention trims.

use fastrand::Rng;
use serde_json::Value;
use tidelog::event::EventId;

use crate::support::{Conn, TestServer};

pub const COUNTED: &str = "s.count";
const RETAINED: &str = "r.kept";
const RETAINED_MAX: u64 = 500;

fn newest(server: &TestServer, topic: &str) -> Option<(u64, u64)> {
    let page = server.get(&format!("/topics/{topic}?from=-1"), &[("Accept", "application/json")]).json();
    let event = page["events"].as_array().unwrap().last()?.clone();
    Some((event["id"].as_u64().unwrap(), event["data"].as_str().unwrap().parse().unwrap()))
}

/// Each event is one more than the one before.
#[derive(Default)]
pub struct Counting {
    pub count: u64,
    pub snapshots: u64,
    /// The last event's id.
    last: u64,
    /// The newest snapshot that was acked.
    kept: Option<(u64, u64)>,
}

impl Counting {
    /// What was counted is there, and perhaps one more, which had no answer.
    pub fn check(&mut self, server: &TestServer) {
        let (last, count) = newest(server, COUNTED).unwrap_or((0, 0));
        assert!(count == self.count || count == self.count + 1, "counted to {}, {count} is there", self.count);
        assert!(count > self.count || last == self.last, "{count} moved from {} to {last}", self.last);
        (self.last, self.count) = (last, count);
        let answer = server.get(&format!("/topics/{COUNTED}/snapshot"), &[]);
        if answer.status == 200 {
            let at = answer.header("last-event-id").unwrap().parse().unwrap();
            let kept = (at, answer.body.parse().unwrap());
            assert!(self.kept.is_none_or(|before| kept >= before), "{kept:?} came after {:?}", self.kept);
            self.kept = Some(kept);
        } else {
            assert_eq!(self.kept, None, "a snapshot is gone: {answer:?}");
        }
    }

    /// Until the server is gone.
    pub fn count_on(&mut self, server: &TestServer, seed: u64) {
        let Ok(mut conn) = Conn::connect(server.addr) else { return };
        let mut rng = Rng::with_seed(seed);
        loop {
            let data = (self.count + 1).to_string();
            let Ok(answer) = conn.ask("POST", &format!("/topics/{COUNTED}"), &[], data.as_bytes()) else { return };
            assert_eq!(answer.status, 201, "{answer:?}");
            (self.last, self.count) = (answer.json()["id"].as_u64().unwrap(), self.count + 1);
            if rng.u8(..12) > 0 {
                continue;
            }
            let at = [("Last-Event-ID", &*self.last.to_string())];
            let body = self.count.to_string();
            let put = conn.ask("PUT", &format!("/topics/{COUNTED}/snapshot"), &at, body.as_bytes());
            let Ok(answer) = put else { return };
            assert_eq!(answer.status, 204, "{answer:?}");
            self.kept = Some((self.last, self.count));
            self.snapshots += 1;
            if rng.bool() {
                let trim = conn.ask("DELETE", &format!("/topics/{COUNTED}?before={}", self.last), &[], b"");
                let Ok(answer) = trim else { return };
                assert_eq!(answer.status, 204, "{answer:?}");
            }
        }
    }
}

/// Numbers that only grow, of which the newest are kept.
#[derive(Default)]
pub struct Retained {
    number: u64,
    acked: Vec<u64>,
}

impl Retained {
    pub fn check(&mut self, server: &TestServer) {
        let put = server.ask(
            "PUT",
            &format!("/topics/{RETAINED}/retention"),
            &[("Content-Type", "application/json")],
            format!("{{\"max_events\":{RETAINED_MAX}}}").as_bytes(),
        );
        assert_eq!(put.status, 204, "{put:?}");
        let target = format!("/topics/{RETAINED}?from=earliest&follow=false");
        let text = server.stream(&target, &[("Accept", "application/x-ndjson")]).rest().expect("it ends properly");
        let (mut kept, mut earliest): (Vec<(EventId, u64)>, EventId) = (Vec::new(), 0);
        for line in text.lines().filter(|line| !line.is_empty()) {
            let line: Value = serde_json::from_str(line).unwrap();
            if let Some(id) = line["id"].as_u64() {
                kept.push((id, line["data"].as_str().unwrap().parse().unwrap()));
            } else if line["event"] == "tidelog.gap" {
                // Retention has overtaken this reading. What had been read by then may still come, but nothing is missing only from here on.
                earliest = line["data"]["earliest"].as_u64().unwrap();
            }
        }
        assert!(kept.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1), "{kept:?}");
        kept.retain(|(id, _)| *id >= earliest);
        let Some(&(_, first)) = kept.first() else {
            return assert_eq!(self.acked, [0; 0], "nothing is retained");
        };
        // What retention takes it takes from the beginning, and never more than it may.
        self.acked.retain(|acked| *acked >= first);
        for acked in &self.acked {
            let is_there = kept.binary_search_by_key(acked, |(_, number)| *number).is_ok();
            assert!(is_there, "{acked} was acked, and {first} is retained");
        }
        assert!(first == 0 || kept.len() as u64 >= RETAINED_MAX * 9 / 10, "only {} are retained", kept.len());
    }

    pub fn publish(&mut self, server: &TestServer) {
        let Ok(mut conn) = Conn::connect(server.addr) else { return };
        loop {
            let numbers: Vec<u64> = (self.number..self.number + 40).collect();
            self.number += 40;
            let lines: String = numbers.iter().map(|n| format!("{{\"data\":\"{n}\"}}\n")).collect();
            let headers = [("Content-Type", "application/x-ndjson")];
            let Ok(answer) = conn.ask("POST", &format!("/topics/{RETAINED}"), &headers, lines.as_bytes()) else {
                return;
            };
            assert_eq!(answer.status, 201, "{answer:?}");
            self.acked.extend(numbers);
        }
    }
}
