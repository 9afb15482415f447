//! Text in columns.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};

/// Which side of its column a text is on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows of equally many cells.
pub(crate) struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Table {
    /// A table with a row of headings.
    pub(crate) fn new<const N: usize>(columns: [(&str, Side); N]) -> Self {
        let headings = columns.iter().map(|(heading, _)| heading.to_string()).collect();
        Self { rows: Vec::from([headings]), ..Self::plain(columns.map(|(_, side)| side)) }
    }

    /// A table without headings.
    pub(crate) fn plain<const N: usize>(sides: [Side; N]) -> Self {
        Self { sides: sides.into(), rows: Vec::new(), indent: 0 }
    }

    /// Moved to the right by so many columns.
    pub(crate) fn indented(self, indent: usize) -> Self {
        Self { indent, ..self }
    }

    /// Appends a row. Control characters in it, which may come from a guest or a disk, become question marks.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.sides.len(), "a row has a cell for each column");
        self.rows.push(cells.iter().map(|cell| cell.replace(char::is_control, "?")).collect());
    }

    /// The rows, each with a line end and without blanks before it.
    pub(crate) fn render(&self) -> String {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.sides.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            for ((cell, side), width) in row.iter().zip(&self.sides).zip(&widths) {
                let pad = " ".repeat(width - cell.chars().count());
                let parts = if *side == Side::Left { [cell, &pad] } else { [&pad, cell] };
                line.extend(parts.map(String::as_str));
                line.push_str("  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new([("NAME", Side::Left), ("SIZE", Side::Right), ("BY", Side::Left)]);
        table.row(["ä".into(), "1".into(), "".into()]);
        table.row(["longer".into(), "12345".into(), "x".into()]);
        assert_eq!(table.render(), "NAME     SIZE  BY\nä           1\nlonger  12345  x\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut table = Table::plain([Side::Left]).indented(2);
        table.row(["a\x1b[2J\r\nb\u{9b}".into()]);
        assert_eq!(table.render(), "  a?[2J??b?\n");
    }
}
