//! Text tables.

use std::iter::once;

use error_code::printable;

/// A table with a row per item, and aligned columns.
pub(crate) struct Table<T> {
    items: Vec<T>,
    /// The cells of each column, below its heading.
    columns: Vec<Vec<String>>,
}

impl<T> Table<T> {
    /// Creates a table without columns.
    pub(crate) fn of(items: impl IntoIterator<Item = T>) -> Self {
        Self {
            items: items.into_iter().collect(),
            columns: Vec::new(),
        }
    }

    /// Appends a column.
    pub(crate) fn column(mut self, heading: &str, cell: impl Fn(&T) -> String) -> Self {
        let cells = self.items.iter().map(cell);
        let cells = cells.map(|cell| printable::line(&cell).into_owned());
        self.columns
            .push(once(heading.to_owned()).chain(cells).collect());
        self
    }

    /// Renders the table, with sorted rows.
    pub(crate) fn text(&self) -> String {
        let row = |index: usize| {
            self.columns
                .iter()
                .map(move |column| column[index].as_str())
        };
        let mut rows: Vec<Vec<&str>> = (0..=self.items.len()).map(|i| row(i).collect()).collect();
        rows[1..].sort();
        let width = |column: &Vec<String>| column.iter().map(|c| c.chars().count()).max();
        let widths: Vec<usize> = self.columns.iter().filter_map(width).collect();
        let line = |row: &Vec<&str>| {
            let cells = row.iter().zip(&widths);
            let cells: Vec<String> = cells
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            cells.join("  ").trim_end().to_owned()
        };
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_rows_sorted() {
        let table = Table::of([["b", "ä", ""], ["a", "longer", "x"]])
            .column("NAME", |row| row[0].to_owned())
            .column("STATE", |row| row[1].to_owned())
            .column("REASON", |row| row[2].to_owned());
        assert_eq!(
            table.text(),
            "NAME  STATE   REASON\na     longer  x\nb     ä"
        );
        let hostile = Table::of(["a\nb  Ready", "\u{1b}[2J"]).column("NAME", |n| (*n).to_owned());
        assert_eq!(hostile.text(), "NAME\n\\u001b[2J\na\\nb  Ready");
        let empty = Table::of([]).column("NAME", |()| String::new());
        assert_eq!(
            empty.column("STATE", |()| String::new()).text(),
            "NAME  STATE"
        );
    }
}
