//! [`Table`]: rows in aligned columns, cut to the terminal's width.
//!
//! Changes when tables should look different. Knows nothing of what is in them.

use std::fmt::Write as _;

use super::text;

/// How a cell or a word stands out on a terminal with colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// As the terminal writes.
    Plain,
    /// All is well.
    Good,
    /// Something to look at.
    Warn,
    /// Something is wrong.
    Bad,
    /// Of less interest.
    Dim,
    /// A heading.
    Bold,
}

impl Style {
    const fn codes(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Warn => "\x1b[33m",
            Self::Bad => "\x1b[31m",
            Self::Dim => "\x1b[2m",
            Self::Bold => "\x1b[1m",
        }
    }

    /// `text` in this style, when `colour` is on.
    pub(crate) fn paint(self, text: &str, colour: bool) -> String {
        if colour && self != Self::Plain && !text.is_empty() {
            format!("{}{text}\x1b[0m", self.codes())
        } else {
            text.to_owned()
        }
    }
}

/// One value of a row. Its text is escaped when it is made, so a table is safe by construction.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// `text` in `style`.
    pub(crate) fn new(text: impl AsRef<str>, style: Style) -> Self {
        Self { text: text::escape_line(text.as_ref()).into_owned(), style }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Style::Plain)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// Always whole.
    Whole,
    /// Whole, against the right edge: numbers.
    Right,
    /// Gives way when the terminal is too narrow.
    Cut,
}

/// Rows in aligned columns.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Fit)>,
    rows: Vec<Vec<Cell>>,
}

/// Between two columns.
const GAP: usize = 2;
/// No column is cut below this: less tells nothing.
const NARROWEST: usize = 8;

impl Table {
    /// A table without columns.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// With a column that is always shown whole.
    pub(crate) fn whole(mut self, title: &'static str) -> Self {
        self.columns.push((title, Fit::Whole));
        self
    }

    /// With a column of numbers.
    pub(crate) fn number(mut self, title: &'static str) -> Self {
        self.columns.push((title, Fit::Right));
        self
    }

    /// With a column that is cut when the terminal is too narrow.
    pub(crate) fn cut(mut self, title: &'static str) -> Self {
        self.columns.push((title, Fit::Cut));
        self
    }

    /// Adds a row; missing cells are empty.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text. `width` is the terminal's; without one nothing is cut.
    pub(crate) fn render(&self, width: Option<usize>, colour: bool) -> String {
        let widths = self.widths(width);
        let mut out = String::new();
        let header: Vec<Cell> =
            self.columns.iter().map(|(title, _)| Cell::new(title, Style::Bold)).collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            self.render_row(&mut out, row, &widths, colour);
        }
        out
    }

    fn render_row(&self, out: &mut String, row: &[Cell], widths: &[usize], colour: bool) {
        let begin = out.len();
        let mut pending = 0;
        for ((cell, (_, fit)), width) in row.iter().zip(&self.columns).zip(widths) {
            let shown = text::cut(&cell.text, *width);
            let blank = width.saturating_sub(text::width(&shown));
            let painted = cell.style.paint(&shown, colour);
            let (before, after) = if *fit == Fit::Right { (blank, 0) } else { (0, blank) };
            // Blanks are owed, not written, so that no line ends in them.
            if !shown.is_empty() {
                let _ = write!(out, "{:1$}{painted}", "", pending + before);
                pending = 0;
            } else {
                pending += before;
            }
            pending += after + GAP;
        }
        debug_assert!(!out.get(begin..).unwrap_or_default().contains('\n'), "cells are one line");
        out.push('\n');
    }

    fn widths(&self, terminal: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, (title, _))| {
                let cells = self.rows.iter().filter_map(|row| row.get(at));
                cells.map(|cell| text::width(&cell.text)).max().unwrap_or(0).max(title.len())
            })
            .collect();
        let Some(terminal) = terminal else { return widths };
        loop {
            let total: usize = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
            let Some(excess) = total.checked_sub(terminal).filter(|excess| *excess > 0) else {
                return widths;
            };
            // The widest gives first, down to the next widest: what is short stays whole.
            let mut sizes: Vec<(usize, &mut usize)> = widths
                .iter_mut()
                .zip(&self.columns)
                .filter(|(width, (_, fit))| *fit == Fit::Cut && **width > NARROWEST)
                .map(|(width, _)| (*width, width))
                .collect();
            sizes.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
            let next = sizes.get(1).map_or(NARROWEST, |(size, _)| *size);
            let Some((size, widest)) = sizes.first_mut() else { return widths };
            let floor = if next == *size { *size - 1 } else { next };
            **widest = size.saturating_sub(excess).max(floor).max(NARROWEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new().whole("NAME").number("TOOLS").cut("ERROR").cut("TARGET");
        table.row(["steady".into(), "2".into(), "".into(), "http://127.0.0.1:9000/mcp".into()]);
        table.row([
            Cell::new("日本", Style::Bad),
            "10".into(),
            "could not connect: connection refused".into(),
            "a\x1b[2Jb".into(),
        ]);
        table
    }

    #[test]
    fn columns_are_aligned_and_nothing_is_cut_without_a_terminal() {
        assert_eq!(
            sample().render(None, false),
            "NAME    TOOLS  ERROR                                  TARGET\n\
             steady      2                                         http://127.0.0.1:9000/mcp\n\
             日本       10  could not connect: connection refused  a\\u{1b}[2Jb\n"
        );
    }

    #[test]
    fn a_narrow_terminal_cuts_the_widest_columns_first() {
        let text = sample().render(Some(50), false);
        assert!(text.lines().all(|line| text::width(line) <= 50), "{text}");
        assert_eq!(
            text,
            "NAME    TOOLS  ERROR             TARGET\n\
             steady      2                    http://127.0.0.1…\n\
             日本       10  could not conne…  a\\u{1b}[2Jb\n"
        );
        let tiny = sample().render(Some(10), false);
        assert!(tiny.contains("could n…"), "{tiny}");
    }

    #[test]
    fn colour_does_not_move_the_columns() {
        let coloured = sample().render(Some(60), true);
        assert!(coloured.contains("\x1b[31m日本\x1b[0m"), "{coloured}");
        let bare: String =
            coloured.replace("\x1b[31m", "").replace("\x1b[1m", "").replace("\x1b[0m", "");
        assert_eq!(bare, sample().render(Some(60), false));
    }
}
