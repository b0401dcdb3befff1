//! Pictures of figures: groups of bars on a logarithmic scale, as SVG that needs nothing else.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 6] = ["#1b6ca8", "#e08e1b", "#3a8f5c", "#a33a3a", "#7d5ba6", "#6b6b6b"];

/// Groups of bars, one bar for each series in each group.
#[derive(Debug)]
pub struct Bars<'a> {
    /// What is shown.
    pub title: &'a str,
    /// Of the values.
    pub unit: &'a str,
    /// Names of the groups.
    pub groups: &'a [String],
    /// Names and values, one for each group; what is not above 0 is left out.
    pub series: &'a [(String, Vec<f64>)],
}

impl Bars<'_> {
    /// The picture.
    #[must_use]
    pub fn svg(&self) -> String {
        let values =
            || self.series.iter().flat_map(|(_, values)| values).copied().filter(|v| v.is_finite() && *v > 0.0);
        let decade = |value: f64, up: bool| if up { value.log10().ceil() } else { value.log10().floor() };
        let least = decade(values().fold(f64::INFINITY, f64::min).min(1e12), false);
        let most = decade(values().fold(0.0, f64::max).max(1e-12), true).max(least + 1.0);
        let bottom = HEIGHT - BOTTOM;
        let y = |value: f64| bottom - (value.log10() - least) / (most - least) * (bottom - TOP);

        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        let mut text = |x: f64, y: f64, anchor: &str, content: &str| {
            let content = content.replace('&', "&amp;").replace('<', "&lt;");
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>");
        };
        text(LEFT, 22.0, "start", &format!("{} ({}, logarithmic)", self.title, self.unit));
        let mut shapes = String::new();
        let mut exponent = least;
        while exponent <= most {
            let at = y(10f64.powf(exponent));
            text(LEFT - 8.0, at + 4.0, "end", &format!("{}", 10f64.powf(exponent)));
            let _ = writeln!(shapes, "<path d=\"M{LEFT} {at:.1}H{}\" stroke=\"#ddd\"/>", WIDTH - 10.0);
            exponent += 1.0;
        }
        for (number, (name, _)) in self.series.iter().enumerate() {
            let x = LEFT + number as f64 * 140.0;
            let _ = writeln!(
                shapes,
                "<rect x=\"{x:.1}\" y=\"34\" width=\"10\" height=\"10\" fill=\"{}\"/>",
                COLOURS[number % COLOURS.len()]
            );
            text(x + 15.0, 43.0, "start", name);
        }
        let group = (WIDTH - LEFT - 10.0) / self.groups.len().max(1) as f64;
        let bar = group * 0.8 / self.series.len().max(1) as f64;
        for (at, name) in self.groups.iter().enumerate() {
            let x = LEFT + at as f64 * group;
            text(x + group / 2.0, bottom + 34.0, "middle", name);
            for (number, (_, values)) in self.series.iter().enumerate() {
                let Some(value) = values.get(at).copied().filter(|v| v.is_finite() && *v > 0.0) else { continue };
                let (x, top) = (x + group * 0.1 + number as f64 * bar, y(value));
                let _ = writeln!(
                    shapes,
                    "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
                    bar * 0.92,
                    (bottom - top).max(1.0),
                    COLOURS[number % COLOURS.len()]
                );
                text(x + bar / 2.0, top - 4.0, "middle", &format!("{value:.0}"));
            }
        }
        // Names and numbers above the bars.
        let head = svg.find("<text").unwrap_or(svg.len());
        svg.insert_str(head, &shapes);
        svg + "</svg>\n"
    }
}

/// Writes a picture as `bench/results/NAME.svg`.
///
/// # Errors
/// The file cannot be written.
pub fn save(name: &str, svg: &str) -> anyhow::Result<PathBuf> {
    let file = crate::results().join(format!("{name}.svg"));
    std::fs::write(&file, svg).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_a_bar_for_each_value() {
        let groups = ["a".to_owned(), "b<c>".to_owned()];
        let series = [("x".to_owned(), vec![1.0, 1000.0]), ("y".to_owned(), vec![f64::NAN, 10.0])];
        let svg = Bars { title: "t", unit: "ns", groups: &groups, series: &series }.svg();
        // The ground, two in the legend, three values.
        assert_eq!(svg.matches("<rect").count(), 6);
        assert!(svg.contains(">1000</text>") && svg.contains("b&lt;c>") && svg.ends_with("</svg>\n"));
    }
}
