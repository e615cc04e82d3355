//! Devices that wait, over time: as bars in the terminal, as curves in an SVG.

use std::fmt::Write as _;

const COLUMNS: usize = 60;
const ROWS: usize = 8;
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The longest of each of `points` stretches of the same length.
fn peaks(waiting: &[u32], points: usize) -> Vec<u32> {
    let stretch = |number: usize| {
        let start = number * waiting.len() / points;
        let end = ((number + 1) * waiting.len() / points).max(start + 1);
        waiting.get(start..end.min(waiting.len())).and_then(|part| part.iter().max()).copied().unwrap_or(0)
    };
    (0..points).map(stretch).collect()
}

/// Bars of the devices that waited, second by second.
pub(super) fn in_terminal(waiting: &[u32]) -> String {
    let peaks = peaks(waiting, COLUMNS);
    let most = peaks.iter().copied().max().unwrap_or(0).max(1);
    let mut text = String::from("\nDevices that wait\n");
    for row in (0..ROWS).rev() {
        let label = if row == ROWS - 1 { most.to_string() } else { String::new() };
        let bars = peaks.iter().map(|&peak| {
            // Rounded up, so that a single device is still seen.
            let height = (u64::from(peak) * (ROWS * 8) as u64).div_ceil(u64::from(most)) as usize;
            EIGHTHS[height.saturating_sub(row * 8).min(8)]
        });
        let bars: String = bars.collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{label:>9} │{}", bars.trim_end());
    }
    let end = super::answer::seconds(waiting.len());
    let _ = writeln!(text, "{:>9} └{}\n{:>11}0{end:>width$}", 0, "─".repeat(COLUMNS), "", width = COLUMNS - 1);
    text
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 90.0;
const TOP: f64 = 50.0;
const PLOT_WIDTH: f64 = WIDTH - LEFT - 20.0;
const PLOT_HEIGHT: f64 = HEIGHT - TOP - 60.0;
/// Told apart by people who see colours differently, too (Okabe and Ito); the last one is the loudest.
const COLOURS: [&str; 6] = ["#999999", "#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#D55E00"];
const POINTS: usize = 300;
const TICKS: usize = 5;

/// A drawing of one curve or several, named in a legend.
pub(super) fn svg(title: &str, curves: &[(&str, &[u32])]) -> String {
    let seconds = curves.iter().map(|(_, waiting)| waiting.len()).max().unwrap_or(0).max(1);
    let most = curves.iter().flat_map(|(_, waiting)| waiting.iter()).copied().max().unwrap_or(0).max(1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"26\" font-size=\"16\">{}</text>\n",
        escaped(title)
    );
    let bottom = TOP + PLOT_HEIGHT;
    for tick in 0..=TICKS {
        let share = tick as f64 / TICKS as f64;
        let (x, y) = (LEFT + PLOT_WIDTH * share, bottom - PLOT_HEIGHT * share);
        let time = super::answer::seconds(seconds * tick / TICKS);
        let devices = u64::from(most) * tick as u64 / TICKS as u64;
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{devices}</text>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{time}</text>\n",
            LEFT + PLOT_WIDTH,
            LEFT - 8.0,
            y + 4.0,
            bottom + 20.0
        );
    }
    for (number, (name, waiting)) in curves.iter().enumerate() {
        let colour = COLOURS[(number + COLOURS.len() - curves.len().min(COLOURS.len())) % COLOURS.len()];
        let span = PLOT_WIDTH * waiting.len() as f64 / seconds as f64;
        let mut points = format!("{LEFT:.1},{bottom:.1}");
        for (index, peak) in peaks(waiting, POINTS).into_iter().enumerate() {
            let x = LEFT + span * (index as f64 + 0.5) / POINTS as f64;
            let _ = write!(points, " {x:.1},{:.1}", bottom - PLOT_HEIGHT * f64::from(peak) / f64::from(most));
        }
        let _ = write!(points, " {:.1},{bottom:.1}", LEFT + span);
        let (x, y) = (LEFT + PLOT_WIDTH - 330.0, TOP + 16.0 * (number as f64 + 1.0));
        let _ = write!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <rect x=\"{x:.1}\" y=\"{:.1}\" width=\"18\" height=\"4\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{y:.1}\">{}</text>\n",
            y - 6.0,
            x + 26.0,
            escaped(name)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bars_fall_as_the_line_does() {
        let text = in_terminal(&(0..600).rev().collect::<Vec<u32>>());
        let lines: Vec<&str> = text.trim().lines().collect();
        let bars = |row: usize| lines[row].split_once('│').map_or(0, |(_, bars)| bars.chars().count());
        assert!(lines[1].trim_start().starts_with("599 │"), "{text}");
        assert!((1..ROWS).all(|row| bars(row) < bars(row + 1)), "{text}");
        assert!(lines[ROWS + 2].ends_with(" 10m 0s"), "{text}");
        assert!(!in_terminal(&[]).is_empty(), "an empty storm has a chart as well");
    }

    #[test]
    fn a_drawing_is_well_formed_text() {
        let svg = svg("a < b", &[("one & two", &[3, 2, 1]), ("other", &[5])]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("a &lt; b") && svg.contains("one &amp; two"));
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }
}
