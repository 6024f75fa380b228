//! A log within a program, without HTTP: a counter of words that survives its own end.
//!
//!     printf 'the quick fox the fox\n' | cargo run --release --example embed -- ./words
//!
//! Each word of stdin is appended to the topic `words` with itself as the key and how often it has come as its data. So the log's state
//! is the table of all counts: the program begins with it, and what it has counted is on disk before the next line is read.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::BufRead as _;
use std::sync::Arc;

use tidelog::log::{Item, Options};
use tidelog::{BundleKind, Filter, Key, Log, NewEvent, Pattern, Topic};
use tokio_stream::StreamExt as _;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).ok_or("usage: embed DIRECTORY < text")?;
    let log = Log::open(Options::new(directory))?;
    let words = Topic::parse("words")?;
    let filter = Filter::new(vec![Pattern::from(words.clone())], Vec::new());

    // What was counted before, true at one id.
    let state = log.state(&Arc::new(filter.clone())).await?;
    let mut counts = BTreeMap::new();
    for entry in state.entries {
        let word = entry.key.map_or_else(String::new, |key| key.as_str().to_owned());
        counts.insert(word, entry.data.parse::<u64>()?);
    }
    println!("{} words are known, as of event {}", counts.len(), state.as_of);

    // Another part of the program follows along: the state first, then every change.
    let mut items = log.follow(filter, BundleKind::State).await?;
    let follower = tokio::spawn(async move {
        let (mut known, mut changes) = (0, 0);
        while let Some(item) = items.next().await.transpose()? {
            match item {
                Item::State(_) => known += 1,
                Item::Event(_) => changes += 1,
                Item::Live { .. } => println!("the follower has {known} words, and follows"),
                Item::Closed { last } => return Ok(format!("it saw {changes} changes, the last of them event {last}")),
                other => println!("the follower is told {other:?}"),
            }
        }
        Ok::<_, tidelog::log::StreamError>(format!("it saw {changes} changes"))
    });

    for line in std::io::stdin().lock().lines() {
        let mut batch = Vec::new();
        for word in line?.split_whitespace() {
            let Ok(key) = Key::parse(word) else { continue };
            let count = counts.entry(word.to_owned()).or_insert(0);
            *count += 1;
            batch.push(NewEvent { topic: words.clone(), event: None, key: Some(key), data: count.to_string() });
        }
        // A line is one batch: all of it is counted, or none.
        log.append(batch).await?;
    }

    for (word, count) in &counts {
        println!("{count:6} {word}");
    }
    log.drain();
    match follower.await? {
        Ok(told) => println!("{told}"),
        Err(ended) => println!("the follower ends: {ended}"),
    }
    log.close().await;
    Ok(())
}
