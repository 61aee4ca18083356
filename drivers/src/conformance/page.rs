//! The matrix in docs/drivers.md: what every backend was seen to do, and nothing else. Written by the runs themselves when
//! `DUNLIN_BLESS` is set, and held against them otherwise.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};

use super::{Outcome, Report};

/// Around the table.
const BEGIN: &str = "<!-- what was run: written by the conformance tests -->\n";
const END: &str = "<!-- end of what was run -->";

/// A row: verbs, and what is held of them.
type Row = (String, String);

#[derive(Debug, Default, PartialEq, Eq)]
struct Matrix {
    columns: Vec<String>,
    rows: Vec<(Row, BTreeMap<String, String>)>,
}

/// Holds the page's column of that name against what has just run.
///
/// # Panics
/// When they differ, with what to do about it.
#[cfg(test)]
pub(crate) fn check(column: &str, report: &Report) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/drivers.md");
    // Several backends may be blessed at the same time.
    let lock = File::open(path.with_file_name(".")).expect("the folder of the page");
    flock(&lock, FlockOperation::LockExclusive).expect("lock the folder of the page");
    let page = std::fs::read_to_string(&path).expect("docs/drivers.md");
    let updated = update(&page, column, report);
    if std::env::var_os("DUNLIN_BLESS").is_some() {
        std::fs::write(&path, &updated).expect("write docs/drivers.md");
        return;
    }
    assert!(
        page == updated,
        "docs/drivers.md tells something else of {column} than what ran: DUNLIN_BLESS=1 writes it anew\n{report}"
    );
}

/// The page with this column as it ran; rows are those of the suite, in its order.
fn update(page: &str, column: &str, report: &Report) -> String {
    let (before, rest) = page.split_once(BEGIN).expect("docs/drivers.md has a place for what was run");
    let (table, after) = rest.split_once(END).expect("docs/drivers.md says where what was run ends");
    let mut matrix = read(table);
    if !matrix.columns.iter().any(|known| known == column) {
        matrix.columns.push(column.to_owned());
        matrix.columns.sort();
    }
    let old: BTreeMap<Row, BTreeMap<String, String>> = matrix.rows.into_iter().collect();
    let row = |(verbs, property, outcome): &(&str, &str, Outcome)| {
        let row = ((*verbs).to_owned(), (*property).to_owned());
        let mut cells = old.get(&row).cloned().unwrap_or_default();
        cells.insert(column.to_owned(), cell(outcome));
        (row, cells)
    };
    matrix.rows = report.lines.iter().map(row).collect();
    format!("{before}{BEGIN}{}{END}{after}", write(&matrix))
}

fn cell(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed => "works".to_owned(),
        Outcome::Lacks(_) => "unsupported".to_owned(),
        Outcome::Failed(_) => "FAILED".to_owned(),
    }
}

fn read(table: &str) -> Matrix {
    let mut lines = table.lines().filter(|line| line.starts_with('|')).map(|line| {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
    });
    let columns = lines.next().map(|head| head.into_iter().skip(2).collect::<Vec<_>>()).unwrap_or_default();
    let row = |cells: Vec<String>| {
        let mut cells = cells.into_iter();
        let row = (cells.next()?, cells.next()?);
        Some((row, columns.iter().cloned().zip(cells).filter(|(_, cell)| cell != "not run").collect()))
    };
    let rows = lines.skip(1).filter_map(row).collect();
    Matrix { columns, rows }
}

fn write(matrix: &Matrix) -> String {
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let columns = || matrix.columns.iter().map(String::as_str);
    let mut text = line(["verbs", "what is held"].into_iter().chain(columns()).collect());
    text.push_str(&line(vec!["---"; matrix.columns.len() + 2]));
    for ((verbs, property), cells) in &matrix.rows {
        let of = |column| cells.get(column).map_or("not run", String::as_str);
        text.push_str(&line(
            [verbs.as_str(), property.as_str()].into_iter().chain(columns().map(of)).collect(),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use dunlin_model::capabilities::{DriverName, DriverPower};

    use super::*;

    /// A run changes its own column and nothing else; told twice, it changes nothing; a row that is no more goes.
    #[test]
    fn a_run_writes_its_own_column() {
        let page = format!("# Drivers\n{BEGIN}{END}\nmore\n");
        let lines = vec![
            ("save", "it saves", Outcome::Lacks(DriverPower::Save)),
            ("start", "it starts", Outcome::Passed),
        ];
        let report = Report { driver: DriverName::Uml, lines };
        let one = update(&page, "uml", &report);
        assert_eq!(update(&one, "uml", &report), one);
        let two = update(&one, "lxc", &Report { driver: DriverName::Lxc, ..report.clone() });
        assert!(two.contains("| save | it saves | unsupported | unsupported |\n"), "{two}");
        let shorter = Report { lines: vec![("start", "it starts", Outcome::Failed("no".into()))], ..report };
        let three = update(&two, "uml", &shorter);
        assert!(
            three.contains("| start | it starts | works | FAILED |") && !three.contains("saves"),
            "{three}"
        );
        assert!(three.starts_with("# Drivers\n") && three.ends_with("\nmore\n"));
    }
}
