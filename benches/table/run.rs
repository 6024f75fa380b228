//! One run of one row: how often, how large, who is there, what was seen.
//!
//! What holds: every sample goes into the row's result when it is taken, so that a run which ends early has left what it saw.

use std::time::{Duration, Instant};

use crate::load::{self, Load};
use crate::peers;
use crate::results::{Figure, Goal, Judged, Point, RowResult};
use crate::servers::{Server, Who};

/// What of the command line a row sees.
#[derive(Clone, Copy)]
pub struct Settings {
    /// Instead of each row's own number of pairs.
    pub pairs: Option<usize>,
    /// How much of the table's load: 1 for its figures, less to see that all of it works.
    pub scale: f64,
    /// Whether other servers are measured too.
    pub peers: bool,
}

/// What a row is given.
pub struct Run {
    pub settings: Settings,
    pub result: RowResult,
    /// How stderr names the row, such as `row 3 of 14, fanout-beyond`.
    name: String,
    begun: Instant,
    /// How long the row takes, as far as is known.
    expected: Duration,
}

/// What a figure is of: everything but its samples.
#[derive(Clone)]
pub struct Measure {
    what: String,
    unit: &'static str,
    judged: Judged,
    beside: Option<String>,
    whose: Option<&'static str>,
    goal: Option<Goal>,
}

impl Measure {
    pub fn value(what: impl Into<String>, unit: &'static str) -> Self {
        Self { what: what.into(), unit, judged: Judged::Value, beside: None, whose: None, goal: None }
    }

    pub fn ratio(what: impl Into<String>, unit: &'static str, beside: impl Into<String>) -> Self {
        Self { judged: Judged::Ratio, beside: Some(beside.into()), ..Self::value(what, unit) }
    }

    pub fn difference(what: impl Into<String>, unit: &'static str, beside: impl Into<String>) -> Self {
        Self { judged: Judged::Difference, ..Self::ratio(what, unit, beside) }
    }

    pub fn at_most(self, most: f64) -> Self {
        Self { goal: Some(Goal::AtMost(most)), ..self }
    }

    pub fn at_least(self, least: f64) -> Self {
        Self { goal: Some(Goal::AtLeast(least)), ..self }
    }

    /// The figure, without samples.
    fn figure(&self) -> Figure {
        Figure {
            what: self.what.clone(),
            unit: self.unit.into(),
            judged: self.judged,
            goal: self.goal,
            ours: Vec::new(),
            theirs: Vec::new(),
            whose: self.whose.map(Into::into),
            beside: self.beside.clone(),
        }
    }

    /// Of another server than ours: told, never judged.
    pub fn of(self, who: Who) -> Self {
        Self { whose: Some(who.name()), goal: None, ..self }
    }
}

impl Run {
    pub fn new(settings: Settings, name: String, expected: Duration) -> Self {
        Self { settings, result: RowResult::default(), name, begun: Instant::now(), expected }
    }

    /// How many pairs, where the row by itself takes `usual`.
    pub fn pairs(&self, usual: usize) -> usize {
        self.settings.pairs.unwrap_or(usual)
    }

    /// So many of `full` as the scale says, never fewer than `least`.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn scaled(&self, full: usize, least: usize) -> usize {
        ((full as f64 * self.settings.scale).round() as usize).max(least)
    }

    /// Tells where the run is, and about how long the row still takes.
    pub fn step(&self, what: &str) {
        let left = self.expected.saturating_sub(self.begun.elapsed());
        let left = if left.is_zero() { "no time".to_owned() } else { format!("about {}", minutes(left)) };
        eprintln!("{}: {what} ({left} left in this row)", self.name);
    }

    /// Whether `who` can be measured. One that is wanted and missing is told on stderr, in the result, and by the exit status.
    pub fn has(&mut self, who: Who) -> bool {
        if !self.settings.peers && matches!(who, Who::Crate | Who::Nchan) {
            self.remark(&format!("Without {}: other servers were left out of this run.", who.name()));
            return false;
        }
        match peers::present(who) {
            Ok(()) => true,
            Err(missing) => {
                if !self.result.missing.contains(&missing) {
                    eprintln!("{}: {missing}", self.name);
                    self.result.missing.push(missing);
                }
                false
            }
        }
    }

    /// Ours, the baseline, and those of `others` that are there.
    pub fn contenders(&mut self, sure: &[Who], others: &[Who]) -> Vec<Who> {
        let others: Vec<Who> = others.iter().copied().filter(|who| self.has(*who)).collect();
        [sure, &others].concat()
    }

    pub fn remark(&mut self, remark: &str) {
        if !self.result.remarks.iter().any(|r| r == remark) {
            self.result.remarks.push(remark.to_owned());
        }
    }

    /// Notes one sample of a figure.
    pub fn note(&mut self, measure: &Measure, ours: f64, theirs: Option<f64>) {
        let figures = &mut self.result.figures;
        let same = |f: &Figure| {
            f.what == measure.what
                && f.unit == measure.unit
                && f.beside == measure.beside
                && f.whose.as_deref() == measure.whose
        };
        let at = figures.iter().position(same).unwrap_or(figures.len());
        if at == figures.len() {
            figures.push(measure.figure());
        }
        figures[at].ours.push(ours);
        figures[at].theirs.extend(theirs);
    }

    /// Notes one place of a curve.
    pub fn point(&mut self, plot: &str, series: &str, x: f64, y: f64) {
        let points = &mut self.result.points;
        #[allow(clippy::float_cmp)] // the same x was computed the same way
        match points.iter_mut().find(|p| p.plot == plot && p.series == series && p.x == x) {
            Some(point) => point.y.push(y),
            None => points.push(Point { plot: plot.into(), series: series.into(), x, y: vec![y] }),
        }
    }

    /// Lets each take its turn, beginning with another one in each pair; what they gave is in the order of `all`.
    pub fn turns<A: Copy, T>(
        &mut self,
        pair: usize,
        all: &[A],
        mut turn: impl FnMut(&mut Self, A) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let n = all.len();
        let mut taken: Vec<Option<T>> = all.iter().map(|_| None).collect();
        for at in (0..n).map(|i| (i + pair) % n) {
            taken[at] = Some(turn(self, all[at])?);
        }
        Ok(taken.into_iter().flatten().collect())
    }

    /// One scenario on a server that is started for it. A peer's complaint is remarked; ours is an error. A peer that fails is tried
    /// once more: its mishaps should not end our row.
    pub fn load(&mut self, who: Who, scenario: &str, args: &[&str]) -> Result<Load, String> {
        let once = |run: &mut Self| run.load_on(&Server::start(who)?, scenario, args);
        match once(self) {
            Err(e) if who != Who::Tidelog => {
                self.remark(&format!("Tried again, once or more: {e}"));
                once(self)
            }
            done => done,
        }
    }

    /// The same on a server that runs already.
    pub fn load_on(&mut self, server: &Server, scenario: &str, args: &[&str]) -> Result<Load, String> {
        let load = load::run(server, scenario, args)?;
        if server.who == Who::Tidelog {
            return load.whole();
        }
        if let Some(complaint) = &load.complaint {
            self.remark(&format!("{}, once or more: {complaint}", server.who.name()));
        }
        Ok(load)
    }
}

/// Minutes, or seconds when there is none.
pub fn minutes(time: Duration) -> String {
    match time.as_secs() {
        s @ ..60 => format!("{s} s"),
        s => format!("{} min", s.div_ceil(60)),
    }
}
