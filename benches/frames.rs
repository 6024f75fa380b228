//! Encoding: an event as a frame, in each form.

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidelog::event::EventRef;
use tidelog::sse::Form;

fn encode(c: &mut Criterion) {
    let (small, large) = (common::text(128, 1), common::text(1 << 10, 2));
    let lines = "a line\n".repeat((1 << 20) / 7);
    let newlines = "\n".repeat(1 << 20);
    let data = [
        ("128 B", &small),
        ("1 KiB", &large),
        ("1 MiB in lines of 7", &lines),
        ("1 MiB of nothing but newlines", &newlines),
    ];
    for (name, data) in data {
        let event = EventRef {
            id: 1_234_567,
            topic: "orders.eu.42",
            event: Some("created"),
            key: None,
            time: 1_795_341_600_123,
            data,
        };
        let mut group = c.benchmark_group(format!("frame of {name}"));
        group.throughput(Throughput::Bytes(data.len() as u64)).sample_size(30);
        for (form_name, form) in [("SSE", Form::Sse), ("envelope", Form::SseEnvelope), ("JSON line", Form::Lines)] {
            let mut out = Vec::new();
            group.bench_function(form_name, |b| {
                b.iter(|| {
                    out.clear();
                    form.event(&mut out, std::hint::black_box(&event));
                    out.len()
                });
            });
        }
    }
}

criterion_group!(benches, encode);
criterion_main!(benches);
