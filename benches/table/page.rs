//! docs/performance.md and its plots, written from the results and from what was written by hand.
//!
//! What holds: the page is a function of the results and the notes; a row without results says so.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::plot::{Plot, Scale, Series, number};
use crate::results::{Figure, Judged, Results, RowResult, Spread};
use crate::rows::{PLOTS, ROWS, Row};

const HEAD: &str = "\
# Performance

<!-- Written by `make bench` from performance.json and performance.notes.md: change those. -->

What tidelog promises of speed, measured. **Only ratios mean anything**: every figure is one of runs in turn, on servers that were started afresh with empty data, with durability `sync` and otherwise
defaults, on one machine. Given is the median, with the smallest and the largest value in brackets. `limit` is a bare epoll loop that writes each posted body to each subscriber, with no log and no
routing: the kernel's price. The crate is the Durable Streams server. `RocksDB` is RocksDB by itself, with the same options;
its iteration is over the same events as the replay, copied, each a record under its id.

Every delivery was checked: an event that is lost, doubled or out of order fails the run.

`make bench` repeats all of it, `make bench ROWS=fanout,publish PAIRS=3` a part; `make bench-peers` installs the other servers; `make bench-parts` measures parts of the program in process
([performance-parts.md](performance-parts.md)). `tidelog bench` makes the same load on any server of yours.
";

/// Writes the page and the plots into `out`. Gives the keys of the rows that did not reach their goal and have no reason in the notes.
pub fn write(results: &Results, notes: &Path, out: &Path) -> Result<Vec<&'static str>, String> {
    let notes = sections(&fs::read_to_string(notes).unwrap_or_default());
    let mut page = String::from(HEAD);
    let mut unexplained = Vec::new();
    // Writing to a String cannot fail.
    let _ = table(&mut page, results);
    let _ = reasons(&mut page, results, &notes, &mut unexplained);
    let _ = plots(&mut page, results, out)?;
    let _ = details(&mut page, results);
    let _ = machine(&mut page, results);
    for (name, text) in notes.iter().filter(|(name, _)| ROWS.iter().all(|row| row.key != name.as_str())) {
        let _ = write!(page, "\n## {name}\n\n{text}\n");
    }
    let path = out.join("performance.md");
    fs::write(&path, page).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(unexplained)
}

/// The notes by their headings `## …`, in the order of the file.
fn sections(text: &str) -> Vec<(String, String)> {
    let text = format!("\n{text}");
    let parts = text.split("\n## ").skip(1).filter_map(|part| part.split_once('\n'));
    parts.map(|(name, body)| (name.trim().to_owned(), body.trim().to_owned())).collect()
}

fn table(page: &mut String, results: &Results) -> std::fmt::Result {
    page.push_str(
        "\n## The table\n\n| what | measured | goal | median (min–max) | reached |\n| --- | --- | --- | --- | --- |\n",
    );
    for row in ROWS.iter().filter(|row| !row.goal.is_empty()) {
        let result = results.rows.get(row.key);
        let (seen, met) =
            result.map_or_else(|| ("not measured yet".to_owned(), "–"), |result| (seen(result), reached(result)));
        writeln!(page, "| {} | {} | {} | {seen} | {met} |", row.what, row.measured, row.goal)?;
    }
    Ok(())
}

fn reached(result: &RowResult) -> &'static str {
    match result.met() {
        Some(true) if result.missing.is_empty() => "yes",
        Some(true) => "as far as measured",
        Some(false) => "**no**",
        None => "–",
    }
}

/// All that is judged of a row, in one cell.
fn seen(result: &RowResult) -> String {
    let judged = result.figures.iter().filter(|figure| figure.goal.is_some());
    let mut cells: Vec<String> = judged
        .map(|figure| {
            let miss = if figure.met() == Some(false) { "**" } else { "" };
            let beside = figure.beside.as_ref().map(|beside| format!(" ÷ {beside}"));
            let beside = beside.filter(|_| figure.judged == Judged::Ratio).unwrap_or_default();
            format!("{}{beside}: {miss}{}{miss}", figure.what, judged_of(figure))
        })
        .collect();
    if cells.is_empty() {
        cells.extend(result.remarks.iter().map(|remark| escaped(remark)));
    }
    cells.extend(result.missing.iter().map(|missing| format!("*{missing}*")));
    cells.extend(result.error.iter().map(|error| format!("**ended early**: {}", escaped(error))));
    cells.join("<br>")
}

/// What is judged of a figure; a difference with its sign.
fn judged_of(figure: &Figure) -> String {
    match figure.judged {
        Judged::Ratio => spread(&figure.values(), ""),
        Judged::Value => spread(&figure.values(), &figure.unit),
        Judged::Difference => {
            let text = spread(&figure.values(), &figure.unit);
            if text.starts_with('-') { text } else { format!("+{text}") }
        }
    }
}

fn spread(values: &[f64], unit: &str) -> String {
    let Some(Spread { median, min, max, n }) = Spread::of(values) else { return "nothing measured".into() };
    let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
    if n == 1 {
        return format!("{}{unit}", number(median));
    }
    format!("{}{unit} ({}–{})", number(median), number(min), number(max))
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ").replace('<', "&lt;")
}

fn reasons(
    page: &mut String,
    results: &Results,
    notes: &[(String, String)],
    unexplained: &mut Vec<&'static str>,
) -> std::fmt::Result {
    let missed: Vec<&Row> =
        ROWS.iter().filter(|row| results.rows.get(row.key).and_then(RowResult::met) == Some(false)).collect();
    if missed.is_empty() {
        return Ok(());
    }
    page.push_str("\n## What was not reached, and why\n");
    for row in missed {
        let reason = notes.iter().find(|(key, _)| key == row.key).map(|(_, text)| text.as_str());
        if reason.is_none() {
            unexplained.push(row.key);
        }
        write!(page, "\n**{}.** {}\n", row.what, reason.unwrap_or("No reason has been written down yet."))?;
    }
    Ok(())
}

fn plots(page: &mut String, results: &Results, out: &Path) -> Result<std::fmt::Result, String> {
    let dir = out.join("plots");
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut drawn = Vec::new();
    for (row, key, title, x, y) in PLOTS {
        let Some(result) = results.rows.get(*row) else { continue };
        let mut series: Vec<Series> = Vec::new();
        for point in result.points.iter().filter(|point| point.plot == *key) {
            let Some(median) = Spread::of(&point.y).map(|spread| spread.median) else { continue };
            match series.iter_mut().find(|series| series.name == point.series) {
                Some(series) => series.places.push((point.x, median)),
                None => series.push(Series { name: point.series.clone(), places: vec![(point.x, median)] }),
            }
        }
        for series in &mut series {
            series.places.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        }
        let Some(svg) = (Plot { title: (*title).to_owned(), x, y, scale: Scale::Logarithmic, series }).svg() else {
            continue;
        };
        let file = dir.join(format!("{key}.svg"));
        fs::write(&file, svg).map_err(|e| format!("{}: {e}", file.display()))?;
        drawn.push((title, key));
    }
    if !drawn.is_empty() {
        page.push_str("\n## Plots\n");
    }
    Ok(drawn.into_iter().try_for_each(|(title, key)| write!(page, "\n![{title}](plots/{key}.svg)\n")))
}

fn details(page: &mut String, results: &Results) -> std::fmt::Result {
    if results.rows.is_empty() {
        return Ok(());
    }
    page.push_str("\n## The figures themselves\n\nThose of one machine on one day: they are here to see what the ratios are made of.\n");
    for row in ROWS {
        let Some(result) =
            results.rows.get(row.key).filter(|result| !result.figures.is_empty() || !result.remarks.is_empty())
        else {
            continue;
        };
        write!(page, "\n### `{}`: {}\n\n", row.key, row.what)?;
        if !result.figures.is_empty() {
            page.push_str("| figure | of | median (min–max) | beside | median (min–max) | judged | runs |\n| --- | --- | --- | --- | --- | --- | --- |\n");
        }
        for figure in &result.figures {
            let whose = figure.whose.as_deref().unwrap_or("tidelog");
            let ours = spread(&figure.ours, &figure.unit);
            let (beside, theirs) = match &figure.beside {
                Some(beside) => (beside.as_str(), spread(&figure.theirs, &figure.unit)),
                None => ("", String::new()),
            };
            let judged = match figure.judged {
                Judged::Ratio => format!("ratio {}", judged_of(figure)),
                Judged::Difference => format!("difference {}", judged_of(figure)),
                Judged::Value => String::new(),
            };
            writeln!(
                page,
                "| {} | {whose} | {ours} | {beside} | {theirs} | {judged} | {} |",
                figure.what,
                figure.ours.len()
            )?;
        }
        for remark in &result.remarks {
            write!(page, "\n{}\n", escaped(remark))?;
        }
        write!(page, "\nTaken {} in {} s.\n", result.at, number(result.seconds))?;
    }
    Ok(())
}

/// What is known of the machine. Rows may be of several runs: where these differ, each value names its rows.
fn machine(page: &mut String, results: &Results) -> std::fmt::Result {
    let mut facts: BTreeMap<&str, Vec<(&str, Vec<&str>)>> = BTreeMap::new();
    for row in ROWS {
        for (name, value) in results.rows.get(row.key).into_iter().flat_map(|result| &result.machine) {
            let values = facts.entry(name).or_default();
            match values.iter_mut().find(|(known, _)| known == value) {
                Some((_, rows)) => rows.push(row.key),
                None => values.push((value, vec![row.key])),
            }
        }
    }
    if facts.is_empty() {
        return Ok(());
    }
    page.push_str("\n## The machine\n\n| | |\n| --- | --- |\n");
    for (name, values) in facts {
        let one = values.len() == 1;
        let told = values.into_iter().map(|(value, rows)| {
            if one { escaped(value) } else { format!("{} ({})", escaped(value), rows.join(", ")) }
        });
        writeln!(page, "| {name} | {} |", told.collect::<Vec<_>>().join("<br>"))?;
    }
    Ok(())
}
