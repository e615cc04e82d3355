//! Devices that wait, over time, as bars in the terminal.

use std::fmt::Write as _;

const COLUMNS: usize = 60;
const ROWS: usize = 8;
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The longest of each of `points` stretches of the same length.
pub(super) fn peaks(waiting: &[u32], points: usize) -> Vec<u32> {
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
}
