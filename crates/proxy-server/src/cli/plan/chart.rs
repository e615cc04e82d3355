//! The drawing of a storm, as SVG: above, who waits when; below, what each way of serving devices costs.
//!
//! `plotters` draws. What is its business here: times and counts at round ticks, curves that are told apart by colour and stroke, and the two
//! kinds of cost on a logarithmic scale, which is said beside it.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::bars::peaks;

const WIDTH: u32 = 1000;
const CURVES_HEIGHT: u32 = 400;
const TABLE_HEAD: u32 = 64;
const ROW: u32 = 30;
const POINTS: usize = 300;
const FONT: &str = "sans-serif";

/// Told apart by people who see colours differently, too (Okabe and Ito); the last one is the loudest.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x77, 0x77, 0x77),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xD5, 0x5E, 0x00),
];

/// One way of serving devices, and what it cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Curve<'a> {
    pub(super) name: &'a str,
    /// Devices that waited, second by second.
    pub(super) waiting: &'a [u32],
    pub(super) requests_per_device: f64,
    /// Registrations that DPS refused.
    pub(super) throttled: u64,
}

/// A storm, drawn: `title` in two lines at most, and all counts multiplied by `scale`, which a simulation was divided by.
///
/// # Errors
/// What the drawing library says; memory never runs short of a drawing.
pub(super) fn svg(title: &str, note: &str, scale: u32, curves: &[Curve<'_>]) -> Result<String, String> {
    let rows = u32::try_from(curves.len()).unwrap_or(u32::MAX);
    let mut text = String::new();
    {
        let size = (WIDTH, CURVES_HEIGHT + TABLE_HEAD + ROW * rows + 36);
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&root, (title, note), scale, curves).map_err(|error| format!("the chart cannot be drawn: {error}"))?;
        root.present().map_err(|error| format!("the chart cannot be drawn: {error}"))?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(root: &Area<'_>, (title, note): (&str, &str), scale: u32, curves: &[Curve<'_>]) -> Drawn {
    root.fill(&WHITE)?;
    root.draw_text(title, &(FONT, 19).into_text_style(root), (16, 14))?;
    root.draw_text(note, &(FONT, 13).into_text_style(root).color(&BLACK.mix(0.7)), (16, 40))?;
    let (above, below) = root.split_vertically(CURVES_HEIGHT);
    draw_curves(&above, scale, curves)?;
    let (names, costs) = below.split_horizontally(400);
    let (requests, throttled) = costs.split_horizontally(290);
    draw_names(&names, curves)?;
    let row = |value: fn(&Curve<'_>) -> f64| curves.iter().map(value).collect::<Vec<_>>();
    let per_device = |value: f64| format!("{value:.2}");
    draw_bars(&requests, "requests per device (log scale)", &row(|curve| curve.requests_per_device), per_device)?;
    let refused: Vec<f64> = curves.iter().map(|curve| curve.throttled as f64 * f64::from(scale)).collect();
    draw_bars(&throttled, "429s of DPS (log scale)", &refused, |value| grouped(value as u64))
}

/// An axis from zero to the first round number that holds everything, with evenly spaced round ticks.
#[derive(Debug, Clone, Copy)]
struct Even {
    end: f64,
    step: f64,
}

impl Even {
    /// The smallest of `steps`, which grow, that needs at most eight ticks.
    fn up_to(most: f64, steps: impl Iterator<Item = f64>) -> Self {
        let step = steps.into_iter().find(|step| most / step <= 8.0).unwrap_or(most.max(1.0));
        Self { end: (most / step).ceil().max(1.0) * step, step }
    }

    fn of_time(seconds: f64) -> Self {
        const MINUTE: f64 = 60.0;
        const HOUR: f64 = 60.0 * MINUTE;
        let minutes = [1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0].map(|minutes| minutes * MINUTE);
        let hours = [1.0, 2.0, 3.0, 6.0, 12.0, 24.0].map(|hours| hours * HOUR);
        let days = (1..=64).map(|days| f64::from(days) * 48.0 * HOUR);
        Self::up_to(seconds, [5.0, 10.0, 20.0, 30.0].into_iter().chain(minutes).chain(hours).chain(days))
    }

    fn of_count(most: f64) -> Self {
        Self::up_to(most, (0..12).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power))))
    }
}

impl Ranged for Even {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        #[expect(clippy::cast_possible_truncation, reason = "pixels")]
        let offset = (value / self.end * f64::from(to - from)).round() as i32;
        from + offset
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        let ticks = (self.end / self.step).round();
        (0..=100).map(f64::from).take_while(|tick| *tick <= ticks).map(|tick| tick * self.step).collect()
    }

    fn range(&self) -> Range<f64> {
        0.0..self.end
    }
}

/// `1h 30m`: a round time without the zeros.
fn round_time(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a tick of the axis")]
    let seconds = seconds.round() as u64;
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let said: Vec<String> =
        parts.iter().filter(|(number, _)| *number > 0).map(|(number, unit)| format!("{number}{unit}")).collect();
    if said.is_empty() { "0".to_owned() } else { said.join(" ") }
}

/// `1,000,000`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(",")
}

fn colour(number: usize, of: usize) -> RGBColor {
    COLOURS[(number + COLOURS.len() - of.min(COLOURS.len())) % COLOURS.len()]
}

fn draw_curves(area: &Area<'_>, scale: u32, curves: &[Curve<'_>]) -> Drawn {
    let seconds = curves.iter().map(|curve| curve.waiting.len()).max().unwrap_or(0).max(1);
    let most = curves.iter().flat_map(|curve| curve.waiting).copied().max().unwrap_or(0).max(1);
    let axes = (Even::of_time(seconds as f64), Even::of_count(f64::from(most) * f64::from(scale)));
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .margin_top(64)
        .margin_right(44)
        .x_label_area_size(44)
        .y_label_area_size(84)
        .build_cartesian_2d(axes.0, axes.1)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 13))
        .x_desc("time since the power returned")
        .y_desc("devices that wait for their hub")
        .x_label_formatter(&|seconds| round_time(*seconds))
        .y_label_formatter(&|devices| grouped(devices.round() as u64))
        .draw()?;
    for (number, curve) in curves.iter().enumerate() {
        let length = curve.waiting.len() as f64;
        let point = |(index, peak): (usize, u32)| {
            (length * (index as f64 + 0.5) / POINTS as f64, f64::from(peak) * f64::from(scale))
        };
        let mut points = vec![(0.0, 0.0)];
        points.extend(peaks(curve.waiting, POINTS).into_iter().enumerate().map(point));
        points.push((length, 0.0));
        let style = colour(number, curves.len());
        // Where curves lie on each other, the gaps of the upper one show the lower one.
        let is_last = number + 1 == curves.len();
        if is_last || number % 2 == 0 {
            let width = if is_last { 3 } else { 2 };
            chart.draw_series(LineSeries::new(points, style.stroke_width(width)))?;
        } else {
            chart.draw_series(DashedLineSeries::new(points, 9, 6, style.stroke_width(2)))?;
        }
    }
    Ok(())
}

fn draw_names(area: &Area<'_>, curves: &[Curve<'_>]) -> Drawn {
    let style = (FONT, 14).into_text_style(area).pos(Pos::new(HPos::Left, VPos::Center));
    for (number, curve) in curves.iter().enumerate() {
        let y = row_centre(number);
        let colour = colour(number, curves.len());
        let dashed = number % 2 == 1 && number + 1 < curves.len();
        let strokes: &[(i32, i32)] = if dashed { &[(16, 27), (33, 44)] } else { &[(16, 44)] };
        for &(from, to) in strokes {
            area.draw(&Rectangle::new([(from, y - 2), (to, y + 2)], colour.filled()))?;
        }
        area.draw_text(curve.name, &style, (54, y))?;
    }
    Ok(())
}

fn row_centre(number: usize) -> i32 {
    i32::try_from(TABLE_HEAD).unwrap_or(0) + i32::try_from(number).unwrap_or(0) * i32::try_from(ROW).unwrap_or(0)
}

/// A bar and its number for each value, on a logarithmic scale from 1; none for zero.
fn draw_bars(area: &Area<'_>, what: &str, values: &[f64], said: impl Fn(f64) -> String) -> Drawn {
    const LENGTH: f64 = 190.0;
    area.draw_text(what, &(FONT, 14).into_text_style(area), (0, 16))?;
    let powers = values.iter().copied().fold(10.0, f64::max).log10().ceil();
    let at = |value: f64| {
        #[expect(clippy::cast_possible_truncation, reason = "pixels")]
        let pixels = (value.max(1.0).log10() / powers * LENGTH).round() as i32;
        pixels
    };
    let bottom = row_centre(values.len()) - 12;
    let grey = BLACK.mix(0.6);
    let tick = (FONT, 11).into_text_style(area).color(&grey).pos(Pos::new(HPos::Center, VPos::Top));
    // At most four ticks, at whole powers of ten.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a handful")]
    let (powers, stride) = (powers as usize, (powers as usize).div_ceil(3).max(1));
    for power in (0..=powers).step_by(stride) {
        let value = 10_u64.pow(u32::try_from(power).unwrap_or(0));
        let x = at(value as f64);
        area.draw(&PathElement::new(vec![(x, 44), (x, bottom)], BLACK.mix(0.12)))?;
        area.draw_text(&grouped(value), &tick, (x.max(4), bottom + 4))?;
    }
    let style = (FONT, 13).into_text_style(area).pos(Pos::new(HPos::Left, VPos::Center));
    for (number, &value) in values.iter().enumerate() {
        let y = row_centre(number);
        if value > 0.0 {
            let bar = Rectangle::new([(0, y - 7), (at(value).max(2), y + 7)], colour(number, values.len()).filled());
            area.draw(&bar)?;
        }
        area.draw_text(&said(value), &style, (at(value) + 6, y))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(axis: Even) -> Vec<f64> {
        axis.key_points(plotters::coord::ranged1d::BoldPoints(10))
    }

    #[test]
    fn ticks_are_round_and_the_last_one_is_the_end_of_the_axis() {
        assert_eq!(ticks(Even::of_count(22_741.0)), [0.0, 5_000.0, 10_000.0, 15_000.0, 20_000.0, 25_000.0]);
        let times: Vec<String> = ticks(Even::of_time(11_915.0)).into_iter().map(round_time).collect();
        assert_eq!(times, ["0", "30m", "1h", "1h 30m", "2h", "2h 30m", "3h", "3h 30m"]);
        assert_eq!(ticks(Even::of_count(1.0)), [0.0, 1.0]);
        assert_eq!([grouped(0), grouped(999), grouped(55_479_508)], ["0", "999", "55,479,508"]);
    }

    #[test]
    fn the_drawing_names_every_curve_and_says_what_it_cost() {
        let curve =
            |name, waiting, requests_per_device, throttled| Curve { name, waiting, requests_per_device, throttled };
        let curves = [curve("one & two", &[3, 2, 1][..], 556.8, 554_795), curve("ours", &[5][..], 2.0, 0)];
        let svg = svg("a < b", "half a minute", 10, &curves).unwrap();
        for said in ["a &lt; b", "one &amp; two", "ours", "556.80", "5,547,950", "2.00", "log scale", "half a minute"] {
            assert!(svg.contains(said), "{said} is not in {svg}");
        }
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    }
}
