//! What was measured: raw samples by row, kept as JSON, from which the page is written.
//!
//! What holds: a figure keeps the sample of every run, and what is judged is computed from them when it is asked for; writing one row's
//! results leaves the other rows' as they were.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Everything that `docs/performance.json` holds.
#[derive(Default, Serialize, Deserialize)]
pub struct Results {
    /// By the row's key.
    pub rows: BTreeMap<String, RowResult>,
}

/// What the last run of one row gave.
#[derive(Default, Serialize, Deserialize)]
pub struct RowResult {
    /// When the run began, RFC 3339.
    pub at: String,
    pub seconds: f64,
    pub machine: BTreeMap<String, String>,
    #[serde(default)]
    pub figures: Vec<Figure>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<Point>,
    /// What a reader of these figures has to know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// Who should have been measured and was not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Why the run ended before its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One quantity, run by run: ours and, where it is judged beside something, the other's of the same run.
#[derive(Serialize, Deserialize)]
pub struct Figure {
    pub what: String,
    pub unit: String,
    pub judged: Judged,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    pub ours: Vec<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub theirs: Vec<f64>,
    /// Whose `ours` is, when it is not tidelog's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whose: Option<String>,
    /// Whose `theirs` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<String>,
}

/// What of a figure is held against its goal.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judged {
    /// Ours by theirs.
    Ratio,
    /// Ours less theirs.
    Difference,
    /// Ours itself.
    Value,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// One place of a curve.
#[derive(Serialize, Deserialize)]
pub struct Point {
    pub plot: String,
    pub series: String,
    pub x: f64,
    pub y: Vec<f64>,
}

/// The middle of some values and how far they spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub n: usize,
}

impl Spread {
    /// Of no values there is none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (n, min, max) = (sorted.len(), *sorted.first()?, *sorted.last()?);
        let median = if n.is_multiple_of(2) { f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]) } else { sorted[n / 2] };
        Some(Self { median, min, max, n })
    }
}

impl Figure {
    /// What is judged, run by run.
    pub fn values(&self) -> Vec<f64> {
        let pairs = self.ours.iter().zip(&self.theirs);
        match self.judged {
            Judged::Ratio => pairs.map(|(ours, theirs)| ours / theirs).collect(),
            Judged::Difference => pairs.map(|(ours, theirs)| ours - theirs).collect(),
            Judged::Value => self.ours.clone(),
        }
    }

    /// Whether the median of what is judged reaches the goal. Nothing measured has not.
    pub fn met(&self) -> Option<bool> {
        let goal = self.goal?;
        Some(Spread::of(&self.values()).is_some_and(|spread| goal.met(spread.median)))
    }
}

impl Goal {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl RowResult {
    /// Whether every figure that has a goal reached it. `None` when there is nothing to judge.
    pub fn met(&self) -> Option<bool> {
        let mut judged = self.figures.iter().filter_map(Figure::met).peekable();
        judged.peek()?;
        Some(judged.all(|met| met) && self.error.is_none())
    }
}

impl Results {
    /// Reads the last results; there are none before the first run.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(format!("{}: {e}", path.display())),
        };
        serde_json::from_str(&text)
            .map_err(|e| format!("{} is not what this program wrote ({e}): mend or remove it", path.display()))
    }

    /// Replaces the file in one step, so that an interrupted run leaves the former results.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let mut text = serde_json::to_string_pretty(self).map_err(|e| e.to_string())?;
        text.push('\n');
        let aside = path.with_extension("json.new");
        fs::write(&aside, text).and_then(|()| fs::rename(&aside, path)).map_err(|e| format!("{}: {e}", path.display()))
    }
}
