//! Tables for people.

/// Rows under headings.
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    /// Sorts the rows.
    pub(crate) fn new(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        let mut rows: Vec<Vec<String>> = rows.into_iter().collect();
        rows.sort();
        rows.insert(0, headings.iter().map(|h| (*h).to_owned()).collect());
        Self(rows)
    }

    pub(crate) fn text(&self) -> String {
        let width = |column: usize| self.0.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..self.0[0].len()).map(|c| width(c).unwrap_or(0)).collect();
        let row = |row: &Vec<String>| {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            cells.join("  ").trim_end().to_owned() + "\n"
        };
        self.0.iter().map(row).collect()
    }
}
