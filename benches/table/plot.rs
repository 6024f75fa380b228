//! A line plot as SVG: logarithmic axes with a marker for each place, or linear ones from 0, and a name for each series.
//!
//! It stands on a light ground of its own, so that it is readable on a dark page too. Knows nothing of what is plotted.

use std::fmt::Write as _;

pub struct Plot {
    pub title: String,
    pub x: &'static str,
    pub y: &'static str,
    pub scale: Scale,
    pub series: Vec<Series>,
}

/// How both axes are divided.
#[derive(Clone, Copy, PartialEq, Eq)]
// Each of the programs that plot uses one of them.
#[allow(dead_code)]
pub enum Scale {
    Logarithmic,
    /// From 0.
    Linear,
}

/// A name, and places in the order of x. One that is not above 0 has no place on logarithmic axes.
pub struct Series {
    pub name: String,
    pub places: Vec<(f64, f64)>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 104.0;

/// Okabe and Ito's colours, which stay apart for the colour-blind.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// An axis from `low` to `high`, both powers of ten or a step of 1, 2, 5 beside them; a linear one from 0 to a step.
struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn of(scale: Scale, values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        if scale == Scale::Linear {
            let high = values.fold(0.0, f64::max);
            let step = linear_step(high);
            return Self { scale, low: 0.0, high: (high / step).ceil() * step, from, to };
        }
        let (low, high) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max));
        let (mut low, mut high) = (step_below(low), -step_below(-high));
        if low >= high {
            (low, high) = (low / 2.0, high * 2.0);
        }
        Self { scale, low, high, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let part = match self.scale {
            Scale::Logarithmic => (value / self.low).log10() / (self.high / self.low).log10(),
            Scale::Linear => value / self.high,
        };
        self.from + part * (self.to - self.from)
    }

    /// 1, 2 and 5 of each power of ten, or only the powers where that would be too many; on a linear axis its steps.
    fn ticks(&self) -> Vec<f64> {
        if self.scale == Scale::Linear {
            let step = linear_step(self.high);
            return (0..=10).map(|n| f64::from(n) * step).filter(|tick| *tick <= self.high * 1.001).collect();
        }
        let steps: &[f64] = if self.high / self.low > 500.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let within = |tick: &f64| *tick >= self.low * 0.999 && *tick <= self.high * 1.001;
        (-6..10).flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power))).filter(within).collect()
    }
}

/// 1, 2 or 5 times a power of ten, of which four to ten make `high`.
fn linear_step(high: f64) -> f64 {
    step_below(high / 4.0)
}

/// The next of 1, 2, 5, 10, … that is not above `value`; for a negative one, the negative of the next that is not below.
fn step_below(value: f64) -> f64 {
    let power = 10_f64.powf(value.abs().log10().floor());
    let up = value < 0.0;
    let steps: &[f64] = if up { &[1.0, 2.0, 5.0, 10.0] } else { &[5.0, 2.0, 1.0] };
    let fits = |step: &&f64| if up { **step * power >= -value * 0.999 } else { **step * power <= value * 1.001 };
    let step = steps.iter().find(fits).copied().unwrap_or(1.0);
    if up { -step * power } else { step * power }
}

/// A number as a person writes it: 10,000, 0.5.
pub fn number(value: f64) -> String {
    let text = match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.095 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let (sign, digits) = whole.split_at(usize::from(whole.starts_with('-')));
    let grouped: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|c| std::str::from_utf8(c).unwrap_or("")).collect();
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{}{point}{fraction}", grouped.join(","))
}

/// The same for an axis, without zeros at the end.
fn label(value: f64) -> String {
    let text = number(value);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn shown(scale: Scale, places: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> + Clone {
    places.iter().copied().filter(move |(x, y)| scale == Scale::Linear || *x > 0.0 && *y > 0.0)
}

impl Plot {
    /// The whole file. `None` when there is nothing to draw.
    pub fn svg(&self) -> Option<String> {
        let places = || self.series.iter().flat_map(|series| shown(self.scale, &series.places));
        places().find(|(x, y)| *x > 0.0 && *y > 0.0)?;
        let x = Axis::of(self.scale, places().map(|p| p.0), LEFT, WIDTH - RIGHT);
        let y = Axis::of(self.scale, places().map(|p| p.1), HEIGHT - BOTTOM, TOP);
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.draw(&mut out, &x, &y);
        Some(out)
    }

    fn draw(&self, out: &mut String, x: &Axis, y: &Axis) -> std::fmt::Result {
        let (right, bottom, middle) = (WIDTH - RIGHT, HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2.0);
        writeln!(
            out,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="13" fill="#24292f" role="img">
<title>{}</title>
<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#fdfdfc"/>
<text x="{middle}" y="26" text-anchor="middle" font-size="15" font-weight="600">{}</text>"##,
            self.title, self.title
        )?;
        for tick in x.ticks() {
            let at = x.at(tick);
            writeln!(
                out,
                r##"<path d="M{at:.1} {TOP}V{bottom}" stroke="#e3e6ea"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"##,
                bottom + 19.0,
                label(tick)
            )?;
        }
        for tick in y.ticks() {
            let at = y.at(tick);
            writeln!(
                out,
                r##"<path d="M{LEFT} {at:.1}H{right}" stroke="#e3e6ea"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"##,
                LEFT - 8.0,
                at + 4.5,
                label(tick)
            )?;
        }
        writeln!(
            out,
            r##"<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#57606a"/>
<text x="{middle}" y="{:.1}" text-anchor="middle">{}</text>
<text transform="translate(18 {:.1}) rotate(-90)" text-anchor="middle">{}</text>"##,
            bottom + 42.0,
            self.x,
            f64::midpoint(TOP, bottom),
            self.y
        )?;
        let mut left = LEFT - 20.0;
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let places: Vec<(f64, f64)> =
                shown(self.scale, &series.places).map(|(px, py)| (x.at(px), y.at(py))).collect();
            let line: Vec<String> = places.iter().map(|(px, py)| format!("{px:.1},{py:.1}")).collect();
            writeln!(out, r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#, line.join(" "))?;
            // On linear axes time goes by: places are many, and the line is enough.
            let marked = if self.scale == Scale::Linear { Vec::new() } else { places };
            for (px, py) in marked {
                writeln!(out, r#"<circle cx="{px:.1}" cy="{py:.1}" r="3.5" fill="{colour}"/>"#)?;
            }
            let down = HEIGHT - 24.0;
            writeln!(
                out,
                r#"<path d="M{left:.1} {down}h22" stroke="{colour}" stroke-width="3"/><text x="{:.1}" y="{:.1}">{}</text>"#,
                left + 29.0,
                down + 4.5,
                series.name
            )?;
            // About how wide a letter is at this size.
            left += 58.0 + 6.7 * f64::from(u32::try_from(series.name.chars().count()).unwrap_or(0));
        }
        out.push_str("</svg>\n");
        Ok(())
    }
}
